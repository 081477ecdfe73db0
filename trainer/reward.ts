// Stage 3, the reward model: the policy's own weights with a linear head, fitted to people's judgements. An answer's score is
// the mean over its tokens of the head's reading, drawn towards 0 where they are few, and a bias.
//
//   plumb train reward --data judgements.jsonl --base <policy folder> --out <folder>
//
// Choices and rankings: Plackett–Luce over the judged answers. Thumbs: P(up) = σ(s·r + b), s > 0 and b learned, in the same
// batches. Left out: ratings, raters' leniency, ensembles.

import type { ModelConfig } from '../schema/manifest.ts';
import type { RewardConfig } from '../schema/run-config.ts';
import type { Row } from './data.ts';
import { compile, dispose, mapTree } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { type Judgement, pairsOf } from './judgements.ts';
import { type Report, requireFinite } from './metrics.ts';
import { type Head, hiddenStates, type Parameters, precisionFor, trunkOf } from './model.ts';
import { type AdamState, adamState, trainer } from './optimizer.ts';
import { ANSWERS, type Batch, batchOf, byPrompt, type Pack, pack, type Shape } from './pack.ts';
import { type Random, random } from './random.ts';

export type RewardModel = {
  parameters: Parameters;
  head: Head;
  /** P(up) = σ(exp(logScale)·r + bias) */
  thumbs: { logScale: Tensor; bias: Tensor };
};

/** What a step of fitting leaves behind, enough to go on from. */
export type FitState = { rm: RewardModel; adam: AdamState; step: number };

/**
 * Tokens with a reading of 0 that every mean has beside the answer's own. A plain mean varies more over short answers, and what varies
 * more is easier to raise: the policy would learn to say little.
 */
const PRIOR_TOKENS = 20;

/** Stages of choices that a call can hold; a ranking of eight with every kind of tie has 56 at most. */
const STAGES = 96;

/** The compiled calls of one policy's reward models, shared by the reward model and the gate's judge. */
export type RewardCalls = ReturnType<typeof rewardCalls>;

export function rewardCalls(model: ModelConfig, shape: Shape, config: Omit<RewardConfig, 'seed'>) {
  /** (S): each answer's score; what has no answer scores 0 */
  const score = (weights: Parameters, head: Head, batch: Batch, members: Tensor): Tensor => {
    const hidden = hiddenStates(model, weights, batch); // (R W, D)
    const readings = tf.matMul(hidden, tf.reshape(head.weight, [-1, 1])); // (R W, D) · (D, 1) → (R W, 1)
    return tf.add(tf.reshape(tf.matMul(members, readings), [ANSWERS]), head.bias); // (S, R W) · (R W, 1) → (S)
  };
  const likelihood = (rm: RewardModel, { batch, members, stages, thumbs }: Evidence) => {
    const r = score(rm.parameters, rm.head, batch, members); // (S)
    const bias = tf.mul(tf.sub(1, stages.remaining), -1e9); // (stages, S)
    const all = tf.logSumExp(tf.add(tf.reshape(r, [1, -1]), bias), -1); // (stages)
    const taken = tf.sum(tf.mul(tf.reshape(r, [1, -1]), stages.chosen), -1); // (stages)
    const choices = tf.sum(tf.mul(stages.weight, tf.sub(all, taken))); // ()
    const logit = tf.add(tf.mul(tf.exp(rm.thumbs.logScale), r), rm.thumbs.bias); // (S)
    const ups = tf.sum(tf.mul(thumbs.weight, tf.softplus(tf.neg(tf.mul(thumbs.sign, logit))))); // ()
    return { loss: tf.add(choices, ups) };
  };
  const precision = precisionFor(model);
  const adam = { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: config.weightDecay, clipNorm: 1 };
  const step = trainer('reward', likelihood, adam, precision);
  return { score: compile('reward score', score, { precision }), step, shape, config };
}

/** A head's weights before training, N(0, 1/√(D+1)) as lm-human-preferences has it. */
export const freshHead = (D: number, rng: Random): Float32Array =>
  Float32Array.from({ length: D }, () => rng.normal() / Math.sqrt(D + 1));

