// What is added to a matrix as the products of eight columns and rows, y += Σ s_j u_j (v_j · x): what rounding to 4 bits lost of it, or
// adapters. For each tensor of the model that lies in the matrix (drawn in schema/edge.ts):
//   8 × f32 s · 8 × K × i8 v, one after another · 8 × R × i8 u, one after another
import { madd, sum4 } from './simd';

const RANK: usize = 8;

@inline function low(v: v128): v128 { return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(v)); }
@inline function high(v: v128): v128 { return f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(v)); }

/** Adds to y what the tensor at `at` was short of, T rows; where the next tensor's lies. (T, K) → (T, R); x and y may have wider rows */
export function correct(
  at: usize, R: i32, K: i32, T: i32, from: usize, fromStride: usize, y: usize, yStride: usize, parts: usize,
): usize {
  const rows = <usize>R, cols = <usize>K, v = at + 4 * RANK, u = v + RANK * cols;
  for (let t = 0; t < T; t++) {
    for (let j: usize = 0; j < RANK; j++) {
      let a = f32x4.splat(0), b = f32x4.splat(0);
      const row = v + j * cols;
      for (let c: usize = 0; c < cols; c += 8) {
        const numbers = v128.load8x8_s(row + c);
        a = madd(v128.load(from + (c << 2)), low(numbers), a);
        b = madd(v128.load(from + (c << 2), 16), high(numbers), b);
      }
      store<f32>(parts + (j << 2), load<f32>(at + (j << 2)) * sum4(f32x4.add(a, b)));
    }
    for (let r: usize = 0; r < rows; r += 8) {
      const to = y + (r << 2);
      let a = v128.load(to), b = v128.load(to, 16);
      for (let j: usize = 0; j < RANK; j++) {
        const numbers = v128.load8x8_s(u + j * rows + r), part = v128.load32_splat(parts + (j << 2));
        a = madd(part, low(numbers), a);
        b = madd(part, high(numbers), b);
      }
      v128.store(to, a); v128.store(to, b, 16);
    }
    from += fromStride; y += yStride;
  }
  return u + RANK * rows;
}
