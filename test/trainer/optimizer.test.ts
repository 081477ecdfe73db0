import { expect, test } from 'vitest';
import type { Row } from '../../trainer/data.ts';
import { flatten, mapTree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { hiddenStates, type Parameters, statesBefore, tokenLogprobs } from '../../trainer/model.ts';
import { adamState, trainer } from '../../trainer/optimizer.ts';
import { batchOf, byPrompt, pack, predictionsOf } from '../../trainer/pack.ts';
import { random } from '../../trainer/random.ts';
import { eagerly } from '../support/eagerly.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const ADAM = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };

test('a step on a batch in many small calls is the step on the batch in one', () => {
  const rng = random(2);
  const rows: Row[] = Array.from({ length: 12 }, () => ({
    prompt: [rng.int(2, 32), rng.int(2, 32)],
    answer: Array.from({ length: rng.int(2, 9) }, () => rng.int(2, 32)),
  }));
  const tokens = rows.reduce((sum, row) => sum + row.answer.length, 0);
  const stepped = (shape: { rows: number; columns: number }) => {
    const step = trainer(
      'likelihood',
      (weights: Parameters, { batch, predictions }: ReturnType<typeof partsOf>[number]) => {
        const states = statesBefore(hiddenStates(TINY, weights, batch), predictions); // (N, D)
        const { logprobs } = tokenLogprobs(weights, states, predictions.target); // (N)
        return { loss: tf.neg(tf.sum(tf.mul(logprobs, predictions.weight))) };
      },
      ADAM,
    );
    const partsOf = () =>
      pack(rows, byPrompt(rows, shape), shape, 0).map((part) => ({
        batch: batchOf(part, shape),
        predictions: predictionsOf(part, 1 / tokens),
      }));
    const given = mapTree(tinyParameters(), tf.clone);
    const parts = partsOf();
    return { calls: parts.length, ...step(given, adamState(given), 1e-2, parts) };
  };
  const small = stepped({ rows: 1, columns: 24 });
  const whole = stepped({ rows: 6, columns: 64 });
  expect(whole.calls).toBe(1);
  expect(small.calls).toBeGreaterThan(3);
  expect(small.values.loss).toBeCloseTo(whole.values.loss, 5);
  expect(small.norm).toBeCloseTo(whole.norm, 5);
  const [a, b] = [small, whole].map(({ adam }) => flatten(adam.m).flatMap((t) => Array.from(t.dataSync())));
  expect(Math.max(...a!.map((x, i) => Math.abs(x - b![i]!)))).toBeLessThan(1e-5);
});

test.each([1, 2])('a gradient beyond the bound is brought to it, one within it is left, in %i parts', (parts) => {
  const linear = ({ w }: { w: Tensor }, { c }: { c: Tensor }) => ({ loss: tf.sum(tf.mul(w, c)) as Tensor }); // its gradient is c
  const step = trainer('linear', linear, ADAM);
  for (const [length, left] of [
    [10, 1],
    [0.5, 0.5],
  ] as const) {
    const given = { w: tf.ones([2]) as Tensor };
    const share = Array.from({ length: parts }, () => ({
      c: tf.tensor1d([(0.6 * length) / parts, (0.8 * length) / parts]) as Tensor,
    }));
    const { norm, adam } = step(given, adamState(given), 1e-2, share);
    expect(norm).toBeCloseTo(length, 5);
    const [x, y] = (adam.m[0]!.dataSync() as Float32Array).map((m) => m / (1 - ADAM.beta1));
    expect(x).toBeCloseTo(0.6 * left, 5);
    expect(y).toBeCloseTo(0.8 * left, 5);
  }
});

test('what the parts give sums to the batch’s, but of peaks the largest counts', () => {
  const values = ({ w }: { w: Tensor }, { c }: { c: Tensor }) => ({
    loss: tf.sum(tf.mul(w, c)) as Tensor,
    most: tf.max(c) as Tensor,
    count: tf.sum(c) as Tensor,
  });
  const step = trainer('peaks', values, ADAM, 'float32', ['most']);
  const given = { w: tf.ones([2]) as Tensor };
  const parts = [
    [1, 2],
    [5, 3],
    [4, 0],
  ].map((c) => ({ c: tf.tensor1d(c) as Tensor }));
  const { values: told } = step(given, adamState(given), 1e-2, parts);
  expect(told).toEqual({ loss: 15, most: 5, count: 15 });
});

test('who goes on after a batch in parts adds up as the one before did, bit for bit', () => {
  const likelihood = (weights: { w: Tensor }, { x }: { x: Tensor }) => ({
    loss: tf.sum(tf.square(tf.matMul(x, weights.w))) as Tensor,
  });
  const rng = random(3);
  const part = () => ({
    x: tf.tensor2d(
      Float32Array.from({ length: 4 * 8 }, () => rng()),
      [4, 8],
    ) as Tensor,
  });
  const batches = [[part(), part()], [part()], [part()]];
  const again = (parts: { x: Tensor }[]) => parts.map(({ x }) => ({ x: tf.clone(x) }));
  const bytes = (tensor: Tensor) => Buffer.from((tensor.dataSync() as Float32Array).slice().buffer).toString('hex');

  const one = trainer('likelihood', likelihood, ADAM);
  let state = { parameters: { w: tf.ones([8, 3]) as Tensor }, adam: adamState({ w: tf.ones([8, 3]) as Tensor }) };
  let saved: typeof state | undefined;
  for (const [i, batch] of batches.entries()) {
    state = one(state.parameters, state.adam, 1e-2, again(batch));
    if (i === 0) saved = mapTree({ parameters: state.parameters, adam: state.adam }, tf.clone) as typeof state;
  }
  const other = trainer('likelihood', likelihood, ADAM);
  let resumed = saved!;
  for (const batch of batches.slice(1)) resumed = other(resumed.parameters, resumed.adam, 1e-2, again(batch));
  expect(bytes(resumed.parameters.w)).toBe(bytes(state.parameters.w));
  expect(resumed.adam.parted.dataSync()[0]).toBe(1);
});

/** The losses of 50 steps on one batch of a little model. */
function losses(precision: 'float32' | 'bfloat16'): number[] {
  const shape = { rows: 2, columns: 48 };
  const rng = random(7);
  const rows: Row[] = Array.from({ length: 8 }, () => ({
    prompt: [rng.int(2, 32), rng.int(2, 32)],
    answer: Array.from({ length: 8 }, () => rng.int(2, 32)),
  }));
  type Part = { batch: ReturnType<typeof batchOf>; predictions: ReturnType<typeof predictionsOf> };
  const step = trainer(
    'descent',
    (weights: Parameters, { batch, predictions }: Part) => {
      const states = statesBefore(hiddenStates(TINY, weights, batch), predictions); // (N, D)
      const { logprobs } = tokenLogprobs(weights, states, predictions.target); // (N)
      return { loss: tf.neg(tf.sum(tf.mul(logprobs, predictions.weight))) };
    },
    ADAM,
    precision,
  );
  let parameters = mapTree(tinyParameters(), tf.clone);
  let adam = adamState(parameters);
  return Array.from({ length: 50 }, () => {
    const parts = pack(rows, byPrompt(rows, shape), shape, 0).map((part) => ({
      batch: batchOf(part, shape),
      predictions: predictionsOf(part, 1 / 64),
    }));
    const result = step(parameters, adam, 1e-3, parts);
    ({ parameters, adam } = result);
    return result.values.loss;
  });
}

test('compiled and op by op the losses are the same: within 1e-5 over five steps, 1e-3 at the fiftieth', async () => {
  const compiled = losses('float32');
  const eager = await eagerly(() => losses('float32'));
  const difference = (i: number) => Math.abs(compiled[i]! - eager[i]!) / eager[i]!;
  for (const i of [0, 1, 2, 3, 4]) expect(difference(i)).toBeLessThan(1e-5);
  expect(difference(49)).toBeLessThan(1e-3);
  expect(compiled[49]).toBeLessThan(0.9 * compiled[0]!);
});

test('with products in bfloat16 it learns the same, within what their rounding makes', () => {
  const [exact, rounded] = [losses('float32'), losses('bfloat16')];
  for (const i of [0, 10, 49]) expect(Math.abs(rounded[i]! - exact[i]!) / exact[i]!).toBeLessThan(0.01);
  expect(rounded[0]).not.toBe(exact[0]);
});

test('ε is TensorFlow 1’s: beside √v as it stands, not beside its corrected form', () => {
  const epsilon = 0.5;
  const step = trainer('slope', (p: { x: ReturnType<typeof tf.tensor> }) => ({ loss: tf.mul(tf.sum(p.x), 3) }), {
    ...ADAM,
    epsilon,
    clipNorm: 1e9,
  });
  const given = { x: tf.tensor1d([0]) };
  const x = step(given, adamState(given), 0.1, [{}]).parameters.x.dataSync()[0]!;
  const [m, v] = [0.1 * 3, 0.05 * 9];
  const first = ((0.1 * Math.sqrt(1 - 0.95)) / (1 - 0.9)) * (m / (Math.sqrt(v) + epsilon));
  const corrected = (0.1 * (m / 0.1)) / (Math.sqrt(v / 0.05) + epsilon);
  expect(x).toBeCloseTo(-first, 6);
  expect(Math.abs(first - corrected)).toBeGreaterThan(0.01);
});

test('Adam’s first step is the learning rate along the sign of the gradient, matrices decayed and vectors not', () => {
  const step = trainer(
    'line',
    (p: { matrix: ReturnType<typeof tf.tensor>; vector: ReturnType<typeof tf.tensor> }) => ({
      loss: tf.add(tf.sum(tf.mul(p.matrix, 3)), tf.sum(tf.mul(p.vector, -2))),
    }),
    { ...ADAM, clipNorm: 1e9 },
  );
  const given = { matrix: tf.tensor2d([[1, 2]]), vector: tf.tensor1d([5]) };
  const { parameters, norm } = step(given, adamState(given), 0.1, [{}]);
  expect(norm).toBeCloseTo(Math.sqrt(9 + 9 + 4), 5);
  const matrix = parameters.matrix.dataSync() as Float32Array;
  // 1 − lr·wd·1 − lr, 2 − lr·wd·2 − lr; and 5 + lr: a vector does not decay.
  expect(matrix[0]).toBeCloseTo(1 - 0.01 - 0.1, 5);
  expect(matrix[1]).toBeCloseTo(2 - 0.02 - 0.1, 5);
  expect(parameters.vector.dataSync()[0]).toBeCloseTo(5.1, 5);
});

test('tensors that are quick go so many times as far, and do not decay', () => {
  type Pair = { slow: ReturnType<typeof tf.tensor>; fast: ReturnType<typeof tf.tensor> };
  const step = trainer(
    'two speeds',
    ({ slow, fast }: Pair) => ({ loss: tf.add(tf.sum(tf.mul(slow, 3)), tf.sum(tf.mul(fast, 3))) }),
    { ...ADAM, clipNorm: 1e9, quick: { of: ({ fast }: Pair) => [fast], times: 5 } },
  );
  const given = { slow: tf.tensor2d([[2]]), fast: tf.tensor2d([[2]]) };
  const { parameters } = step(given, adamState(given), 0.1, [{}]);
  expect(parameters.slow.dataSync()[0]).toBeCloseTo(2 - 0.02 - 0.1, 5);
  expect(parameters.fast.dataSync()[0]).toBeCloseTo(2 - 5 * 0.1, 5);
});
