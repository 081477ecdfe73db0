// Products with a matrix of 4 bits, whole numbers q from 0 to 15 with a scale d and an offset m a row and block of 32 columns:
// y = Σ (d·q + m)·x. Activations are rounded to 8 bits a block, so that a relaxed dot product takes 16 at once; a weight of
// 4 bits is far from the 7 that it takes at most, so every processor gives the same. An integer sum is exact; d, m and the
// activations' scale are multiplied in once a block. Sums are kept in 16 bits within a block: a dot product of two is one
// instruction on any x64, one of four on processors with avx_vnni alone, and three on the others.
//
// Where many rows are multiplied, blocks are unpacked before, to 320 bytes each:
//   4 × 4 × f32      the scales of rows 0 … 3 and of 4 … 7, then their offsets
//   8 × 8 × 4 × u8   for each 4 columns, each row's four numbers
//
// Activations lie in tiles of four rows, for each 4 columns the four rows' numbers side by side:
//   quants: tile t, columns 4c … 4c + 3, row r at  t · 4K + 16c + 4r
//   scales: tile t, block b, row r at  t · K + 32b + 4r      and 16 bytes on, the scale times the sum of the block's numbers
import { clear8, even, farther, madd, max4, odd, whole4 } from './simd';

const BLOCK_BYTES: usize = 160; // 8 scales and 8 offsets of bfloat16, then 4 × (8 rows × 8 columns)
const UNPACKED_BYTES: usize = 320;

/** Eight sums of two products each, of int8 and numbers below 16, added to eight others: 8 · 2 · 127 · 15 fits into 16 bits. */
@inline function dot2(x: v128, w: v128, sum: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, w), sum);
  const low = i16x8.extmul_low_i8x16_s(x, w), high = i16x8.extmul_high_i8x16_s(x, w);
  const pairs = i16x8.add(i8x16.shuffle(low, high, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),
    i8x16.shuffle(low, high, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31));
  return i16x8.add(pairs, sum);
}
/** Four rows' sums, each of two 16-bit halves. */
@inline function whole(pairs: v128): v128 { return f32x4.convert_i32x4_s(i32x4.extadd_pairwise_i16x8_s(pairs)); }
@inline function lowHalves(w: v128): v128 { return v128.and(w, i8x16.splat(15)); }
@inline function highHalves(w: v128): v128 { return v128.and(i16x8.shr_u(w, 4), i8x16.splat(15)); }
/** Rounds the row `from` of K numbers to 8 bits; `to` and `scale` are its places in its tile. */
function quantise(from: usize, K: i32, to: usize, scale: usize): void {
  const end = from + (<usize>K << 2);
  while (from < end) {
    let m = f32x4.splat(0);
    for (let i: usize = 0; i < 128; i += 16) m = farther(m, v128.load(from + i));
    const largest = max4(m);
    const inverse = f32x4.splat(largest == 0 ? 0 : <f32>127.0 / largest);
    let sum = i32x4.splat(0);
    for (let i: usize = 0; i < 128; i += 16) {
      const q = whole4(f32x4.nearest(f32x4.mul(v128.load(from + i), inverse)));
      sum = i32x4.add(sum, q);
      const halves = i16x8.narrow_i32x4_s(q, q);
      v128.store32_lane(to, i8x16.narrow_i16x8_s(halves, halves), 0);
      to += 16;
    }
    const total = i32x4.extract_lane(sum, 0) + i32x4.extract_lane(sum, 1) + i32x4.extract_lane(sum, 2) + i32x4.extract_lane(sum, 3);
    store<f32>(scale, largest / 127.0);
    store<f32>(scale, largest / 127.0 * <f32>total, 16);
    from += 128;
    scale += 32;
  }
}

