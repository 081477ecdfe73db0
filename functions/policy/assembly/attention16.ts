// Attention over a cache in bfloat16, which takes half the memory and half the reading: for large policies.
//   keys:   (C/8, H, 8), eight positions side by side in the order 0 4 1 5 2 6 3 7: every second number makes four floats
//   values: (C, H), of each eight dimensions in that order
import { even, madd, odd, softmax } from './simd';

const HEAD: usize = 128; // bytes of a head

/** The bfloat16 nearest to a float, ties to even. */
@inline function narrow(value: f32): u16 {
  const bits = reinterpret<u32>(value);
  return <u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
/** Where the n-th of eight lies, in bytes. */
@inline function placeOf(n: usize): usize { return ((n & 3) << 2) + ((n & 4) >> 1); }

/** Keeps a position's key and value head. (H), (H) */
export function remember16(k: usize, v: usize, keyCache: usize, valueCache: usize, position: i32): void {
  const at = <usize>position;
  const key = keyCache + (at >> 3) * (HEAD * 8) + placeOf(at & 7);
  for (let i: usize = 0; i < 64; i++) store<u16>(key + (i << 4), narrow(load<f32>(k + (i << 2))));
  const value = valueCache + at * HEAD;
  for (let i: usize = 0; i < 64; i++) store<u16>(value + ((i >> 3) << 4) + placeOf(i & 7), narrow(load<f32>(v + (i << 2))));
}

/** One head over positions 0 … n − 1. (H) → (H) */
export function attend16(q: usize, keyCache: usize, valueCache: usize, n: i32, to: usize, scores: usize): void {
  const bytes = <usize>n << 2, padded = <usize>((n + 7) & ~7) << 2;
  const eighth = f32x4.splat(0.125); // 1 / √H
  let k = keyCache, p: usize = 0;
  // sixteen positions at a time: with eight a sum waits for the one before
  for (; p + 32 < padded; p += 64) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
    for (let i: usize = 0; i < 256; i += 8) {
      const x = v128.load32_splat(q + i), y = v128.load32_splat(q + i, 4);
      let pair = v128.load(k);
      a = madd(x, even(pair), a); b = madd(x, odd(pair), b);
      pair = v128.load(k, 16);
      c = madd(y, even(pair), c); d = madd(y, odd(pair), d);
      pair = v128.load(k, HEAD * 8);
      e = madd(x, even(pair), e); f = madd(x, odd(pair), f);
      pair = v128.load(k, HEAD * 8 + 16);
      g = madd(y, even(pair), g); h = madd(y, odd(pair), h);
      k += 32;
    }
    v128.store(scores + p, f32x4.mul(f32x4.add(a, c), eighth));
    v128.store(scores + p, f32x4.mul(f32x4.add(b, d), eighth), 16);
    v128.store(scores + p, f32x4.mul(f32x4.add(e, g), eighth), 32);
    v128.store(scores + p, f32x4.mul(f32x4.add(f, h), eighth), 48);
    k += HEAD * 8;
  }
  if (p < padded) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    for (let i: usize = 0; i < 256; i += 8) {
      const first = v128.load(k), second = v128.load(k, 16);
      const x = v128.load32_splat(q + i), y = v128.load32_splat(q + i, 4);
      a = madd(x, even(first), a); b = madd(x, odd(first), b);
      c = madd(y, even(second), c); d = madd(y, odd(second), d);
      k += 32;
    }
    v128.store(scores + p, f32x4.mul(f32x4.add(a, c), eighth));
    v128.store(scores + p, f32x4.mul(f32x4.add(b, d), eighth), 16);
  }
  const share = f32x4.splat(<f32>1.0 / softmax(scores, bytes, padded));
  for (let i: usize = 0; i < HEAD; i += 64) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
    let v = valueCache + i;
    for (let p: usize = 0; p < bytes; p += 4) {
      const s = v128.load32_splat(scores + p);
      let pair = v128.load(v);
      a = madd(s, even(pair), a); b = madd(s, odd(pair), b);
      pair = v128.load(v, 16);
      c = madd(s, even(pair), c); d = madd(s, odd(pair), d);
      pair = v128.load(v, 32);
      e = madd(s, even(pair), e); f = madd(s, odd(pair), f);
      pair = v128.load(v, 48);
      g = madd(s, even(pair), g); h = madd(s, odd(pair), h);
      v += HEAD;
    }
    const o = to + (i << 1);
    v128.store(o, f32x4.mul(a, share)); v128.store(o, f32x4.mul(b, share), 16);
    v128.store(o, f32x4.mul(c, share), 32); v128.store(o, f32x4.mul(d, share), 48);
    v128.store(o, f32x4.mul(e, share), 64); v128.store(o, f32x4.mul(f, share), 80);
    v128.store(o, f32x4.mul(g, share), 96); v128.store(o, f32x4.mul(h, share), 112);
  }
}

