import { afterAll, expect, test } from 'vitest';
import { packEdge } from '../../schema/edge.ts';
import { GATE_DEFAULTS, PPO_DEFAULTS, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import type { Row } from '../../trainer/data.ts';
import { mapTree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { evaluate, repeatsItself } from '../../trainer/evaluate.ts';
import { type Judgement, stagesOf } from '../../trainer/judgements.ts';
import { policyCalls } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { rewardCalls, type Scorer, scores } from '../../trainer/reward.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { toHuggingFace } from '../../trainer/weights.ts';
import { judged } from '../support/judged.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const MAX_TOKENS = 8;
const root = tinyParameters();
const sampler = startSampler(TINY);
afterAll(() => sampler.close());
const calls = { policy: policyCalls(TINY, SHAPE, PPO_DEFAULTS), reward: rewardCalls(TINY, SHAPE, REWARD_DEFAULTS) };
const rng = random(9);
const prompts = Array.from({ length: 100 }, () => [rng.int(2, 32), rng.int(2, 32)]);
const row = (): Row => ({ prompt: [rng.int(2, 32)], answer: [rng.int(2, 32), rng.int(2, 32), 1] });
const judge = {
  parameters: mapTree(root, tf.clone),
  head: { weight: tf.randomNormal([TINY.hidden_size], 0, 1, 'float32', 3) as Tensor, bias: tf.scalar(0) as Tensor },
} satisfies Scorer;

/** Judgements that agree with the judge so often. */
async function judgements(agreement: number): Promise<Judgement[]> {
  const rows = Array.from({ length: 200 }, row);
  const scored = await scores(calls.reward, judge, rows, TINY.pad_token_id);
  return Array.from({ length: 100 }, (_, i) => {
    const better = scored[2 * i]! > scored[2 * i + 1]! === i < 100 * agreement ? 0 : 1;
    const stages = stagesOf([[better], [1 - better]]);
    return judged(rows.slice(2 * i, 2 * i + 2), { root: `${i}`, stages });
  });
}
const gate = async (candidate: typeof root, agreement: number, parent = root, config = {}, shown = sampler) =>
  evaluate(TINY, calls, { root, parent, candidate }, judge, await judgements(agreement), prompts, shown, MAX_TOKENS, {
    ...GATE_DEFAULTS,
    ...config,
    seed: 1,
  });
/** What is asked of an image. */
type Drawing = Parameters<typeof sampler.sampleImage> extends [unknown, ...infer Asked] ? Asked : never;
const passed = (report: Awaited<ReturnType<typeof gate>>) =>
  Object.fromEntries(report.reasons.map((reason) => [reason.check, reason.passed]));

test('the parent against itself is an even match and is rejected for its win rate alone', async () => {
  const report = await gate(root, 0.9);
  expect(report.verdict).toBe('reject');
  expect(report.metrics['gate/win_rate']).toBe(0.5);
  expect(passed(report)).toEqual({
    judge: true,
    'win rate': false,
    length: true,
    repetition: true,
    image: true,
    'KL to parent': true,
    'KL to root': true,
  });
});

test('an answer repeats itself where four tokens in a row come again', () => {
  const repeats = (answer: number[]) => repeatsItself({ prompt: [], answer });
  expect(repeats([5, 6, 7, 8, 9, 5, 6, 7, 8])).toBe(1);
  expect(repeats([5, 6, 7, 8, 9, 5, 6, 7])).toBe(0);
  expect(repeats([5, 6, 7, 9, 5, 6, 7, 8])).toBe(0);
  expect(repeats([5, 5, 5, 5])).toBe(0);
  expect(repeats([5, 5, 5, 5, 5])).toBe(1);
  expect(repeats([])).toBe(0);
});

test('a judge that is right as often as not is not enough evidence, whatever else holds', async () => {
  const report = await gate(root, 0.5);
  expect(passed(report).judge).toBe(false);
  expect(report.reasons[0]!.words).toMatch(/not enough evidence/);
});

test('a policy that has run off is refused by its KL, and one that repeats itself by that', async () => {
  // Its embedding scaled up, it says the same few tokens over and over, to the limit.
  const stuck = { ...root, embedding: tf.mul(root.embedding, 40) as Tensor };
  const report = await gate(stuck, 0.9);
  expect(report.verdict).toBe('reject');
  expect(passed(report)).toMatchObject({ 'KL to parent': false, 'KL to root': false });
  expect(passed(report).repetition).toBe(false);
});

test('a candidate whose image says what its parent says is refused for it: packing lost the training', async () => {
  const candidate = { ...root, embedding: tf.mul(root.embedding, 3) as Tensor };
  const parentImage = packEdge(TINY, toHuggingFace(TINY, root));
  const shown = {
    ...sampler,
    sampleImage: (_: unknown, ...asked: Drawing) => sampler.sampleImage(parentImage, ...asked),
  };
  const lost = await gate(candidate, 0.9, root, {}, shown);
  expect(passed(lost).image).toBe(false);
  expect(lost.metrics['gate/kl_image']).toBeGreaterThan(1);
  const kept = await gate(candidate, 0.9);
  expect(passed(kept).image).toBe(true);
  expect(Math.abs(kept.metrics['gate/kl_image']!)).toBeLessThan(0.05);
});

test('what packing loses of the parent too is not held against the candidate', async () => {
  // Both images are those of another policy: neither says what was trained.
  const otherImage = packEdge(TINY, toHuggingFace(TINY, { ...root, embedding: tf.mul(root.embedding, 3) as Tensor }));
  const shown = {
    ...sampler,
    sampleImage: (_: unknown, ...asked: Drawing) => sampler.sampleImage(otherImage, ...asked),
  };
  const { metrics, ...report } = await gate(root, 0.9, root, {}, shown);
  expect(metrics['gate/kl_image']).toBeGreaterThan(1);
  expect(metrics['gate/kl_image']).toBe(metrics['gate/kl_image_parent']);
  expect(report.reasons.find(({ check }) => check === 'image')!.passed).toBe(true);
});

test('KL to the parent and to the root are each its own', async () => {
  const other = tinyParameters(2);
  const { metrics } = await gate(other, 0.9, other);
  expect(metrics['gate/kl_parent']).toBe(0);
  expect(metrics['gate/kl_root']).toBeGreaterThan(0);
  const back = await gate(root, 0.9, other);
  expect(back.metrics['gate/kl_root']).toBe(0);
  expect(back.metrics['gate/kl_parent']).toBeGreaterThan(0);
});

test('answers that are longer or shorter than the limit allows are refused for that alone', async () => {
  for (const lengthRatio of [0.9, 1]) expect(passed(await gate(root, 0.9, root, { lengthRatio })).length).toBe(false);
  expect(passed(await gate(root, 0.9, root, { lengthRatio: 1.1 })).length).toBe(true);
});

test('a candidate much longer than its parent is refused, and one as much shorter', async () => {
  // EOS, whose row the output shares, stands out more: answers end sooner
  const other = {
    ...tinyParameters(),
    embedding: tf.tidy(() =>
      tf.mul(root.embedding, tf.tensor2d(Array.from({ length: TINY.vocab_size }, (_, id) => [id === 1 ? 8 : 1]))),
    ) as Tensor,
  };
  const ratio = (await gate(other, 0.9)).metrics['gate/length_ratio']!;
  expect(Math.abs(ratio - 1)).toBeGreaterThan(0.05);
  const lengthRatio = 1 + (Math.max(ratio, 1 / ratio) - 1) / 2;
  expect(passed(await gate(other, 0.9, root, { lengthRatio })).length).toBe(false);
  expect(passed(await gate(root, 0.9, other, { lengthRatio })).length).toBe(false);
});

test('a judge right more often than not, but not surely so, is not enough evidence', async () => {
  const report = await gate(root, 0.54);
  expect(report.metrics['gate/judge_accuracy']).toBe(0.54);
  expect(report.metrics['gate/judge_accuracy_low']).toBeLessThanOrEqual(0.5);
  expect(passed(report).judge).toBe(false);
  expect(report.reasons[0]!.words).toMatch(/not enough evidence/);
});

/** A gate between two who give one of two answers to each prompt: the candidate the better one where `wins` says so, else the worse. */
async function contest(asked: number[][], wins: (prompt: number, at: number) => boolean, comparisons: number) {
  const texts = [
    [5, 6, 1],
    [9, 3, 1],
  ];
  const rows = asked.flatMap((prompt) => texts.map((answer) => ({ prompt, answer })));
  const scored = await scores(calls.reward, judge, rows, TINY.pad_token_id);
  let drawing = 0; // the parent is asked first
  const sampleImage: typeof sampler.sampleImage = async (_, prompts) => {
    const candidate = drawing++ === 1;
    return prompts.map((prompt, i) => {
      const p = asked.indexOf(prompt);
      const better = scored[2 * p]! > scored[2 * p + 1]! ? 0 : 1;
      return { ids: texts[candidate === wins(p, i) ? better : 1 - better]!, logprobs: [-3, -3, -3] };
    });
  };
  const all = { root, parent: root, candidate: root };
  const config = { ...GATE_DEFAULTS, comparisons, seed: 1 };
  const shown = { ...sampler, sampleImage };
  return evaluate(TINY, calls, all, judge, await judgements(0.9), asked, shown, MAX_TOKENS, config);
}

test('a candidate that wins more often than not, but not surely so, is refused for that alone', async () => {
  const report = await contest(prompts, (_, at) => at < 55, 100); // the better answer to 55 prompts of a hundred
  expect(report.metrics['gate/win_rate']).toBeCloseTo(0.55, 10);
  expect(report.metrics['gate/win_rate_low']).toBeLessThanOrEqual(0.5);
  expect(report.verdict).toBe('reject');
  expect(report.reasons.filter((reason) => !reason.passed).map((reason) => reason.check)).toEqual(['win rate']);
});

test('a candidate at its parent, but past the limit from the root, is refused for that', async () => {
  const other = tinyParameters(2);
  const klToRoot = (await gate(other, 0.9, other)).metrics['gate/kl_root']! / 2;
  const report = await gate(other, 0.9, other, { klToRoot });
  expect(report.verdict).toBe('reject');
  expect(passed(report)).toMatchObject({ 'KL to parent': true, 'KL to root': false });
});

test('what must be above one half is the 5 % quantile of the bootstrap', async () => {
  const { metrics } = await gate(root, 0.6);
  expect(metrics['gate/judge_accuracy']).toBe(0.6);
  // 1.645 standard errors of a share of .6 over a hundred
  expect(metrics['gate/judge_accuracy_low']).toBeGreaterThan(0.5);
  expect(metrics['gate/judge_accuracy_low']).toBeLessThan(0.54);
});

test('several answers to one prompt are one piece of evidence: the win rate is resampled by prompt', async () => {
  // all the better answers to one prompt and none to the other
  const { metrics } = await contest(prompts.slice(0, 2), (prompt) => prompt === 1, 40);
  expect(metrics['gate/win_rate']).toBe(0.5);
  expect(metrics['gate/win_rate_low']).toBe(0); // a quarter of the resamples hold the lost prompt alone
});

test('the same inputs give the same report', async () => {
  expect(await gate(root, 0.7)).toEqual(await gate(root, 0.7));
});
