// The gate of a layer's inner numbers (Shazeer 2020): gate · σ(gate) · up, where the gate lay.
//   row: | gate: (F) f32 | up: (F) f32 |
import { exp4 } from './simd';

/** In place, of so many bytes of gate. (2F) → (F) */
export function swiglu(row: usize, bytes: usize): void {
  for (let i: usize = 0; i < bytes; i += 16) {
    const gate = v128.load(row + i);
    const sigmoid = f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.pmin(f32x4.neg(gate), f32x4.splat(87)))));
    v128.store(row + i, f32x4.mul(f32x4.mul(gate, sigmoid), v128.load(row + i + bytes)));
  }
}
