// Stage 3, the reward model: the policy's own weights with a linear head, fitted to people's judgements. An answer's score is
// the mean over its tokens of the head's reading.
//
//   plumb train reward --data judgements.jsonl --base <policy folder> --out <folder>
//
// Choices and rankings: Plackett–Luce over the judged answers. Thumbs: P(up) = σ(s·r + b), s > 0 and b learned, in the same
// batches. Left out: ratings, raters' leniency, ensembles.

import type { ModelConfig } from '../schema/manifest.ts';
import { batchOf, type Row, type Shape } from './data.ts';
import { compile, dispose, mapTree } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { type Judgement, pairsOf } from './judgements.ts';
import { type Report, requireFinite } from './metrics.ts';
import { answerMask, type Head, hiddenStates, type Parameters, readOut } from './model.ts';
import { type AdamState, adamState, adamStep, gradients } from './optimizer.ts';
import { type Random, random } from './random.ts';

export interface RewardConfig {
  learningRate: number;
  epochs: number;
  /** Judgements a batch, at most; a batch ends earlier when its rows or stages are full. */
  judgements: number;
  warmup: number;
  weightDecay: number;
  seed: number;
}
export const REWARD_DEFAULTS: Omit<RewardConfig, 'seed'> = {
  learningRate: 4e-4,
  epochs: 3,
  judgements: 16,
  warmup: 10,
  weightDecay: 0.01,
};

export type RewardModel = {
  parameters: Parameters;
  head: Head;
  /** P(up) = σ(exp(logScale)·r + bias) */
  thumbs: { logScale: Tensor; bias: Tensor };
};

const STAGES = 96;

/** The compiled calls of one policy's reward models, shared by the reward model and the gate's judge. */
export type RewardCalls = ReturnType<typeof rewardCalls>;

export function rewardCalls(model: ModelConfig, shape: Shape, config: Omit<RewardConfig, 'seed'>) {
  /** (B): the mean over each answer's tokens of the head's reading */
  const score = (weights: Parameters, head: Head, tokens: Tensor, start: Tensor, lengths: Tensor): Tensor => {
    const hidden = hiddenStates(model, weights, tokens, start); // (B, T, D)
    const [B, T, D] = hidden.shape as [number, number, number];
    const answers = tf.slice(hidden, [0, T - shape.answer, 0], [B, shape.answer, D]); // (B, A, D)
    const mask = answerMask(lengths, shape.answer); // (B, A)
    const readings = tf.sum(tf.mul(readOut(head, answers), mask), -1); // (B)
    return tf.div(readings, tf.maximum(1, tf.sum(mask, -1))); // (B)
  };

  const step = compile(
    'reward step',
    (
      rm: RewardModel,
      adam: AdamState,
      rate: Tensor, // ()
      rows: { tokens: Tensor; start: Tensor; lengths: Tensor },
      stages: { remaining: Tensor; chosen: Tensor; weight: Tensor }, // (S, B), (S, B), (S)
      thumbs: { sign: Tensor; weight: Tensor }, // (B), (B)
    ) => {
      const { grads, values } = gradients(rm, (m) => {
        const r = score(m.parameters, m.head, rows.tokens, rows.start, rows.lengths); // (B)
        const bias = tf.mul(tf.sub(1, stages.remaining), -1e9); // (S, B)
        const all = tf.logSumExp(tf.add(tf.reshape(r, [1, -1]), bias), -1); // (S)
        const taken = tf.sum(tf.mul(tf.reshape(r, [1, -1]), stages.chosen), -1); // (S)
        const choices = tf.sum(tf.mul(stages.weight, tf.sub(all, taken))); // ()
        const logit = tf.add(tf.mul(tf.exp(m.thumbs.logScale), r), m.thumbs.bias); // (B)
        const ups = tf.sum(tf.mul(thumbs.weight, tf.softplus(tf.neg(tf.mul(thumbs.sign, logit))))); // ()
        const total = tf.add(tf.sum(stages.weight), tf.sum(thumbs.weight)); // ()
        return { loss: tf.div(tf.add(choices, ups), total) };
      });
      const next = adamStep(rm, grads, adam, rate, {
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weightDecay: config.weightDecay,
        clipNorm: 1,
      });
      return { rm: next.parameters, adam: next.state, loss: values.loss, norm: next.norm };
    },
  );
  return { score: compile('reward score', score), step, shape, config };
}

