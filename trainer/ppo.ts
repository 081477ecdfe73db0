// Stage 4, RL optimisation: PPO against the reward model, kept near the run's parent by a KL penalty.
//
//   plumb train ppo --data prompts.jsonl --reward <folder> --base <policy folder> --out <policy folder>
//
// An iteration: sample answers with the image that would be served, score them, add the KL penalty token by token, estimate
// advantages, then a few epochs of clipped updates. Log-probabilities of the policy that sampled are computed anew by the
// trainer, for the served image's numbers are rounded; the difference is weighed by truncated importance weights.
// Left out: dual clip, early stop on KL, a separate value model.

import type { ModelConfig } from '../schema/manifest.ts';
import { batchOf, type Row, type Shape } from './data.ts';
import { compile, dispose, mapTree } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { DivergedError, type Report, requireFinite } from './metrics.ts';
import { answerLogprobs, answerMask, type Head, hiddenStates, type Parameters, readOut } from './model.ts';
import { type AdamState, adamState, adamStep, gradients } from './optimizer.ts';
import { random } from './random.ts';
import { type RewardCalls, type RewardModel, scores as rewardScores } from './reward.ts';
import {
  adaptedBeta,
  gae,
  mean,
  meanLength,
  mismatchWeights,
  penalisedRewards,
  policyLoss,
  sequenceMean,
  tokenMean,
  valueLoss,
  whiten,
} from './rl.ts';
import type { Sampler } from './rollout.ts';

export interface PpoConfig {
  episodes: number;
  rollout: number;
  epochs: number;
  learningRate: number;
  beta: number;
  klTarget: number;
  horizon: number;
  gamma: number;
  lambda: number;
  clip: number;
  valueClip: number;
  valueWeight: number;
  whitenRewards: boolean;
  temperature: number;
  /** The score of an answer that was cut before its end. */
  missingEosScore: number;
  importanceCap: number;
  /** Nats a sequence; a batch beyond it ends the run. */
  klLimit: number;
  seed: number;
}
export const PPO_DEFAULTS: Omit<PpoConfig, 'seed'> = {
  episodes: 2048,
  rollout: 128,
  epochs: 2,
  learningRate: 3.5e-4,
  beta: 0.2,
  klTarget: 4,
  horizon: 1280,
  gamma: 1,
  lambda: 0.95,
  clip: 0.2,
  valueClip: 0.2,
  valueWeight: 0.1,
  whitenRewards: false,
  temperature: 1,
  missingEosScore: -1,
  importanceCap: 2,
  klLimit: 20,
};

/** What an iteration leaves behind, enough to go on from. */
export type PpoState = { actor: Actor; adam: AdamState; beta: number; iteration: number };
type Actor = { parameters: Parameters; value: Head };

export type PolicyCalls = ReturnType<typeof policyCalls>;

/** The compiled calls: scoring, which policy, reference and root share, and PPO's step. */
export function policyCalls(model: ModelConfig, shape: Shape, config: Omit<PpoConfig, 'seed'>) {
  const A = shape.answer;
  const score = compile('policy score', (actor: Actor, temperature: Tensor, tokens: Tensor, start: Tensor) => {
    const hidden = hiddenStates(model, actor.parameters, tokens, start); // (B, T, D)
    const { logprobs, entropy } = answerLogprobs(actor.parameters, hidden, tokens, shape.answer, temperature); // (B, A)
    return { logprobs, entropy, values: readOut(actor.value, statesBefore(hidden, shape.answer)) }; // each (B, A)
  });
  const step = compile(
    'ppo step',
    (actor: Actor, adam: AdamState, rate: Tensor, temperature: Tensor, batch: MiniBatch) => {
      const mask = answerMask(batch.lengths, A); // (B, A)
      const { grads, values } = gradients(actor, ({ parameters, value }) => {
        const hidden = hiddenStates(model, parameters, batch.tokens, batch.start); // (B, T, D)
        const { logprobs, entropy } = answerLogprobs(parameters, hidden, batch.tokens, A, temperature); // (B, A)
        const policy = policyLoss(logprobs, batch.old, batch.advantages, batch.importance, mask, config.clip);
        const estimated = readOut(value, statesBefore(hidden, A)); // (B, A)
        const critic = valueLoss(estimated, batch.values, batch.returns, mask, config.valueClip);
        return {
          loss: tf.add(policy.loss, tf.mul(config.valueWeight, critic.loss)), // ()
          policy: policy.loss,
          value: critic.loss,
          clipfrac: policy.clipfrac,
          approxkl: policy.approxkl,
          ratio: policy.ratio,
          valueClipfrac: critic.clipfrac,
          valueError: critic.error,
          entropy: tf.div(tf.sum(tf.mul(entropy, mask)), tf.sum(mask)), // ()
        };
      });
      const next = adamStep(actor, grads, adam, rate, {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-5,
        weightDecay: 0,
        clipNorm: 1,
      });
      return { actor: next.parameters, adam: next.state, values, norm: next.norm };
    },
  );
  return { score, step, shape };
}

