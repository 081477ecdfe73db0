// Products with a matrix of 8 bits. The weights' layout is drawn in schema/edge.ts.
import { clear8, dot, farther, fold, madd, max4, whole4 } from './simd';

const BLOCK_BYTES: usize = 288; // 8 scales, then 8 × (8 rows × 4 columns) of int8

// Activations are rounded to 16 bits by blocks of 32, in tiles of four rows: for each 4 columns the four rows' numbers
// lie side by side, so that one pointer and constant offsets reach all that a product needs.
//   quants: tile t, columns 4c … 4c + 3, row r at  t · 8K + 32c + 8r      scales: tile t, block b, row r at  t · K/2 + 16b + 4r

/** Rounds the row `from` of K numbers; `to` and `scale` are its places in its tile. */
function quantise(from: usize, K: i32, to: usize, scale: usize): void {
  const end = from + (<usize>K << 2);
  while (from < end) {
    let m = f32x4.splat(0);
    for (let i: usize = 0; i < 128; i += 16) m = farther(m, v128.load(from + i));
    const largest = max4(m);
    const inverse = f32x4.splat(largest == 0 ? 0 : <f32>32767.0 / largest);
    store<f32>(scale, largest / 32767.0);
    for (let i: usize = 0; i < 128; i += 32) {
      const low = whole4(f32x4.nearest(f32x4.mul(v128.load(from + i), inverse)));
      const high = whole4(f32x4.nearest(f32x4.mul(v128.load(from + i, 16), inverse)));
      const both = i16x8.narrow_i32x4_s(low, high);
      v128.store64_lane(to, both, 0);
      v128.store64_lane(to, both, 1, 32);
      to += 64;
    }
    from += 128;
    scale += 16;
  }
}

/** Adds a block's part of eight rows to their sums at y, for the one row of a tile at q. */
@inline function block(w: usize, q: usize, s: usize, y: usize): void {
  let sum0 = v128.load(y), sum1 = v128.load(y, 16);
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0), v: v128;
  v = v128.load64_splat(q);
  a = dot(v128.load8x8_s(w, 32), v, a); b = dot(v128.load8x8_s(w, 40), v, b);
  c = dot(v128.load8x8_s(w, 48), v, c); d = dot(v128.load8x8_s(w, 56), v, d);
  v = v128.load64_splat(q, 32);
  a = dot(v128.load8x8_s(w, 64), v, a); b = dot(v128.load8x8_s(w, 72), v, b);
  c = dot(v128.load8x8_s(w, 80), v, c); d = dot(v128.load8x8_s(w, 88), v, d);
  v = v128.load64_splat(q, 64);
  a = dot(v128.load8x8_s(w, 96), v, a); b = dot(v128.load8x8_s(w, 104), v, b);
  c = dot(v128.load8x8_s(w, 112), v, c); d = dot(v128.load8x8_s(w, 120), v, d);
  v = v128.load64_splat(q, 96);
  a = dot(v128.load8x8_s(w, 128), v, a); b = dot(v128.load8x8_s(w, 136), v, b);
  c = dot(v128.load8x8_s(w, 144), v, c); d = dot(v128.load8x8_s(w, 152), v, d);
  v = v128.load64_splat(q, 128);
  a = dot(v128.load8x8_s(w, 160), v, a); b = dot(v128.load8x8_s(w, 168), v, b);
  c = dot(v128.load8x8_s(w, 176), v, c); d = dot(v128.load8x8_s(w, 184), v, d);
  v = v128.load64_splat(q, 160);
  a = dot(v128.load8x8_s(w, 192), v, a); b = dot(v128.load8x8_s(w, 200), v, b);
  c = dot(v128.load8x8_s(w, 208), v, c); d = dot(v128.load8x8_s(w, 216), v, d);
  v = v128.load64_splat(q, 192);
  a = dot(v128.load8x8_s(w, 224), v, a); b = dot(v128.load8x8_s(w, 232), v, b);
  c = dot(v128.load8x8_s(w, 240), v, c); d = dot(v128.load8x8_s(w, 248), v, d);
  v = v128.load64_splat(q, 224);
  a = dot(v128.load8x8_s(w, 256), v, a); b = dot(v128.load8x8_s(w, 264), v, b);
  c = dot(v128.load8x8_s(w, 272), v, c); d = dot(v128.load8x8_s(w, 280), v, d);
  const scale = v128.load32_splat(s);
  sum0 = madd(fold(a, b), f32x4.mul(v128.load(w), scale), sum0);
  sum1 = madd(fold(c, d), f32x4.mul(v128.load(w, 16), scale), sum1);
  v128.store(y, sum0); v128.store(y, sum1, 16);
}

/**
 * One row of a tile: y = W q. (K) → (R). Four places of W are read in turn, a quarter of it apart: a processor fetches ahead within a page
 * of memory alone, and so where one place comes to the end of its page three others do not wait.
 */
