import { expect, test } from 'vitest';
import { compile, flatten, type Precision } from '../../../trainer/engine/compile.ts';
import { recomputed } from '../../../trainer/engine/ops.ts';
import { hasBfloat16, type Tensor, tf } from '../../../trainer/engine/tf.ts';

// Made within the forward pass, which frees it: the way back must have kept it.
const scale = () => ({ by: tf.scalar(2) as Tensor });
const weights = {
  in: tf.randomNormal([8, 16], 0, 1, 'float32', 1),
  out: [tf.randomNormal([16, 8], 0, 1, 'float32', 2)],
};
const block = (x: Tensor, { in: into, out }: typeof weights, { by } = scale()) =>
  tf.add(x, tf.mul(tf.matMul(tf.sigmoid(tf.matMul(x, into)), out[0]!), by)) as Tensor; // (5, 8) · (8, 16) · (16, 8) → (5, 8)
const x = tf.randomNormal([5, 8], 0, 1, 'float32', 3) as Tensor;

/** The gradients of two blocks one after the other, with respect to x and weights. */
const gradients = (apply: typeof block) => (x: Tensor, given: typeof weights) =>
  tf.grads((x, into, out) => {
    const own = { in: into as Tensor, out: [out as Tensor] } as typeof weights;
    return tf.sum(tf.square(apply(apply(x as Tensor, own), own))) as never;
  })([x, given.in, given.out[0]!] as never) as Tensor[];
const again: typeof block = (x, weights) => recomputed(block, x, weights, scale());
const values = (tensors: Tensor[]) => flatten(tensors).map((tensor) => [...tensor.dataSync()]);

test('what is computed again on the way back has the gradients of what was kept, to the last bit', () => {
  const kept = values(gradients(block)(x, weights as never));
  expect(kept[0]!.some((g) => Math.abs(g) > 1)).toBe(true);
  expect(values(gradients(again)(x, weights as never))).toEqual(kept);
});

test('what is forward only is computed once', () => {
  let times = 0;
  const counted: typeof block = (...given) => {
    times++;
    return block(...given);
  };
  recomputed(counted, x, weights, scale());
  expect(times).toBe(1);
  gradients((x, weights) => recomputed(counted, x, weights, scale()))(x, weights as never);
  expect(times).toBe(1 + 2 * 2);
});

test.each<Precision>(hasBfloat16 ? ['float32', 'bfloat16'] : ['float32'])(
  'so it is in a compiled call, in %s',
  (precision) => {
    const [kept, anew] = [block, again].map((apply, i) =>
      values(compile(`recomputed ${i}`, gradients(apply), { precision })(x, weights as never)),
    );
    expect(anew!.flat().length).toBe(kept!.flat().length);
    const off = anew!.flat().map((g, i) => Math.abs(g - kept!.flat()[i]!) / (1 + Math.abs(g)));
    expect(Math.max(...off)).toBeLessThan(1e-5);
  },
);
