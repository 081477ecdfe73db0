// Rotary positions (Su et al. 2021) as Hugging Face's Llama has them: dimension i of a head turns with i + 32.
//   heads: one after another, each (64) f32 as | first half: 32 | second half: 32 |
//   cosines, sines of a position: (32) f32, of the angles that both halves turn by

const HEAD: usize = 256; // bytes of a head
const HALF: usize = 128;

/** Turns n heads in place by the angles of their position. (n, 64) → (n, 64) */
export function rope(head: usize, n: i32, cosines: usize, sines: usize): void {
  for (let h = 0; h < n; h++) {
    for (let i: usize = 0; i < HALF; i += 16) {
      const a = v128.load(head + i), b = v128.load(head + i, HALF);
      const cos = v128.load(cosines + i), sin = v128.load(sines + i);
      v128.store(head + i, f32x4.sub(f32x4.mul(a, cos), f32x4.mul(b, sin)));
      v128.store(head + i, f32x4.add(f32x4.mul(b, cos), f32x4.mul(a, sin)), HALF);
    }
    head += HEAD;
  }
}