function single(w: usize, R: i32, K: i32, tile: usize, tileScales: usize, y: usize): void {
  const end = tile + (<usize>K << 3), groups = <usize>(R >> 3), quarter = groups >> 2;
  const apart = quarter * <usize>(K >> 5) * BLOCK_BYTES, rowsApart = quarter << 5;
  for (let g: usize = 0; g < quarter; g++) {
    for (let p: usize = 0; p < 4; p++) clear8(y + p * rowsApart);
    for (let q = tile, s = tileScales; q < end; q += 256) {
      block(w, q, s, y);
      block(w + apart, q, s, y + rowsApart);
      block(w + 2 * apart, q, s, y + 2 * rowsApart);
      block(w + 3 * apart, q, s, y + 3 * rowsApart);
      w += BLOCK_BYTES; s += 16;
    }
    y += 32;
  }
  w += 3 * apart; y += 3 * rowsApart;
  for (let g = quarter << 2; g < groups; g++) {
    clear8(y);
    for (let q = tile, s = tileScales; q < end; q += 256) { block(w, q, s, y); w += BLOCK_BYTES; s += 16; }
    y += 32;
  }
}

/** A tile's four rows and four of the matrix's, those of the half group at w: y[t] = W q[t]. (4, K) → (4, 4) */
function tileOf4(w: usize, K: i32, q: usize, s: usize, y: usize, stride: usize): void {
  const end = q + (<usize>K << 3);
  let sum0 = f32x4.splat(0), sum1 = f32x4.splat(0), sum2 = f32x4.splat(0), sum3 = f32x4.splat(0);
  while (q < end) {
    let a0 = i32x4.splat(0), a1 = i32x4.splat(0), a2 = i32x4.splat(0), a3 = i32x4.splat(0);
    let b0 = i32x4.splat(0), b1 = i32x4.splat(0), b2 = i32x4.splat(0), b3 = i32x4.splat(0);
    let wa: v128, wb: v128, v: v128;
    wa = v128.load8x8_s(w, 32); wb = v128.load8x8_s(w, 40);
    v = v128.load64_splat(q); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 8); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 16); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 24); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 64); wb = v128.load8x8_s(w, 72);
    v = v128.load64_splat(q, 32); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 40); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 48); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 56); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 96); wb = v128.load8x8_s(w, 104);
    v = v128.load64_splat(q, 64); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 72); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 80); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 88); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 128); wb = v128.load8x8_s(w, 136);
    v = v128.load64_splat(q, 96); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 104); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 112); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 120); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 160); wb = v128.load8x8_s(w, 168);
    v = v128.load64_splat(q, 128); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 136); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 144); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 152); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 192); wb = v128.load8x8_s(w, 200);
    v = v128.load64_splat(q, 160); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 168); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 176); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 184); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 224); wb = v128.load8x8_s(w, 232);
    v = v128.load64_splat(q, 192); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 200); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 208); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 216); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 256); wb = v128.load8x8_s(w, 264);
    v = v128.load64_splat(q, 224); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 232); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 240); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 248); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    const scale = v128.load(w);
    sum0 = madd(fold(a0, b0), f32x4.mul(scale, v128.load32_splat(s)), sum0);
    sum1 = madd(fold(a1, b1), f32x4.mul(scale, v128.load32_splat(s, 4)), sum1);
    sum2 = madd(fold(a2, b2), f32x4.mul(scale, v128.load32_splat(s, 8)), sum2);
    sum3 = madd(fold(a3, b3), f32x4.mul(scale, v128.load32_splat(s, 12)), sum3);
    w += BLOCK_BYTES; q += 256; s += 16;
  }
  v128.store(y, sum0);
  v128.store(y + stride, sum1);
  v128.store(y + 2 * stride, sum2);
  v128.store(y + 3 * stride, sum3);
}

/** y = W x for T rows. (T, K) → (T, R); x and y may have wider rows */
export function product8(
  w: usize, R: i32, K: i32, T: i32, from: usize, fromStride: usize, y: usize, yStride: usize, quants: usize, scales: usize,
): void {
  const tile = <usize>K << 3, tileScales = <usize>K >> 1; // bytes
  for (let t: usize = 0; t < <usize>T; t++)
    quantise(from + t * fromStride, K, quants + (t >> 2) * tile + ((t & 3) << 3), scales + (t >> 2) * tileScales + ((t & 3) << 2));
  const left = (T & 3) < 3 ? <usize>T & 3 : 0; // three rows left are run as four
  const tiles = (<usize>T + 3 - left) >> 2;
  const group = <usize>(K >> 5) * BLOCK_BYTES;
  if (tiles > 0) {
    let at = w;
    for (let r: usize = 0; r < <usize>R; r += 8) {
      for (let t: usize = 0; t < tiles; t++) {
        const to = y + (t << 2) * yStride + (r << 2);
        tileOf4(at, K, quants + t * tile, scales + t * tileScales, to, yStride);
        tileOf4(at + 16, K, quants + t * tile, scales + t * tileScales, to + 16, yStride);
      }
      at += group;
    }
  }
  for (let t: usize = 0; t < left; t++)
    single(w, R, K, quants + tiles * tile + t * 8, scales + tiles * tileScales + t * 4, y + ((tiles << 2) + t) * yStride);
}