/** The states from which each answer token is predicted. (B, T, D) → (B, A, D) */
function statesBefore(hidden: Tensor, answer: number): Tensor {
  const [B, T, D] = hidden.shape as [number, number, number];
  return tf.slice(hidden, [0, T - answer - 1, 0], [B, answer, D]); // (B, A, D)
}

const noValue = (model: ModelConfig): Head => ({ weight: tf.zeros([model.hidden_size]), bias: tf.scalar(0) });

/** Log-probabilities, entropies and values of answers' tokens, each rows × A, in order. */
export function scoreAnswers(calls: PolicyCalls, actor: Actor, rows: Row[], temperature: number, pad: number) {
  const { batch, answer } = calls.shape;
  const size = Math.ceil(rows.length / batch) * batch * answer;
  const out = { logprobs: new Float32Array(size), entropy: new Float32Array(size), values: new Float32Array(size) };
  const warmth = tf.scalar(temperature);
  for (let i = 0; i < rows.length; i += batch) {
    const { tokens, start, lengths } = batchOf(rows.slice(i, i + batch), calls.shape, pad);
    const result = calls.score(actor, warmth, tokens, start);
    for (const name of ['logprobs', 'entropy', 'values'] as const)
      out[name].set(result[name].dataSync() as Float32Array, i * answer);
    dispose(tokens, start, lengths, result);
  }
  dispose(warmth);
  return out;
}

/** Log-probabilities alone, for a policy without a value head. */
export function answerLogprobsOf(
  model: ModelConfig,
  calls: PolicyCalls,
  parameters: Parameters,
  rows: Row[],
  temperature = 1,
): Float32Array {
  const value = noValue(model);
  const { logprobs } = scoreAnswers(calls, { parameters, value }, rows, temperature, model.pad_token_id);
  dispose(value);
  return logprobs;
}

/**
 * Optimises the parent (not disposed) against the reward model.
 * @param from goes on after a saved iteration
 * @param save is called after every iteration with all that is needed to go on
 * @returns the optimised weights
 */
