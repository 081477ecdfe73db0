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
