// RMSNorm (Zhang & Sennrich 2019), and the residual's sum.
//   row: (N) f32, one number after another, four to a register      gain: (N) f32, of the model
import { madd, sum4 } from './simd';

/** to = from / √(mean(from²) + ε) · gain. (N) → (N) */
@inline export function rmsNorm(N: i32, from: usize, gain: usize, to: usize, epsilon: f32): void {
  const bytes = <usize>N << 2;
  let squares = f32x4.splat(0);
  for (let i: usize = 0; i < bytes; i += 16) { const v = v128.load(from + i); squares = madd(v, v, squares); }
  const scale = f32x4.splat(<f32>1.0 / sqrt<f32>(sum4(squares) / <f32>N + epsilon));
  for (let i: usize = 0; i < bytes; i += 16) v128.store(to + i, f32x4.mul(f32x4.mul(v128.load(from + i), scale), v128.load(gain + i)));
}

/** to += from, of so many bytes. */
export function addTo(to: usize, from: usize, bytes: usize): void {
  for (let i: usize = 0; i < bytes; i += 16) v128.store(to + i, f32x4.add(v128.load(to + i), v128.load(from + i)));
}