export async function ppo(
  model: ModelConfig,
  calls: PolicyCalls,
  reward: { calls: RewardCalls; rm: RewardModel },
  parent: Parameters,
  prompts: number[][],
  sampler: Sampler,
  config: PpoConfig,
  report: Report,
  from: PpoState | null = null,
  save: (state: PpoState) => void | Promise<void> = () => {},
): Promise<Parameters> {
  const { shape } = calls;
  const { batch: B, answer: A } = shape;
  const pad = model.pad_token_id;
  const eos = model.eos_token_id;
  if (config.rollout % B !== 0)
    throw new Error(`a rollout of ${config.rollout} is not a multiple of the batch of ${B}`);

  const iterations = Math.floor(config.episodes / config.rollout);
  const value = noValue(model);
  let actor: Actor = from?.actor ?? { parameters: mapTree(parent, tf.clone), value };
  let adam = from?.adam ?? adamState(actor);
  let beta = from?.beta ?? config.beta;
  const temperature = tf.scalar(config.temperature);

  for (let iteration = from?.iteration ?? 0; iteration < iterations; iteration++) {
    // Rollout: the answers of the policy as it would be served.
    const asked = promptsOf(prompts, iteration, config);
    const seeds = asked.map((_, i) => seedOf(config.seed, iteration * config.rollout + i));
    const sampled = await sampler(actor.parameters, asked, seeds, { maxTokens: A, temperature: config.temperature });
    const rows: Row[] = sampled.map(({ ids }, i) => ({ prompt: asked[i]!, answer: ids }));
    const perToken = { columns: A, lengths: rows.map((row) => row.answer.length) };

    // Scores, and what policy and parent think of every token.
    const now = scoreAnswers(calls, actor, rows, config.temperature, pad);
    const reference = answerLogprobsOf(model, calls, parent, rows, config.temperature);
    const given = rewardScores(reward.calls, reward.rm, rows, pad);
    const scores = given.map((score, i) => (rows[i]!.answer.at(-1) === eos ? score : config.missingEosScore));
    const { rewards, k1, k3 } = penalisedRewards(now.logprobs, reference, scores, beta, perToken);
    const { advantages, returns } = gae(
      config.whitenRewards ? whiten(rewards, false, perToken) : rewards,
      now.values,
      config,
      perToken,
    );
    const whitened = whiten(advantages, true, perToken);
    const rolled = new Float32Array(rows.length * A);
    sampled.forEach(({ logprobs }, i) => {
      rolled.set(logprobs, i * A);
    });
    const importance = mismatchWeights(now.logprobs, rolled, config.importanceCap, perToken);

    const kl = sequenceMean(k1, perToken);
    const objective: Record<string, number> = {
      'objective/score': mean(scores),
      'objective/kl': kl,
      'objective/kl_coef': beta,
      'objective/length': meanLength(perToken),
      'objective/entropy': tokenMean(now.entropy, perToken),
      'objective/kl_k3': sequenceMean(k3, perToken),
      'objective/reward': mean(scores) - beta * kl,
      'objective/eos': rows.filter((row) => row.answer.at(-1) === eos).length / rows.length,
      'ppo/returns/mean': tokenMean(returns, perToken),
      'ppo/val/mean': tokenMean(now.values, perToken),
      'rollout/importance_mean': tokenMean(importance, perToken),
    };
    requireFinite('ppo', iteration + 1, objective);
    if (kl > config.klLimit)
      throw new DivergedError(
        `ppo: KL to the parent is ${kl.toFixed(1)} nats a sequence at iteration ${iteration + 1}, above ${config.klLimit}`,
      );
    if (objective['objective/length']! < 2)
      throw new DivergedError(
        `ppo: answers have collapsed to ${objective['objective/length']!.toFixed(1)} tokens at iteration ${iteration + 1}`,
      );

    // Epochs of minibatches over the same answers.
    const rate = tf.scalar(config.learningRate * (1 - iteration / iterations));
    const sums = new Map<string, number>();
    let steps = 0;
    for (let epoch = 0; epoch < config.epochs; epoch++) {
      const order = random(config.seed, `minibatches ${iteration} ${epoch}`).shuffle(rows.map((_, i) => i));
      for (let at = 0; at < order.length; at += B) {
        const chosen = order.slice(at, at + B);
        const matrix = (from: Float32Array) => tf.tensor2d(gathered(from, chosen, A), [B, A]);
        const batch: MiniBatch = {
          ...batchOf(
            chosen.map((i) => rows[i]!),
            shape,
            pad,
          ),
          old: matrix(now.logprobs),
          advantages: matrix(whitened),
          returns: matrix(returns),
          values: matrix(now.values),
          importance: matrix(importance),
        };
        const result = calls.step(actor, adam, rate, temperature, batch);
        steps++;
        for (const [name, tensor] of Object.entries({ ...result.values, norm: result.norm })) {
          sums.set(name, (sums.get(name) ?? 0) + (tensor.dataSync()[0] as number));
        }
        dispose(actor, adam, batch, result.values, result.norm);
        actor = result.actor;
        adam = result.adam;
        await new Promise(setImmediate);
      }
    }
    dispose(rate);
    const average = (name: string) => sums.get(name)! / steps;
    const metrics = {
      ...objective,
      'ppo/loss/policy': average('policy'),
      'ppo/loss/value': average('value'),
      'ppo/loss/total': average('loss'),
      'ppo/policy/entropy': average('entropy'),
      'ppo/policy/approxkl': average('approxkl'),
      'ppo/policy/clipfrac': average('clipfrac'),
      'ppo/policy/ratio': average('ratio'),
      'ppo/val/clipfrac': average('valueClipfrac'),
      'ppo/val/error': average('valueError'),
      'ppo/grad_norm': average('norm'),
    };
    requireFinite('ppo', iteration + 1, metrics);
    beta = adaptedBeta(beta, kl, { target: config.klTarget, horizon: config.horizon }, rows.length);
    await report({ stage: 'ppo', step: iteration + 1, steps: iterations, metrics });
    await save({ actor, adam, beta, iteration: iteration + 1 });
  }
  dispose(adam, actor.value, temperature);
  return actor.parameters;
}

type MiniBatch = {
  tokens: Tensor; // (B, T) int32
  start: Tensor; // (B) int32
  lengths: Tensor; // (B) int32
  old: Tensor; // (B, A)
  advantages: Tensor; // (B, A)
  returns: Tensor; // (B, A)
  values: Tensor; // (B, A)
  importance: Tensor; // (B, A)
};

/** The prompts of an iteration: pass after pass over all of them, each pass in an order of its own. */
function promptsOf(prompts: number[][], iteration: number, { rollout, seed }: PpoConfig): number[][] {
  return Array.from({ length: rollout }, (_, i) => {
    const place = iteration * rollout + i;
    const pass = Math.floor(place / prompts.length);
    return prompts[orderOf(prompts.length, seed, pass)[place % prompts.length]!]!;
  });
}
let remembered = { key: '', order: [] as number[] };
function orderOf(count: number, seed: number, pass: number): number[] {
  const key = `${count} ${seed} ${pass}`;
  if (remembered.key !== key)
    remembered = { key, order: random(seed, `prompts ${pass}`).shuffle(Array.from({ length: count }, (_, i) => i)) };
  return remembered.order;
}

/** Seeds that differ for each episode of each run. */
const seedOf = (seed: number, episode: number): number =>
  (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(episode + 1, 0x85ebca6b)) >>> 0;

function gathered(from: Float32Array, rows: number[], columns: number): Float32Array {
  const out = new Float32Array(rows.length * columns);
  rows.forEach((row, i) => {
    out.set(from.subarray(row * columns, (row + 1) * columns), i * columns);
  });
  return out;
}
