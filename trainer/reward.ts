// Stage 3, the reward model: the policy's own weights with a linear head, fitted to people's judgements. An answer's score is
// the mean over its tokens of the head's reading, drawn towards 0 where they are few, and a bias.
//
//   plumb train reward --data judgements.jsonl --base <policy folder> --out <folder>
//
// All that people say is evidence on the one score, each kind by its own likelihood (likelihood.ts): choices, rankings and ties, thumbs,
// ratings by aspect, outcomes; all of it in the same batches. An aspect's score is the score and what a head of its own adds to it.

import type { ModelConfig } from '../schema/manifest.ts';
import type { LoraConfig, RewardConfig } from '../schema/run-config.ts';
import type { Row } from './data.ts';
import { compile, dispose, mapTree, type Tree } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { type Judgement, pairsOf, type Subjects, subjectsOf, weighed, weightOf, within } from './judgements.ts';
import {
  ASPECTS,
  freshLikelihood,
  ITEMS,
  klOfRaters,
  type Likelihood,
  logChoice,
  logOutcome,
  logRating,
  logThumb,
  type Outcomes,
  type Ratings,
  rescaled,
  type Stages,
  type Thumbs,
} from './likelihood.ts';
import { freshLora, type Lora, merged, type Trained, weightsOf } from './lora.ts';
import { type Report, requireFinite } from './metrics.ts';
import { type Head, hiddenStates, type Parameters, precisionFor, trunkOf } from './model.ts';
import { type AdamState, adamState, trainer } from './optimizer.ts';
import { ANSWERS, type Batch, batchOf, byPrompt, type Pack, pack, type Shape } from './pack.ts';
import { type Random, random } from './random.ts';
import { mean, variance } from './rl.ts';

export type RewardModel = {
  parameters: Parameters;
  /** Of the score; of a fitted model, of what PPO and the judge go by (`mixed`). */
  head: Head;
  /** What sets each aspect's score apart from the score, in the order of `Subjects`. */
  aspects: Tensor; // (A, D)
  likelihood: Likelihood;
};

/** What scores an answer: all that PPO and the gate need of a reward model. */
export type Scorer = Pick<RewardModel, 'parameters' | 'head'>;

/** A reward model under way: with LoRA it has adapters in place of weights. */
type Fitting = Omit<RewardModel, 'parameters'> & { parameters: Trained };

/** What a step of fitting leaves behind, enough to go on from. */
export type FitState = { rm: Fitting; adam: AdamState; step: number };

/**
 * Tokens with a reading of 0 that every mean has beside the answer's own. A plain mean varies more over short answers, and what varies
 * more is easier to raise: the policy would learn to say little.
 */
export const PRIOR_TOKENS = 20;

/** Stages of choices that a call can hold: a judgement has no more than answers. */
const STAGES = ANSWERS;

/**
 * Ties, cuts, biases, deviations and leniencies learn so many times as fast as weights. Each is a number by itself, and Adam moves a
 * number by about the rate in a step: at that of weights a fit of fifty steps would leave them where they began. Scales do not: a kind
 * of evidence that the score cannot tell anything about yet would lose its scale, and with it its voice, before the score has learnt.
 */
const QUICK = 50;

/** So many raters have a place at least: few fits have more, and the calls of those with fewer are compiled once. */
const LEAST_RATERS = 1024;

/** The compiled calls of one policy's reward models, shared by the reward model and the gate's judge. */
export type RewardCalls = ReturnType<typeof rewardCalls>;

