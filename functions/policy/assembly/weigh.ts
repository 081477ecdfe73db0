// What each token weighs in a draw: exp((logit − the largest) / temperature), which the draw divides by their sum.
//   row: (V) f32, then padding up to a multiple of 8      shares: the same
import { exp4, larger, max4 } from './simd';

/** Of so many bytes of logits. (V) → (V) */
export function weighRow(row: usize, bytes: usize, temperature: f32, shares: usize): void {
  const whole = bytes & ~15;
  let m = f32x4.splat(-Infinity);
  for (let p: usize = 0; p < whole; p += 16) m = larger(m, v128.load(row + p));
  let largest = max4(m);
  for (let p = whole; p < bytes; p += 4) largest = max(largest, load<f32>(row + p));
  const most = f32x4.splat(largest), cool = f32x4.splat(<f32>1.0 / temperature);
  // The last four may reach into the padding, where they do no harm.
  for (let p: usize = 0; p < bytes; p += 16) v128.store(shares + p, exp4(f32x4.mul(f32x4.sub(v128.load(row + p), most), cool)));
}