/**
 * Fits a reward model, starting from `base` (not disposed).
 * @param normaliseOn answers of the policy on which the scores are brought to mean 0 and variance 1, before and after
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
): Promise<RewardModel> {
  const { shape, config } = calls;
  const rng = random(seed, stage);
  const D = model.hidden_size;
  const first = Float32Array.from({ length: D }, () => rng.normal() / Math.sqrt(D + 1));
  let rm: RewardModel = tf.tidy(() => ({
    parameters: mapTree(base, tf.clone) as Parameters,
    head: { weight: tf.tensor1d(first), bias: tf.scalar(0) },
    thumbs: { logScale: tf.scalar(0), bias: tf.scalar(0) },
  })) as never;
  rm = normalised(rm, scores(calls, rm, normaliseOn, model.pad_token_id));

  let adam = adamState(rm);
  const perEpoch = packed(judgements, shape.batch, config.judgements, rng).length;
  const steps = perEpoch * config.epochs;
  let step = 0;
  for (let epoch = 0; epoch < config.epochs; epoch++) {
    for (const group of packed(judgements, shape.batch, config.judgements, rng)) {
      step++;
      const progress = Math.min(1, (step - 1) / steps);
      const rate = tf.scalar(config.learningRate * Math.min(1, step / config.warmup) * Math.max(0.1, 1 - progress));
      const { rows, stages, thumbs } = evidence(group, shape, model.pad_token_id);
      const result = calls.step(rm, adam, rate, rows, stages, thumbs);
      const metrics = {
        [`${stage}/loss`]: result.loss.dataSync()[0]!,
        [`${stage}/grad_norm`]: result.norm.dataSync()[0]!,
      };
      dispose(rm, adam, rate, rows, stages, thumbs, result.loss, result.norm);
      rm = result.rm;
      adam = result.adam;
      requireFinite(stage, step, metrics);
      await report({ stage, step, steps: Math.max(step, steps), metrics });
      await new Promise(setImmediate);
    }
  }
  dispose(adam);
  return normalised(rm, scores(calls, rm, normaliseOn, model.pad_token_id));
}

/** Scores of answers, in order. */
export function scores(calls: RewardCalls, rm: RewardModel, rows: Row[], pad: number): number[] {
  const out: number[] = [];
  for (let i = 0; i < rows.length; i += calls.shape.batch) {
    const part = rows.slice(i, i + calls.shape.batch);
    const batch = batchOf(part, calls.shape, pad);
    const result = calls.score(rm.parameters, rm.head, batch.tokens, batch.start, batch.lengths);
    out.push(...(result.dataSync() as Float32Array).subarray(0, part.length));
    dispose(batch, result);
  }
  return out;
}

/** How often the better answer of a judged pair scores higher, with the number of pairs. */
export function accuracy(
  calls: RewardCalls,
  rm: RewardModel,
  judgements: Judgement[],
  pad: number,
): { right: number[]; pairs: number } {
  const all = scores(
    calls,
    rm,
    judgements.flatMap((judgement) => judgement.rows),
    pad,
  );
  let at = 0;
  const right = judgements.flatMap((judgement) => {
    const own = all.slice(at, at + judgement.rows.length);
    at += judgement.rows.length;
    const pairs = pairsOf(judgement);
    if (pairs.length === 0) return [];
    return [
      pairs.reduce(
        (sum, [better, worse]) => sum + (own[better]! > own[worse]! ? 1 : own[better]! === own[worse]! ? 0.5 : 0),
        0,
      ) / pairs.length,
    ];
  });
  return { right, pairs: right.length };
}

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

/** Judgements in random order, in groups that fit a batch. */
function packed(judgements: Judgement[], rows: number, most: number, rng: Random): Judgement[][] {
  const groups: Judgement[][] = [];
  let group: Judgement[] = [];
  let rowsUsed = 0;
  let stagesUsed = 0;
  for (const judgement of rng.shuffle([...judgements])) {
    const full =
      group.length === most || rowsUsed + judgement.rows.length > rows || stagesUsed + judgement.stages.length > STAGES;
    if (full) {
      groups.push(group);
      group = [];
      rowsUsed = 0;
      stagesUsed = 0;
    }
    group.push(judgement);
    rowsUsed += judgement.rows.length;
    stagesUsed += judgement.stages.length;
  }
  if (group.length > 0) groups.push(group);
  return groups;
}

/** A group of judgements as tensors: rows (B), stages (S, B), thumbs (B); what is not there has weight 0. */
export function evidence(group: Judgement[], shape: Shape, pad: number) {
  const B = shape.batch;
  const remaining = new Float32Array(STAGES * B);
  const chosen = new Float32Array(STAGES * B);
  const stageWeight = new Float32Array(STAGES);
  const sign = new Float32Array(B).fill(1);
  const thumbWeight = new Float32Array(B);
  let row = 0;
  let stage = 0;
  for (const judgement of group) {
    for (const part of judgement.stages) {
      for (const index of part.remaining) remaining[stage * B + row + index] = 1;
      chosen[stage * B + row + part.chosen] = 1;
      stageWeight[stage++] = part.weight;
    }
    for (const thumb of judgement.thumbs) {
      sign[row + thumb.row] = thumb.up ? 1 : -1;
      thumbWeight[row + thumb.row] = thumb.weight;
    }
    row += judgement.rows.length;
  }
  // Empty stages have every row remaining, so that their (unweighted) loss is finite.
  for (; stage < STAGES; stage++) remaining.fill(1, stage * B, (stage + 1) * B);
  return {
    rows: batchOf(
      group.flatMap((judgement) => judgement.rows),
      shape,
      pad,
    ),
    stages: {
      remaining: tf.tensor2d(remaining, [STAGES, B]),
      chosen: tf.tensor2d(chosen, [STAGES, B]),
      weight: tf.tensor1d(stageWeight),
    },
    thumbs: { sign: tf.tensor1d(sign), weight: tf.tensor1d(thumbWeight) },
  };
}