export function rewardCalls(
  model: ModelConfig,
  shape: Shape,
  config: Omit<RewardConfig, 'seed'>,
  lora: LoraConfig | null = null,
) {
  const precision = precisionFor(model);
  /** Each answer's states, weighed as its score weighs its readings. (S, D) */
  const states = compile(
    'answers’ states',
    (weights: Parameters, batch: Batch, members: Tensor): Tensor =>
      tf.matMul(members, hiddenStates(model, weights, batch)), // (S, R W) · (R W, D) → (S, D)
    { precision },
  );
  /** (S): each answer's score; what has no answer scores 0 */
  const score = (weights: Parameters, head: Head, batch: Batch, members: Tensor): Tensor => {
    const hidden = hiddenStates(model, weights, batch); // (R W, D)
    const readings = tf.matMul(hidden, tf.reshape(head.weight, [-1, 1])); // (R W, D) · (D, 1) → (R W, 1)
    return tf.add(tf.reshape(tf.matMul(members, readings), [ANSWERS]), head.bias); // (S, R W) · (R W, 1) → (S)
  };
  const loss = (rm: Fitting, said: Evidence, frozen: Parameters[]) => {
    const { batch, members, ratings } = said;
    const hidden = hiddenStates(model, weightsOf(rm.parameters, frozen), batch); // (R W, D)
    const heads = tf.concat([tf.reshape(rm.head.weight, [1, -1]), rm.aspects]); // (1 + A, D)
    const readings = tf.matMul(hidden, tf.transpose(heads)); // (R W, D) · (D, 1 + A) → (R W, 1 + A)
    const means = tf.matMul(members, readings); // (S, R W) · (R W, 1 + A) → (S, 1 + A)
    const [own, apart] = tf.split(means, [1, ASPECTS], 1) as [Tensor, Tensor]; // (S, 1), (S, A)
    const r = tf.add(tf.reshape(own, [ANSWERS]), rm.head.bias); // (S)
    const rated = tf.equal(tf.reshape(ratings.aspect, [-1, 1]), tf.reshape(tf.range(0, ASPECTS, 1, 'int32'), [1, -1])); // (S, A)
    const q = tf.add(r, tf.sum(tf.where(rated, apart, tf.zerosLike(apart)), -1)); // (S)

    return { loss: unlikelihood(rm.likelihood, said, r, q) };
  };
  const quick = {
    of: ({ likelihood: { choices, thumbs, ratings, outcomes } }: Fitting) =>
      [choices, thumbs, ratings, outcomes].map(({ logScale, ...rest }) => rest) as Tree,
    times: QUICK,
  };
  const adam = {
    beta1: 0.9,
    beta2: 0.99,
    epsilon: 1e-8,
    weightDecay: config.weightDecay,
    clipNorm: 1,
    quick,
    adapters: lora !== null,
  };
  const step = trainer('reward', loss, adam, precision);
  // Adapters are fitted to large models, whose states are read once to begin with, too: one compilation does for both.
  const byStates: typeof score = (weights, head, batch, members) => {
    const read = states(weights, batch, members);
    const scored = tf.tidy(
      () => tf.add(tf.reshape(tf.matMul(read, tf.reshape(head.weight, [-1, 1])), [ANSWERS]), head.bias), // (S, D) · (D, 1) → (S)
    ) as Tensor;
    dispose(read);
    return scored;
  };
  return { score: lora ? byStates : compile('reward score', score, { precision }), states, step, shape, config, lora };
}

/** Minus the log-likelihood of all that is said, given each answer's score and, where an aspect is rated, its aspect's; with the raters' KL. () */
function unlikelihood(likelihood: Likelihood, said: Evidence, r: Tensor, q: Tensor): Tensor {
  const { stages, thumbs, klWeight, ratings, outcomes } = said;
  const unlikely = (weight: Tensor, logP: Tensor) => tf.neg(tf.sum(tf.mul(weight, logP))); // ()
  return tf.addN([
    unlikely(stages.weight, logChoice(r, likelihood.choices, stages)),
    unlikely(thumbs.weight, logThumb(r, likelihood.thumbs, thumbs)),
    tf.sum(tf.mul(klWeight, klOfRaters(likelihood.thumbs))), // ()
    unlikely(ratings.weight, logRating(q, likelihood.ratings, ratings)),
    unlikely(outcomes.weight, logOutcome(r, likelihood.outcomes, outcomes)),
  ] as never) as Tensor;
}

/**
 * A head along the pull of all that is said on scores that are still alike: the states of better answers, less those of worse ones. From a
 * hundred judgements of a large model no fitting of a head makes more (LOG.md); adapters go on from there. (D)
 */