/** Adds a block's part of eight rows to their sums at y, for the one row of a tile at q. */
@inline function block(w: usize, q: usize, s: usize, y: usize): void {
  let sum0 = v128.load(y), sum1 = v128.load(y, 16);
  let a = i32x4.splat(0), b = i32x4.splat(0);
  let left = v128.load32_splat(q), right = v128.load32_splat(q, 16);
  let w0 = v128.load(w, 32), w1 = v128.load(w, 48);
  a = dot2(left, lowHalves(w0), a); b = dot2(left, lowHalves(w1), b);
  a = dot2(right, highHalves(w0), a); b = dot2(right, highHalves(w1), b);
  left = v128.load32_splat(q, 32); right = v128.load32_splat(q, 48);
  w0 = v128.load(w, 64); w1 = v128.load(w, 80);
  a = dot2(left, lowHalves(w0), a); b = dot2(left, lowHalves(w1), b);
  a = dot2(right, highHalves(w0), a); b = dot2(right, highHalves(w1), b);
  left = v128.load32_splat(q, 64); right = v128.load32_splat(q, 80);
  w0 = v128.load(w, 96); w1 = v128.load(w, 112);
  a = dot2(left, lowHalves(w0), a); b = dot2(left, lowHalves(w1), b);
  a = dot2(right, highHalves(w0), a); b = dot2(right, highHalves(w1), b);
  left = v128.load32_splat(q, 96); right = v128.load32_splat(q, 112);
  w0 = v128.load(w, 128); w1 = v128.load(w, 144);
  a = dot2(left, lowHalves(w0), a); b = dot2(left, lowHalves(w1), b);
  a = dot2(right, highHalves(w0), a); b = dot2(right, highHalves(w1), b);
  const ds = v128.load(w), ms = v128.load(w, 16), scale = v128.load32_splat(s), total = v128.load32_splat(s, 16);
  sum0 = madd(whole(a), f32x4.mul(even(ds), scale), sum0);
  sum1 = madd(whole(b), f32x4.mul(odd(ds), scale), sum1);
  sum0 = madd(even(ms), total, sum0);
  sum1 = madd(odd(ms), total, sum1);
  v128.store(y, sum0); v128.store(y, sum1, 16);
}

/**
 * One row of a tile: y = W q. (K) → (R). Four places of W are read in turn, a quarter of it apart: a processor fetches ahead within a page
 * of memory alone, and so where one place comes to the end of its page three others do not wait.
 */
function single(w: usize, R: i32, K: i32, tile: usize, tileScales: usize, y: usize): void {
  const end = tile + (<usize>K << 2), quarter = <usize>(R >> 5); // of groups; R is a multiple of 32 (schema/edge.ts)
  const apart = quarter * <usize>(K >> 5) * BLOCK_BYTES, rowsApart = quarter << 5;
  for (let g: usize = 0; g < quarter; g++) {
    for (let p: usize = 0; p < 4; p++) clear8(y + p * rowsApart);
    for (let q = tile, s = tileScales; q < end; q += 128) {
      block(w, q, s, y);
      block(w + apart, q, s, y + rowsApart);
      block(w + 2 * apart, q, s, y + 2 * rowsApart);
      block(w + 3 * apart, q, s, y + 3 * rowsApart);
      w += BLOCK_BYTES; s += 32;
    }
    y += 32;
  }
}

/** A block, as tiles read it. */
@inline function unpack(w: usize, to: usize): void {
  const ds = v128.load(w), ms = v128.load(w, 16);
  v128.store(to, even(ds)); v128.store(to, odd(ds), 16); v128.store(to, even(ms), 32); v128.store(to, odd(ms), 48);
  for (let i: usize = 0; i < 128; i += 32) {
    const w0 = v128.load(w + i, 32), w1 = v128.load(w + i, 48);
    v128.store(to + 2 * i, lowHalves(w0), 64); v128.store(to + 2 * i, lowHalves(w1), 80);
    v128.store(to + 2 * i, highHalves(w0), 96); v128.store(to + 2 * i, highHalves(w1), 112);
  }
}

