import { expect, test } from 'vitest';
import type { Row } from '../../trainer/data.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { hiddenStates, initialParameters, logits, statesBefore, tokenLogprobs } from '../../trainer/model.ts';
import { batchOf, byPrompt, pack, predictionsOf } from '../../trainer/pack.ts';
import { random } from '../../trainer/random.ts';
import { fromHuggingFace, toHuggingFace } from '../../trainer/weights.ts';
import { goldens, goldenWeights } from '../support/golden.ts';

/** One conversation in a call of its own. */
const alone = (ids: number[]) => {
  const shape = { rows: 1, columns: ids.length };
  return batchOf(pack([{ prompt: ids.slice(0, 1), answer: ids.slice(1) }], [[0]], shape, 0)[0]!, shape);
};

test.each(goldens)(
  'logits equal those of transformers within 1e-4: $name',
  ({ config, tensors, ids, logits: rows }) => {
    const parameters = fromHuggingFace(config, goldenWeights(tensors));
    const ours = logits(parameters, hiddenStates(config, parameters, alone(ids))).arraySync() as number[][]; // (T, V)
    const worst = Math.max(
      ...Object.entries(rows).flatMap(([t, row]) => row.map((x, i) => Math.abs(x - ours[Number(t)]![i]!))),
    );
    expect(worst).toBeLessThan(1e-4);
  },
);

test('weights go to Hugging Face’s names and back unchanged', () => {
  for (const { config, tensors } of goldens) {
    const given = goldenWeights(tensors);
    const written = toHuggingFace(config, fromHuggingFace(config, given));
    expect([...written.keys()].sort()).toEqual([...given.keys()].sort());
    for (const [name, { shape, data }] of given) {
      expect(written.get(name)!.shape).toEqual(shape);
      expect(Buffer.from(written.get(name)!.data.buffer).equals(Buffer.from(data.buffer))).toBe(true);
    }
  }
});

const { config } = goldens[1]!;

test('weights that are not finite are never written', () => {
  const { config } = goldens[1]!;
  const parameters = initialParameters(config, random(1));
  parameters.norm = tf.fill([config.hidden_size], Number.NaN) as Tensor;
  expect(() => toHuggingFace(config, parameters)).toThrow(/norm.weight holds values that are not finite/);
});

const parameters = initialParameters(config, random(7));
const row: Row = { prompt: [5, 9, 33], answer: [12, 40, 7, 1] };
/** The log-probabilities of a row's answer, in a call with the others. */
const score = (rows: Row[], shape: { rows: number; columns: number }, temperature = 1, of = 0): number[] => {
  const packs = pack(rows, byPrompt(rows, shape), shape, config.pad_token_id);
  const found = packs.find(({ placed }) => placed.some((p) => p.row === of))!;
  const predictions = predictionsOf(found, 1);
  const states = statesBefore(hiddenStates(config, parameters, batchOf(found, shape)), predictions);
  const { logprobs } = tokenLogprobs(parameters, states, predictions.target, temperature);
  let at = 0;
  for (const { row: index, length } of found.placed) {
    if (index === of) return Array.from(logprobs.dataSync() as Float32Array).slice(at, at + length);
    at += length;
  }
  throw new Error('the row is not in its pack');
};

test('an answer’s log-probabilities do not depend on what lies beside it, nor on whether it shares its prompt', () => {
  const other = { prompt: [4], answer: [9, 22, 8, 6] };
  const twin = { prompt: row.prompt, answer: [30, 31, 32] };
  for (const [rows, shape] of [
    [[row], { rows: 1, columns: 16 }],
    [[row, other], { rows: 1, columns: 16 }],
    [[row, other, { ...other, answer: [1, 2, 3, 4, 5, 6, 7, 8] }], { rows: 1, columns: 28 }],
    [[row, twin, other], { rows: 2, columns: 16 }],
    [[row, { ...twin, answer: [7, 7, 7, 7, 7] }, twin, other], { rows: 1, columns: 24 }],
  ] satisfies [Row[], object][])
    for (const [i, each] of rows.entries()) {
      const tight = score([each], { rows: 1, columns: each.prompt.length + each.answer.length });
      const beside = score(rows, shape, 1, i);
      expect(beside).toHaveLength(each.answer.length);
      beside.forEach((x, t) => {
        expect(x).toBeCloseTo(tight[t]!, 4);
      });
    }
});

test('log-probabilities are of the tokens given what came before, at the temperature', () => {
  const { prompt, answer } = row;
  const all = logits(
    parameters,
    hiddenStates(config, parameters, alone([...prompt, ...answer])),
  ).arraySync() as number[][];
  const shape = { rows: 1, columns: 7 };
  for (const temperature of [1, 0.7]) {
    const expected = answer.map((token, i) => {
      const scaled = all[prompt.length - 1 + i]!.map((x) => x / temperature);
      const most = Math.max(...scaled);
      return scaled[token]! - most - Math.log(scaled.reduce((sum, x) => sum + Math.exp(x - most), 0));
    });
    score([row], shape, temperature).forEach((x, i) => {
      expect(x).toBeCloseTo(expected[i]!, 4);
    });
  }
  expect(score([row], shape, 0.7)[0]).not.toBeCloseTo(score([row], shape)[0]!, 2);
});