async function pulledHead(
  { states, shape, config }: RewardCalls,
  base: Parameters,
  said: Judgement[],
  subjects: Subjects,
  pad: number,
): Promise<Float32Array> {
  const likelihood = freshLikelihood(placesFor(subjects));
  let head = tf.zeros([1, base.norm.size]) as Tensor; // (1, D)
  for (let at = 0; at < said.length; at += config.judgements)
    for (const part of evidence(said.slice(at, at + config.judgements), shape, pad, subjects)) {
      const read = states(base, part.batch, part.members); // (S, D)
      const pulled = tf.tidy(() => {
        const loss = (r: Tensor) => unlikelihood(likelihood, part, r, r);
        const pull = tf.grad(loss as never)(tf.zeros([ANSWERS])) as Tensor; // (S)
        return tf.sub(head, tf.matMul(tf.reshape(pull, [1, ANSWERS]), read)); // (1, S) · (S, D) → (1, D)
      }) as Tensor;
      dispose(read, head, part);
      head = pulled;
      await new Promise(setImmediate);
    }
  const values = head.dataSync() as Float32Array;
  dispose(head, likelihood);
  return values;
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
  const { shape, config, lora } = calls;
  const trunk = trunkOf(base);
  const frozen = lora ? [trunk] : [];
  const said = judgements.map((judgement) =>
    judgement.kind === 'correction' ? weighed(judgement, config.correctionWeight) : judgement,
  );
  const subjects = subjectsOf(said);
  const rng = random(seed, stage);
  const drawn = freshHead(model.hidden_size, rng);
  let rm: Fitting;
  if (from) rm = from.rm;
  else {
    const head = lora ? await pulledHead(calls, trunk, said, subjects, model.pad_token_id) : drawn;
    const fresh: RewardModel = tf.tidy(() => ({
      parameters: trunk,
      head: { weight: tf.tensor1d(head), bias: tf.scalar(0) },
      aspects: tf.zeros([ASPECTS, model.hidden_size]),
      likelihood: freshLikelihood(placesFor(subjects)),
    })) as never;
    const even = normalised(fresh, await scores(calls, fresh, normaliseOn, model.pad_token_id));
    dispose(even.likelihood);
    rm = {
      ...even,
      parameters: lora ? freshLora(model, lora, random(seed, `${stage} lora`)) : mapTree(trunk, tf.clone),
      likelihood: freshLikelihood(placesFor(subjects)), // scales of 1 are meant for scores of variance 1
    };
  }

  let order: Judgement[] = [];
  let adam = from?.adam ?? adamState(rm);
  const perEpoch = Math.ceil(said.length / config.judgements);
  const steps = perEpoch * config.epochs;
  for (let step = 1; step <= steps; step++) {
    const at = ((step - 1) % perEpoch) * config.judgements;
    if (at === 0) order = rng.shuffle([...said]);
    if (from && step <= from.step) continue; // the orders come as they came
    const rate = Math.min(1, step / config.warmup) * Math.max(0.1, 1 - (step - 1) / steps);
    const parts = evidence(order.slice(at, at + config.judgements), shape, model.pad_token_id, subjects);
    const result = calls.step(rm, adam, config.learningRate * rate, parts, frozen);
    ({ parameters: rm, adam } = result);
    const metrics = { [`${stage}/loss`]: result.values.loss, [`${stage}/grad_norm`]: result.norm };
    requireFinite(stage, step, metrics);
    await report({ stage, step, steps, metrics });
    await save({ rm, adam, step });
    await new Promise(setImmediate);
  }
  dispose(adam);
  const parameters = lora ? merged(trunk, rm.parameters as Lora) : (rm.parameters as Parameters);
  if (lora) dispose(rm.parameters);
  const whole = mixed({ ...rm, parameters }, subjects, config.mix);
  return normalised(whole, await scores(calls, whole, normaliseOn, model.pad_token_id));
}

