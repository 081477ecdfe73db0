// Attention over a cache in float32, for small policies.
//   keys:   (C/4, H, 4), four positions side by side, so that scores come four at a time      values: (C, H)
import { madd, softmax } from './simd';

const HEAD: usize = 256; // bytes of a head

/** Keeps a position's key and value head. (H), (H) */
export function remember32(k: usize, v: usize, keyCache: usize, valueCache: usize, position: i32): void {
  const to = keyCache + <usize>(position >> 2) * (HEAD * 4) + (<usize>(position & 3) << 2);
  for (let i: usize = 0; i < 64; i++) store<f32>(to + (i << 4), load<f32>(k + (i << 2)));
  memory.copy(valueCache + <usize>position * HEAD, v, HEAD);
}

/** One head over positions 0 … n − 1. (H) → (H) */
export function attend32(q: usize, keyCache: usize, valueCache: usize, n: i32, to: usize, scores: usize): void {
  const bytes = <usize>n << 2, padded = <usize>((n + 3) & ~3) << 2;
  let k = keyCache;
  for (let p: usize = 0; p < padded; p += 16) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    for (let i: usize = 0; i < HEAD; i += 16) {
      a = madd(v128.load32_splat(q + i), v128.load(k), a);
      b = madd(v128.load32_splat(q + i, 4), v128.load(k, 16), b);
      c = madd(v128.load32_splat(q + i, 8), v128.load(k, 32), c);
      d = madd(v128.load32_splat(q + i, 12), v128.load(k, 48), d);
      k += 64;
    }
    v128.store(scores + p, f32x4.mul(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)), f32x4.splat(0.125)));
  }
  const share = f32x4.splat(<f32>1.0 / softmax(scores, bytes, padded));
  for (let i: usize = 0; i < HEAD; i += 128) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
    let v = valueCache + i;
    for (let p: usize = 0; p < bytes; p += 4) {
      const s = v128.load32_splat(scores + p);
      a = madd(s, v128.load(v), a); b = madd(s, v128.load(v, 16), b);
      c = madd(s, v128.load(v, 32), c); d = madd(s, v128.load(v, 48), d);
      e = madd(s, v128.load(v, 64), e); f = madd(s, v128.load(v, 80), f);
      g = madd(s, v128.load(v, 96), g); h = madd(s, v128.load(v, 112), h);
      v += HEAD;
    }
    const o = to + i;
    v128.store(o, f32x4.mul(a, share)); v128.store(o, f32x4.mul(b, share), 16);
    v128.store(o, f32x4.mul(c, share), 32); v128.store(o, f32x4.mul(d, share), 48);
    v128.store(o, f32x4.mul(e, share), 64); v128.store(o, f32x4.mul(f, share), 80);
    v128.store(o, f32x4.mul(g, share), 96); v128.store(o, f32x4.mul(h, share), 112);
  }
}