/**
 * Fits a reward model, starting from `base` (not disposed).
 * @param normaliseOn answers of the policy on which the scores are brought to mean 0 and variance 1, before and after
 * @param from goes on after a saved step
 * @param save is called after every step with all that is needed to go on
 */
export async function fitReward(
  model: ModelConfig,
  calls: RewardCalls,
  base: Parameters,
  judgements: Judgement[],
  normaliseOn: Row[],
  seed: number,
  stage: string,
  report: Report,
  from: FitState | null = null,
  save: (state: FitState) => void | Promise<void> = () => {},
): Promise<RewardModel> {
  const { shape, config } = calls;
  const rng = random(seed, stage);
  const head = freshHead(model.hidden_size, rng);
  let rm: RewardModel;
  if (from) rm = from.rm;
  else {
    rm = tf.tidy(() => ({
      parameters: mapTree(trunkOf(base), tf.clone),
      head: { weight: tf.tensor1d(head), bias: tf.scalar(0) },
      thumbs: { logScale: tf.scalar(0), bias: tf.scalar(0) },
    })) as never;
    rm = normalised(rm, await scores(calls, rm, normaliseOn, model.pad_token_id));
  }

  let order: Judgement[] = [];
  let adam = from?.adam ?? adamState(rm);
  const perEpoch = Math.ceil(judgements.length / config.judgements);
  const steps = perEpoch * config.epochs;
  for (let step = 1; step <= steps; step++) {
    const at = ((step - 1) % perEpoch) * config.judgements;
    if (at === 0) order = rng.shuffle([...judgements]);
    if (from && step <= from.step) continue; // the orders come as they came
    const rate = Math.min(1, step / config.warmup) * Math.max(0.1, 1 - (step - 1) / steps);
    const parts = evidence(order.slice(at, at + config.judgements), shape, model.pad_token_id);
    const result = calls.step(rm, adam, config.learningRate * rate, parts);
    ({ parameters: rm, adam } = result);
    const metrics = { [`${stage}/loss`]: result.values.loss, [`${stage}/grad_norm`]: result.norm };
    requireFinite(stage, step, metrics);
    await report({ stage, step, steps, metrics });
    await save({ rm, adam, step });
    await new Promise(setImmediate);
  }
  dispose(adam);
  return normalised(rm, await scores(calls, rm, normaliseOn, model.pad_token_id));
}

/** Scores of answers, in order. Signal handlers and heartbeats get their turn between calls. */
export async function scores(
  { shape, score }: RewardCalls,
  rm: RewardModel,
  rows: Row[],
  pad: number,
): Promise<number[]> {
  const out = new Array<number>(rows.length);
  for (const part of pack(rows, byPrompt(rows, shape), shape, pad)) {
    const batch = batchOf(part, shape);
    const members = membersOf(part);
    const result = score(rm.parameters, rm.head, batch, members);
    const values = result.dataSync() as Float32Array;
    part.placed.forEach(({ row }, i) => {
      out[row] = values[i]!;
    });
    dispose(batch, members, result);
    await new Promise(setImmediate);
  }
  return out;
}

/** Of so many comparisons, so many right (a tie is half). */
export interface Tally {
  right: number;
  of: number;
}

/** For each conversation that was compared, in how many of its judged pairs the better answer scores higher. */
export async function accuracy(
  calls: RewardCalls,
  rm: RewardModel,
  judgements: Judgement[],
  pad: number,
): Promise<Tally[]> {
  const all = await scores(
    calls,
    rm,
    judgements.flatMap((judgement) => judgement.rows),
    pad,
  );
  const tallies = new Map<string, Tally>();
  let at = 0;
  for (const judgement of judgements) {
    const own = all.slice(at, at + judgement.rows.length);
    at += judgement.rows.length;
    const pairs = pairsOf(judgement);
    if (pairs.length === 0) continue;
    const tally = tallies.get(judgement.root) ?? { right: 0, of: 0 };
    for (const [better, worse] of pairs) tally.right += wins(own[better]!, own[worse]!);
    tally.of += pairs.length;
    tallies.set(judgement.root, tally);
  }
  return [...tallies.values()];
}

/** 1 where the first score is higher, ½ where they are equal. */
export const wins = (a: number, b: number): number => (a > b ? 1 : a === b ? 0.5 : 0);