/** Scores of answers, in order. Signal handlers and heartbeats get their turn between calls. */
export async function scores({ shape, score }: RewardCalls, rm: Scorer, rows: Row[], pad: number): Promise<number[]> {
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

/** The scores of each judgement's answers. */
export async function scoresOf(
  calls: RewardCalls,
  rm: Scorer,
  judgements: Judgement[],
  pad: number,
): Promise<number[][]> {
  const rows = judgements.flatMap((judgement) => judgement.rows);
  const all = await scores(calls, rm, rows, pad);
  let at = 0;
  return judgements.map(({ rows }) => {
    at += rows.length;
    return all.slice(at - rows.length, at);
  });
}

/** For each conversation that was compared, in how many of its judged pairs the better answer scores higher. */
export function tallied(judgements: Judgement[], scored: number[][]): Tally[] {
  const tallies = new Map<string, Tally>();
  for (const [j, judgement] of judgements.entries()) {
    const pairs = pairsOf(judgement);
    if (pairs.length === 0) continue;
    const tally = tallies.get(judgement.root) ?? { right: 0, of: 0 };
    for (const [better, worse] of pairs) tally.right += wins(scored[j]![better]!, scored[j]![worse]!);
    tally.of += pairs.length;
    tallies.set(judgement.root, tally);
  }
  return [...tallies.values()];
}

export const accuracy = async (
  calls: RewardCalls,
  rm: Scorer,
  judgements: Judgement[],
  pad: number,
): Promise<Tally[]> => tallied(judgements, await scoresOf(calls, rm, judgements, pad));

/** 1 where the first score is higher, ½ where they are equal. */
export const wins = (a: number, b: number): number => (a > b ? 1 : a === b ? 0.5 : 0);

/** The share of all comparisons that are right. */
export const rightShare = (tallies: Tally[]): number =>
  tallies.reduce((sum, { right }) => sum + right, 0) / tallies.reduce((sum, { of }) => sum + of, 0);

/** The same model, each aspect's part of whose score is in the head; what sets aspects apart is now apart from that. */
function mixed(rm: RewardModel, { aspects }: Subjects, mix: RewardConfig['mix']): RewardModel {
  // its own: aspects are named by whoever rates, and an object has more than it was given (toString)
  const shareOf = (aspect = '') => (Object.hasOwn(mix, aspect) ? mix[aspect]! : 0);
  const shares = Array.from({ length: ASPECTS }, (_, i) => shareOf(aspects[i]));
  if (shares.every((share) => share === 0)) return rm;
  const [weight, apart] = tf.tidy(() => {
    const added = tf.sum(tf.mul(rm.aspects, tf.tensor2d(shares, [ASPECTS, 1])), 0, true); // (A, D) → (1, D)
    return [tf.add(rm.head.weight, tf.reshape(added, [-1])), tf.sub(rm.aspects, added)] as [Tensor, Tensor];
  });
  dispose(rm.head.weight, rm.aspects);
  return { ...rm, head: { weight, bias: rm.head.bias }, aspects: apart };
}

/** The same ranking of answers with mean 0 and variance 1 on the given scores (whatever its offset and scale were), and the same probabilities of all that people say. */
export function normalised(rm: RewardModel, on: number[]): RewardModel {
  const middle = mean(on);
  const deviation = Math.sqrt(variance(on));
  const gain = deviation > 1e-8 ? 1 / deviation : 1;
  const head = {
    weight: tf.mul(rm.head.weight, gain),
    bias: tf.tidy(() => tf.mul(tf.sub(rm.head.bias, middle), gain)),
  };
  const aspects = tf.mul(rm.aspects, gain);
  const likelihood = rescaled(rm.likelihood, gain, middle);
  dispose(rm.head, rm.aspects, rm.likelihood);
  return { parameters: rm.parameters, head, aspects, likelihood };
}

/** The head of an aspect's score. */
export const aspectHead = ({ head, aspects }: RewardModel, aspect: number): Head =>
  tf.tidy(() => ({
    weight: tf.add(head.weight, tf.gather(aspects as never, aspect)),
    bias: tf.clone(head.bias),
  })) as Head;

/** What one call of a step learns from; what is not there has weight 0. */
type Evidence = {
  batch: Batch;
  members: Tensor; // (S, R W)
  stages: Stages & { weight: Tensor }; // (stages)
  thumbs: Thumbs & { weight: Tensor }; // (S)
  klWeight: Tensor; // (J), of each rater
  ratings: Ratings & { weight: Tensor }; // (S)
  outcomes: Outcomes & { weight: Tensor }; // (S)
};

/** J: a power of two, so that shapes repeat. */
const placesFor = ({ raters }: Subjects): number => {
  let places = LEAST_RATERS;
  while (places <= raters.size) places *= 2;
  return places;
};

/** For each answer, 1 / (its length + the prior's) at each of its tokens: a product with the readings is their mean. (S, R W) */
function membersOf({ tokens, placed }: Pack): Tensor {
  const members = new Float32Array(ANSWERS * tokens.length);
  placed.forEach(({ first, length }, i) => {
    members.fill(1 / (length + PRIOR_TOKENS), i * tokens.length + first, i * tokens.length + first + length);
  });
  return tf.tensor2d(members, [ANSWERS, tokens.length]);
}

/**
 * A step's judgements in as many calls as they need; each judgement's answers are in one call. The weights sum to 1 over all, and those of
 * the raters' KL over an epoch, of steps that weigh alike, to what makes it count once beside all that is said.
 */
export function evidence(judgements: Judgement[], shape: Shape, pad: number, subjects: Subjects): Evidence[] {
  const total = judgements.reduce((sum, judgement) => sum + weightOf(judgement), 0);
  let count = 0;
  const bundles = judgements.map(({ rows }) => rows.map(() => count++));
  const rows = judgements.flatMap((judgement) => judgement.rows);
  const packs = pack(rows, bundles, shape, pad);
  const aspectAt = new Map(subjects.aspects.map((aspect, i) => [aspect, i]));
  const outcomeAt = new Map(subjects.outcomes.map(({ name }, i) => [name, i]));
  return packs.map((part) => {
    const items = new Int32Array(STAGES * ITEMS);
    const present = new Float32Array(STAGES * ITEMS);
    const chosen = new Float32Array(STAGES * ITEMS);
    const stageWeight = new Float32Array(STAGES);
    const sign = new Float32Array(ANSWERS).fill(1);
    const rater = new Int32Array(ANSWERS);
    const thumbWeight = new Float32Array(ANSWERS);
    const klWeight = new Float32Array(placesFor(subjects));
    klWeight.fill(1 / subjects.weight / packs.length, 1, 1 + subjects.raters.size);
    const aspect = new Int32Array(ANSWERS);
    const grade = new Int32Array(ANSWERS);
    const ratingWeight = new Float32Array(ANSWERS);
    const name = new Int32Array(ANSWERS);
    const value = new Float32Array(ANSWERS);
    const isNumber = new Float32Array(ANSWERS);
    const outcomeWeight = new Float32Array(ANSWERS);
    let slot = 0;
    let stage = 0;
    for (const index of part.bundles) {
      const judgement = judgements[index]!;
      for (const { remaining, chosen: taken, weight } of judgement.stages) {
        remaining.forEach((row, i) => {
          items[stage * ITEMS + i] = slot + row;
          present[stage * ITEMS + i] = 1;
          if (taken.includes(row)) chosen[stage * ITEMS + i] = 1;
        });
        stageWeight[stage++] = weight / total;
      }
      for (const { row, up, weight } of judgement.thumbs) {
        sign[slot + row] = up ? 1 : -1;
        rater[slot + row] = subjects.raters.get(judgement.rater ?? '') ?? 0;
        thumbWeight[slot + row] = weight / total;
      }
      for (const { row, aspect: of, value, weight } of judgement.ratings) {
        aspect[slot + row] = aspectAt.get(of)!;
        grade[slot + row] = value - 1;
        ratingWeight[slot + row] = weight / total;
      }
      for (const { row, name: of, value: observed, weight } of judgement.outcomes) {
        const outcome = outcomeAt.get(of)!;
        const subject = subjects.outcomes[outcome]!;
        const { isNumber: number, mean, deviation } = subject;
        name[slot + row] = outcome;
        value[slot + row] = number ? (within(subject, observed) - mean) / deviation : Number(observed);
        isNumber[slot + row] = number ? 1 : 0;
        outcomeWeight[slot + row] = weight / total;
      }
      slot += judgement.rows.length;
    }
    // An empty stage is a choice of one answer, so that its (unweighted) logarithm is finite.
    for (; stage < STAGES; stage++) {
      present[stage * ITEMS] = 1;
      chosen[stage * ITEMS] = 1;
    }
    return {
      batch: batchOf(part, shape),
      members: membersOf(part),
      stages: {
        items: tf.tensor2d(items, [STAGES, ITEMS]),
        present: tf.tensor2d(present, [STAGES, ITEMS]),
        chosen: tf.tensor2d(chosen, [STAGES, ITEMS]),
        weight: tf.tensor1d(stageWeight),
      },
      thumbs: { sign: tf.tensor1d(sign), rater: tf.tensor1d(rater), weight: tf.tensor1d(thumbWeight) },
      klWeight: tf.tensor1d(klWeight),
      ratings: { aspect: tf.tensor1d(aspect), grade: tf.tensor1d(grade), weight: tf.tensor1d(ratingWeight) },
      outcomes: {
        name: tf.tensor1d(name),
        value: tf.tensor1d(value),
        isNumber: tf.tensor1d(isNumber),
        weight: tf.tensor1d(outcomeWeight),
      },
    };
  });
}