/** A tile's four rows and the eight of the group at w: y[t] = W q[t]. (4, K) → (4, 8) */
function tileOf4(w: usize, K: i32, q: usize, s: usize, y: usize, stride: usize): void {
  const end = q + (<usize>K << 2);
  let p0 = f32x4.splat(0), p1 = f32x4.splat(0), p2 = f32x4.splat(0), p3 = f32x4.splat(0);
  let o0 = f32x4.splat(0), o1 = f32x4.splat(0), o2 = f32x4.splat(0), o3 = f32x4.splat(0);
  while (q < end) {
    let a0 = i32x4.splat(0), a1 = i32x4.splat(0), a2 = i32x4.splat(0), a3 = i32x4.splat(0);
    let b0 = i32x4.splat(0), b1 = i32x4.splat(0), b2 = i32x4.splat(0), b3 = i32x4.splat(0);
    for (let v: usize = 0; v < 128; v += 32) {
      const l0 = v128.load(w + 2 * v, 64), l1 = v128.load(w + 2 * v, 80), h0 = v128.load(w + 2 * v, 96), h1 = v128.load(w + 2 * v, 112);
      let x = v128.load32_splat(q + v); a0 = dot2(x, l0, a0); b0 = dot2(x, l1, b0);
      x = v128.load32_splat(q + v, 16); a0 = dot2(x, h0, a0); b0 = dot2(x, h1, b0);
      x = v128.load32_splat(q + v, 4); a1 = dot2(x, l0, a1); b1 = dot2(x, l1, b1);
      x = v128.load32_splat(q + v, 20); a1 = dot2(x, h0, a1); b1 = dot2(x, h1, b1);
      x = v128.load32_splat(q + v, 8); a2 = dot2(x, l0, a2); b2 = dot2(x, l1, b2);
      x = v128.load32_splat(q + v, 24); a2 = dot2(x, h0, a2); b2 = dot2(x, h1, b2);
      x = v128.load32_splat(q + v, 12); a3 = dot2(x, l0, a3); b3 = dot2(x, l1, b3);
      x = v128.load32_splat(q + v, 28); a3 = dot2(x, h0, a3); b3 = dot2(x, h1, b3);
    }
    const d0 = v128.load(w), d1 = v128.load(w, 16), m0 = v128.load(w, 32), m1 = v128.load(w, 48);
    let scale = v128.load32_splat(s), total = v128.load32_splat(s, 16);
    p0 = madd(m0, total, madd(whole(a0), f32x4.mul(d0, scale), p0));
    o0 = madd(m1, total, madd(whole(b0), f32x4.mul(d1, scale), o0));
    scale = v128.load32_splat(s, 4); total = v128.load32_splat(s, 20);
    p1 = madd(m0, total, madd(whole(a1), f32x4.mul(d0, scale), p1));
    o1 = madd(m1, total, madd(whole(b1), f32x4.mul(d1, scale), o1));
    scale = v128.load32_splat(s, 8); total = v128.load32_splat(s, 24);
    p2 = madd(m0, total, madd(whole(a2), f32x4.mul(d0, scale), p2));
    o2 = madd(m1, total, madd(whole(b2), f32x4.mul(d1, scale), o2));
    scale = v128.load32_splat(s, 12); total = v128.load32_splat(s, 28);
    p3 = madd(m0, total, madd(whole(a3), f32x4.mul(d0, scale), p3));
    o3 = madd(m1, total, madd(whole(b3), f32x4.mul(d1, scale), o3));
    w += UNPACKED_BYTES; q += 128; s += 32;
  }
  v128.store(y, p0); v128.store(y, o0, 16);
  y += stride; v128.store(y, p1); v128.store(y, o1, 16);
  y += stride; v128.store(y, p2); v128.store(y, o2, 16);
  y += stride; v128.store(y, p3); v128.store(y, o3, 16);
}

/** y = W x for T rows. (T, K) → (T, R); x and y may have wider rows */
export function product4(
  w: usize, R: i32, K: i32, T: i32, from: usize, fromStride: usize, y: usize, yStride: usize, quants: usize, scales: usize, unpacked: usize,
): void {
  const tile = <usize>K << 2, tileScales = <usize>K; // bytes
  for (let t: usize = 0; t < <usize>T; t++)
    quantise(from + t * fromStride, K, quants + (t >> 2) * tile + ((t & 3) << 2), scales + (t >> 2) * tileScales + ((t & 3) << 2));
  const left = (T & 3) < 3 ? <usize>T & 3 : 0; // three rows left are run as four
  const tiles = (<usize>T + 3 - left) >> 2;
  const group = <usize>(K >> 5) * BLOCK_BYTES;
  if (tiles > 0) {
    const quarter = <usize>(R >> 5) * group, far = <usize>(R >> 2), bytes = <usize>(K >> 5) * UNPACKED_BYTES;
    let at = w;
    for (let r: usize = 0; r < far; r += 8) {
      const end = at + group;
      for (let to = unpacked; at < end; to += UNPACKED_BYTES) {
        for (let p: usize = 0; p < 4; p++) unpack(at + p * quarter, to + p * bytes);
        at += BLOCK_BYTES;
      }
      for (let p: usize = 0; p < 4; p++) {
        for (let t: usize = 0; t < tiles; t++)
          tileOf4(unpacked + p * bytes, K, quants + t * tile, scales + t * tileScales, y + (t << 2) * yStride + ((r + p * far) << 2), yStride);
      }
    }
  }
  for (let t: usize = 0; t < left; t++)
    single(w, R, K, quants + tiles * tile + t * 4, scales + tiles * tileScales + t * 4, y + ((tiles << 2) + t) * yStride);
}