/** Scores of four rows' queries with eight positions, first over every second dimension; `second` adds the others, and divides by √H. */
@inline function scores4(q: usize, qStride: usize, k: usize, to: usize, stride: usize, second: bool): void {
  let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
  let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
  const q1 = q + qStride, q2 = q1 + qStride, q3 = q2 + qStride;
  for (let i: usize = 0; i < 256; i += 8) {
    const pair = v128.load(k), left = even(pair), right = odd(pair);
    let x = v128.load32_splat(q + i); a = madd(x, left, a); b = madd(x, right, b);
    x = v128.load32_splat(q1 + i); c = madd(x, left, c); d = madd(x, right, d);
    x = v128.load32_splat(q2 + i); e = madd(x, left, e); f = madd(x, right, f);
    x = v128.load32_splat(q3 + i); g = madd(x, left, g); h = madd(x, right, h);
    k += 32;
  }
  if (second) {
    const eighth = f32x4.splat(0.125); // 1 / √H
    const to1 = to + stride, to2 = to1 + stride, to3 = to2 + stride;
    a = f32x4.mul(f32x4.add(v128.load(to), a), eighth); b = f32x4.mul(f32x4.add(v128.load(to, 16), b), eighth);
    c = f32x4.mul(f32x4.add(v128.load(to1), c), eighth); d = f32x4.mul(f32x4.add(v128.load(to1, 16), d), eighth);
    e = f32x4.mul(f32x4.add(v128.load(to2), e), eighth); f = f32x4.mul(f32x4.add(v128.load(to2, 16), f), eighth);
    g = f32x4.mul(f32x4.add(v128.load(to3), g), eighth); h = f32x4.mul(f32x4.add(v128.load(to3, 16), h), eighth);
  }
  v128.store(to, a); v128.store(to, b, 16); to += stride;
  v128.store(to, c); v128.store(to, d, 16); to += stride;
  v128.store(to, e); v128.store(to, f, 16); to += stride;
  v128.store(to, g); v128.store(to, h, 16);
}

/**
 * One head of four rows that follow each other in a sequence, the first over positions 0 … n − 1. (4, H) → (4, H)
 * A number of the cache is read and widened once for all; each row's sums are those of attend16, in the same order.
 */
export function attend16of4(
  q: usize, qStride: usize, keyCache: usize, valueCache: usize, n: i32, to: usize, toStride: usize, scores: usize, stride: usize,
): void {
  const bytes = <usize>n << 2, padded = <usize>((n + 10) & ~7) << 2;
  let k = keyCache;
  for (let p: usize = 0; p < padded; p += 32) {
    scores4(q, qStride, k, scores + p, stride, false);
    scores4(q + 4, qStride, k + 16, scores + p, stride, true);
    k += HEAD * 8;
  }
  const share0 = f32x4.splat(<f32>1.0 / softmax(scores, bytes, padded));
  const scores1 = scores + stride, share1 = f32x4.splat(<f32>1.0 / softmax(scores1, bytes + 4, padded));
  const scores2 = scores1 + stride, share2 = f32x4.splat(<f32>1.0 / softmax(scores2, bytes + 8, padded));
  const scores3 = scores2 + stride, share3 = f32x4.splat(<f32>1.0 / softmax(scores3, bytes + 12, padded));
  for (let i: usize = 0; i < HEAD; i += 16) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
    let v = valueCache + i;
    // up to the last row's positions: shares of those that come after a row's own are 0
    for (let p: usize = 0; p < bytes + 12; p += 4) {
      const pair = v128.load(v), left = even(pair), right = odd(pair);
      let s = v128.load32_splat(scores + p); a = madd(s, left, a); b = madd(s, right, b);
      s = v128.load32_splat(scores1 + p); c = madd(s, left, c); d = madd(s, right, d);
      s = v128.load32_splat(scores2 + p); e = madd(s, left, e); f = madd(s, right, f);
      s = v128.load32_splat(scores3 + p); g = madd(s, left, g); h = madd(s, right, h);
      v += HEAD;
    }
    let o = to + (i << 1);
    v128.store(o, f32x4.mul(a, share0)); v128.store(o, f32x4.mul(b, share0), 16); o += toStride;
    v128.store(o, f32x4.mul(c, share1)); v128.store(o, f32x4.mul(d, share1), 16); o += toStride;
    v128.store(o, f32x4.mul(e, share2)); v128.store(o, f32x4.mul(f, share2), 16); o += toStride;
    v128.store(o, f32x4.mul(g, share3)); v128.store(o, f32x4.mul(h, share3), 16);
  }
}