/** The share of all comparisons that are right. */
export const rightShare = (tallies: Tally[]): number =>
  tallies.reduce((sum, { right }) => sum + right, 0) / tallies.reduce((sum, { of }) => sum + of, 0);

/** The same ranking of answers with mean 0 and variance 1 on the given scores: gain and bias go into the head. */
function normalised(rm: RewardModel, on: number[]): RewardModel {
  const mean = on.reduce((a, b) => a + b, 0) / on.length;
  const deviation = Math.sqrt(on.reduce((sum, x) => sum + (x - mean) ** 2, 0) / on.length);
  const gain = deviation > 1e-8 ? 1 / deviation : 1;
  const head = { weight: tf.mul(rm.head.weight, gain), bias: tf.mul(tf.sub(rm.head.bias, mean), gain) };
  // P(up) stays what it was: the thumbs' scale and bias take the change back.
  const thumbs = {
    logScale: tf.sub(rm.thumbs.logScale, Math.log(gain)),
    bias: tf.tidy(() => tf.add(rm.thumbs.bias, tf.mul(tf.exp(rm.thumbs.logScale), mean))),
  };
  dispose(rm.head, rm.thumbs);
  return { parameters: rm.parameters, head, thumbs };
}

/** What one call of a step learns from; what is not there has weight 0. */
type Evidence = {
  batch: Batch;
  members: Tensor; // (S, R W)
  stages: { remaining: Tensor; chosen: Tensor; weight: Tensor }; // (stages, S), (stages, S), (stages)
  thumbs: { sign: Tensor; weight: Tensor }; // (S), (S)
};

/** For each answer, 1 / (its length + the prior's) at each of its tokens: a product with the readings is their mean. (S, R W) */
function membersOf({ tokens, placed }: Pack): Tensor {
  const members = new Float32Array(ANSWERS * tokens.length);
  placed.forEach(({ first, length }, i) => {
    members.fill(1 / (length + PRIOR_TOKENS), i * tokens.length + first, i * tokens.length + first + length);
  });
  return tf.tensor2d(members, [ANSWERS, tokens.length]);
}

/** A step's judgements in as many calls as they need; each judgement's answers are in one call. The weights sum to 1 over all. */
export function evidence(judgements: Judgement[], shape: Shape, pad: number): Evidence[] {
  const total = judgements
    .flatMap(({ stages, thumbs }): { weight: number }[] => [...stages, ...thumbs])
    .reduce((sum, { weight }) => sum + weight, 0);
  let count = 0;
  const bundles = judgements.map(({ rows }) => rows.map(() => count++));
  const packs = pack(
    judgements.flatMap(({ rows }) => rows),
    bundles,
    shape,
    pad,
    (index) => judgements[index]!.stages.length,
    STAGES,
  );
  return packs.map((part) => {
    const remaining = new Float32Array(STAGES * ANSWERS);
    const chosen = new Float32Array(STAGES * ANSWERS);
    const stageWeight = new Float32Array(STAGES);
    const sign = new Float32Array(ANSWERS).fill(1);
    const thumbWeight = new Float32Array(ANSWERS);
    let slot = 0;
    let stage = 0;
    for (const index of part.bundles) {
      const { rows, stages, thumbs } = judgements[index]!;
      for (const choice of stages) {
        for (const row of choice.remaining) remaining[stage * ANSWERS + slot + row] = 1;
        chosen[stage * ANSWERS + slot + choice.chosen] = 1;
        stageWeight[stage++] = choice.weight / total;
      }
      for (const thumb of thumbs) {
        sign[slot + thumb.row] = thumb.up ? 1 : -1;
        thumbWeight[slot + thumb.row] = thumb.weight / total;
      }
      slot += rows.length;
    }
    // Empty stages have every answer remaining, so that their (unweighted) loss is finite.
    remaining.fill(1, stage * ANSWERS);
    return {
      batch: batchOf(part, shape),
      members: membersOf(part),
      stages: {
        remaining: tf.tensor2d(remaining, [STAGES, ANSWERS]),
        chosen: tf.tensor2d(chosen, [STAGES, ANSWERS]),
        weight: tf.tensor1d(stageWeight),
      },
      thumbs: { sign: tf.tensor1d(sign), weight: tf.tensor1d(thumbWeight) },
    };
  });
}
