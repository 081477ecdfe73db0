import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ModelConfig } from '../../schema/manifest.ts';
import { batchOf } from '../../trainer/data.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { answerLogprobs, answerMask, hiddenStates, initialParameters, logits } from '../../trainer/model.ts';
import { random } from '../../trainer/random.ts';
import { fromHuggingFace, toHuggingFace } from '../../trainer/weights.ts';
import { goldenWeights } from '../support/golden.ts';

interface Golden {
  name: string;
  config: ModelConfig;
  tensors: Record<string, { shape: number[]; seed: number }>;
  ids: number[];
  logits: Record<string, number[]>;
}
const goldens: Golden[] = JSON.parse(readFileSync(join(import.meta.dirname, '../golden/llama.json'), 'utf8'));

test.each(goldens)(
  'logits equal those of transformers’ Llama within 1e-4: $name',
  ({ config, tensors, ids, logits: rows }) => {
    const parameters = fromHuggingFace(config, goldenWeights(tensors));
    const tokens = tf.tensor2d(ids, [1, ids.length], 'int32');
    const hidden = hiddenStates(config, parameters, tokens, tf.zeros([1], 'int32')); // (1, T, D)
    const ours = logits(parameters, tf.reshape(hidden, [ids.length, config.hidden_size])).arraySync() as number[][]; // (T, V)
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
const row = { prompt: [5, 9, 33], answer: [12, 40, 7, 1] };
const score = (prompt: number, answer: number, temperature = 1) => {
  const { tokens, start } = batchOf(
    [row, { prompt: [4], answer: [9] }],
    { batch: 2, prompt, answer },
    config.pad_token_id,
  );
  return Array.from(
    answerLogprobs(
      parameters,
      hiddenStates(config, parameters, tokens, start),
      tokens,
      answer,
      temperature,
    ).logprobs.dataSync(),
  ).slice(0, 4);
};

test('positions skip padding: an answer’s log-probabilities do not depend on how much of it there is', () => {
  const tight = score(3, 4);
  for (const padded of [score(9, 4), score(3, 11), score(14, 8)]) {
    padded.forEach((x, i) => {
      expect(x).toBeCloseTo(tight[i]!, 4);
    });
  }
});

test('log-probabilities are of the tokens given what came before, at the temperature', () => {
  const { prompt, answer } = row;
  const tokens = tf.tensor2d([[...prompt, ...answer]], [1, 7], 'int32');
  const all = logits(
    parameters,
    tf.reshape(hiddenStates(config, parameters, tokens, tf.zeros([1], 'int32')), [7, config.hidden_size]),
  ).arraySync() as number[][];
  for (const temperature of [1, 0.7]) {
    const expected = answer.map((token, i) => {
      const scaled = all[prompt.length - 1 + i]!.map((x) => x / temperature);
      const most = Math.max(...scaled);
      return scaled[token]! - most - Math.log(scaled.reduce((sum, x) => sum + Math.exp(x - most), 0));
    });
    score(3, 4, temperature).forEach((x, i) => {
      expect(x).toBeCloseTo(expected[i]!, 4);
    });
  }
  expect(score(3, 4, 0.7)[0]).not.toBeCloseTo(score(3, 4, 1)[0]!, 2);
});

test('the mask covers an answer’s tokens, its end among them', () => {
  expect(answerMask(tf.tensor1d([0, 2, 3], 'int32'), 3).arraySync()).toEqual([
    [0, 0, 0],
    [1, 1, 0],
    [1, 1, 1],
  ]);
});
