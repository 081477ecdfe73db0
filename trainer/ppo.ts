// Stage 4, RL optimisation: PPO against the reward model, kept near the run's parent by a KL penalty.
//
//   plumb train ppo --data prompts.jsonl --reward <folder> --base <policy folder> --out <policy folder>
//
// An iteration: sample answers with the image that would be served, score them, add the KL penalty token by token, estimate
// advantages, then a few epochs of clipped updates. Log-probabilities of the policy that sampled are computed anew by the
// trainer, for the served image's numbers are rounded; the difference is weighed by truncated importance weights.
// PPO.md says where it differs from others, and why.

import type { ModelConfig } from '../schema/manifest.ts';
import type { LoraConfig, PpoConfig } from '../schema/run-config.ts';
import type { Row } from './data.ts';
import { compile, dispose, mapTree } from './engine/compile.ts';
import { twin } from './engine/ops.ts';
import { parked } from './engine/parked.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { freshLora, type Lora, merged, type Trained, weightsOf } from './lora.ts';
import { DivergedError, type Report, requireFinite } from './metrics.ts';
import {
  type Head,
  hiddenStates,
  type Parameters,
  precisionFor,
  readOut,
  statesBefore,
  tokenLogprobs,
  trunkOf,
} from './model.ts';
import { type AdamState, adamState, trainer } from './optimizer.ts';
import {
  type Batch,
  batchOf,
  byPrompt,
  gathered,
  type Predictions,
  pack,
  predictionsOf,
  type Shape,
  scattered,
} from './pack.ts';
import { random } from './random.ts';
import {
  adaptedBeta,
  gae,
  mean,
  meanLength,
  mismatch,
  type PerToken,
  penalisedRewards,
  policyLoss,
  sequenceMean,
  tokenMean,
  tokenVariance,
  valueLoss,
  whiten,
} from './rl.ts';
import { drawnLogprobs, rowsOf, type Sampler } from './rollout.ts';

/** What an iteration leaves behind, enough to go on from. */
export type PpoState = { actor: Actor; adam: AdamState; beta: number; iteration: number };
/** The policy, and what estimates values: a head on the policy's own states, or with `critic` on those of a model of its own. */
type Actor = { parameters: Trained; value: Head; critic?: Trained };
/** Each answer's score, by a reward model or whatever else judges. */
export type Score = (rows: Row[]) => number[] | Promise<number[]>;

export type PolicyCalls = ReturnType<typeof policyCalls>;

/** The compiled calls: scoring, which policy, reference and root share, and PPO's step. */
export function policyCalls(
  model: ModelConfig,
  shape: Shape,
  config: Omit<PpoConfig, 'seed'>,
  lora: LoraConfig | null = null,
) {
  const read = (
    { parameters, value, critic }: Actor,
    temperature: Tensor,
    batch: Batch,
    predictions: Predictions,
    frozen: Parameters[],
  ) => {
    const weights = weightsOf(parameters, frozen);
    const before = statesBefore(hiddenStates(model, weights, batch), predictions); // (R W, D) → (N, D)
    const seen = critic ? statesBefore(hiddenStates(model, weightsOf(critic, frozen), batch), predictions) : before; // (R W, D) → (N, D)
    return { ...tokenLogprobs(weights, before, predictions.target, temperature), values: readOut(value, seen) }; // each (N)
  };
  const loss = (actor: Actor, part: MiniBatch, frozen: Parameters[]) => {
    const { weight } = part.predictions;
    const { logprobs, entropy, values } = read(actor, part.temperature, part.batch, part.predictions, frozen); // (N)
    const policy = policyLoss(logprobs, part.old, part.advantages, part.importance, weight, config);
    const critic = valueLoss(values, part.values, part.returns, weight, config.valueClip);
    return {
      loss: tf.add(policy.loss, tf.mul(config.valueWeight, critic.loss)), // ()
      policy: policy.loss,
      value: critic.loss,
      clipfrac: policy.clipfrac,
      approxkl: policy.approxkl,
      ratio: policy.ratio,
      ratioError: policy.ratioError,
      ratioErrorMax: policy.ratioErrorMax,
      vpred: tf.sum(tf.mul(values, weight)), // ()
      valueClipfrac: critic.clipfrac,
      valueError: critic.error,
      entropy: tf.sum(tf.mul(entropy, weight)), // ()
    };
  };
  const precision = precisionFor(model);
  const adam = { beta1: 0.9, beta2: 0.95, epsilon: 1e-5, weightDecay: 0, clipNorm: 1, adapters: lora !== null };
  const step = trainer('ppo', loss, adam, precision, ['ratioErrorMax']);
  const score = (...asked: [Actor, Tensor, Batch, Predictions, Parameters[]]) => {
    const { logprobs, values } = read(...asked); // each (N)
    return { logprobs, values };
  };
  return { score: compile('policy score', score, { precision }), step, shape, lora };
}

const noValue = (model: ModelConfig): Head => ({ weight: tf.zeros([model.hidden_size]), bias: tf.scalar(0) });

/** Where the rows' answers lie in arrays of numbers a token. */
export const perTokenOf = (rows: Row[]): PerToken => {
  const lengths = rows.map((row) => row.answer.length);
  return { columns: Math.max(...lengths), lengths };
};

/** Log-probabilities and values of answers' tokens, each rows × columns of perTokenOf. */
export async function scoreAnswers(
  { shape, score }: PolicyCalls,
  actor: Actor,
  rows: Row[],
  temperature: number,
  pad: number,
  frozen: Parameters[] = [],
) {
  const { columns } = perTokenOf(rows);
  const numbers = () => new Float32Array(rows.length * columns);
  const out = { logprobs: numbers(), values: numbers() };
  const warmth = tf.scalar(temperature);
  for (const part of pack(rows, byPrompt(rows, shape), shape, pad)) {
    const batch = batchOf(part, shape);
    const predictions = predictionsOf(part, 1);
    const result = score(actor, warmth, batch, predictions, frozen);
    for (const name of ['logprobs', 'values'] as const)
      scattered(result[name].dataSync() as Float32Array, out[name], columns, part);
    dispose(batch, predictions, result);
    await new Promise(setImmediate);
  }
  dispose(warmth);
  return out;
}

/** Log-probabilities alone, for a policy without a value head. */
export async function answerLogprobsOf(
  model: ModelConfig,
  calls: PolicyCalls,
  parameters: Parameters,
  rows: Row[],
  temperature = 1,
): Promise<Float32Array> {
  const { lora } = calls;
  // With adapters that change nothing yet what was compiled for the policy does for every other.
  const adapters = lora && freshLora(model, lora, random(0));
  const actor = { parameters: adapters ?? parameters, value: noValue(model) };
  const frozen = adapters ? [parameters] : [];
  const { logprobs } = await scoreAnswers(calls, actor, rows, temperature, model.pad_token_id, frozen);
  dispose(actor.value, adapters ?? []);
  return logprobs;
}

/**
 * Optimises the parent (not disposed) against what scores its answers.
 * @param maxTokens where answers are cut
 * @param from goes on after a saved iteration
 * @param save is called after every iteration with all that is needed to go on
 * @returns the optimised weights
 */
export async function ppo(
  model: ModelConfig,
  calls: PolicyCalls,
  score: Score,
  parent: Parameters,
  prompts: number[][],
  sampler: Sampler,
  maxTokens: number,
  config: PpoConfig,
  report: Report,
  from: PpoState | null = null,
  save: (state: PpoState) => void | Promise<void> = () => {},
): Promise<Parameters> {
  const { shape } = calls;
  const pad = model.pad_token_id;
  const eos = model.eos_token_id;
  const iterations = Math.floor(config.episodes / config.rollout);
  const value = noValue(model);
  const { lora } = calls;
  const frozen = lora ? [parent] : [];
  /** A critic of its own begins as the parent does, without its output matrix. */
  const fresh = (of: Parameters, name: string): Trained =>
    lora ? freshLora(model, lora, random(config.seed, name)) : mapTree(of, twin);
  const critic = config.separateValue ? { critic: fresh(trunkOf(parent), 'critic lora') } : {};
  let actor: Actor = from?.actor ?? { parameters: fresh(parent, 'lora'), value, ...critic };
  let adam = from?.adam ?? adamState(actor);
  let beta = from?.beta ?? config.beta;
  // Adapters lie on the parent; else it is the reference alone, and idle while the policy learns.
  using idle = parked(lora ? [] : parent);

  for (let iteration = from?.iteration ?? 0; iteration < iterations; iteration++) {
    // Rollout: the answers of the policy as it would be served.
    const asked = promptsOf(prompts, iteration, config);
    const seeds = asked.map((_, i) => seedOf(config.seed, iteration * config.rollout + i));
    const policy = lora ? { base: parent, lora: actor.parameters as Lora } : (actor.parameters as Parameters);
    const sampled = await sampler(policy, asked, seeds, { maxTokens, temperature: config.temperature });
    const rows = rowsOf(asked, sampled);
    const perToken = perTokenOf(rows);
    const { columns } = perToken;

    // Scores, and what policy and parent think of every token.
    const now = await scoreAnswers(calls, actor, rows, config.temperature, pad, frozen);
    const reference = await idle.use(() => answerLogprobsOf(model, calls, parent, rows, config.temperature));
    const given = await score(rows);
    // Before clipping and what stands for answers that were cut hide it.
    const wrong = given.find((score) => !Number.isFinite(score));
    if (wrong !== undefined) throw new DivergedError(`ppo: objective/score is ${wrong} at step ${iteration + 1}`);
    const ended = rows.map(({ answer }) => answer.at(-1) === eos && answer.length > config.minTokens);
    const scores = given.map((score, i) =>
      ended[i] ? Math.max(-config.scoreClip, Math.min(config.scoreClip, score)) : config.missingEosScore,
    );
    const { rewards, k1, k2, k3 } = penalisedRewards(now.logprobs, reference, scores, beta, perToken);
    const { advantages, returns } = gae(
      config.whitenRewards ? whiten(rewards, false, perToken) : rewards,
      now.values,
      config,
      perToken,
    );
    const whitened = whiten(advantages, true, perToken);
    const drawn = drawnLogprobs(sampled, columns);
    const importance = mismatch(now.logprobs, drawn, config.importanceCap, perToken);

    const kl = sequenceMean(k1, perToken);
    const objective: Record<string, number> = {
      'objective/score': mean(scores),
      'objective/score_total': mean(scores) - beta * kl,
      'objective/kl': kl,
      'objective/kl_coef': beta,
      'objective/kl_k2': sequenceMean(k2, perToken),
      'objective/kl_k3': sequenceMean(k3, perToken),
      'objective/entropy': -sequenceMean(now.logprobs, perToken),
      'objective/length': meanLength(perToken),
      'objective/eos': ended.filter(Boolean).length / rows.length,
      'ppo/returns/mean': tokenMean(returns, perToken),
      'ppo/returns/var': tokenVariance(returns, perToken),
      'ppo/val/mean': tokenMean(now.values, perToken),
      'ppo/val/var': tokenVariance(now.values, perToken),
      'rollout/importance_mean': importance.mean,
      'rollout/importance_max': importance.max,
      'rollout/importance_capped': importance.capped,
      'rollout/effective_samples': importance.effective,
    };
    requireFinite('ppo', iteration + 1, objective);
    if (kl > config.klLimit)
      throw new DivergedError(
        `ppo: KL to the parent is ${kl.toFixed(1)} nats a sequence at iteration ${iteration + 1}, above ${config.klLimit}`,
      );
    if (importance.effective < 0.5)
      throw new DivergedError(
        `ppo: what was sampled is not what the trainer trains: at iteration ${iteration + 1} its tokens are worth ${(100 * importance.effective).toFixed(0)} % of their number`,
      );
    if (objective['objective/length']! < 2)
      throw new DivergedError(
        `ppo: answers have collapsed to ${objective['objective/length']!.toFixed(1)} tokens at iteration ${iteration + 1}`,
      );

    // Epochs of minibatches over the same answers.
    const rate = config.learningRate * (1 - iteration / iterations);
    const sums: Record<string, number> = {};
    let steps = 0;
    // Answers to one prompt stay together, as they were drawn.
    const groups = Array.from({ length: Math.ceil(rows.length / config.answersPerPrompt) }, (_, g) =>
      rows.flatMap((_, i) => (Math.floor(i / config.answersPerPrompt) === g ? [i] : [])),
    );
    let far = false;
    let ratioErrorMax = 0;
    for (let epoch = 0; epoch < config.epochs && !far; epoch++) {
      const order = random(config.seed, `minibatches ${iteration} ${epoch}`)
        .shuffle([...groups])
        .flat();
      for (let at = 0; at < order.length && !far; at += config.minibatch) {
        const chosen = order.slice(at, at + config.minibatch);
        const tokens = chosen.reduce((sum, i) => sum + perToken.lengths[i]!, 0);
        const parts = pack(rows, byPrompt(rows, shape, chosen), shape, pad).map((part) => ({
          temperature: tf.scalar(config.temperature),
          batch: batchOf(part, shape),
          predictions: predictionsOf(part, 1 / tokens),
          old: gathered(now.logprobs, columns, part),
          advantages: gathered(whitened, columns, part),
          returns: gathered(returns, columns, part),
          values: gathered(now.values, columns, part),
          importance: gathered(importance.weights, columns, part),
        }));
        const result = calls.step(actor, adam, rate, parts, frozen);
        ({ parameters: actor, adam } = result);
        steps++;
        for (const [name, value] of Object.entries({ ...result.values, norm: result.norm }))
          sums[name] = (sums[name] ?? 0) + value;
        ratioErrorMax = Math.max(ratioErrorMax, result.values.ratioErrorMax);
        far = result.values.approxkl > config.stopKl;
        await new Promise(setImmediate);
      }
    }
    const average = (name: string) => sums[name]! / steps;
    const metrics = {
      ...objective,
      'ppo/loss/policy': average('policy'),
      'ppo/loss/value': average('value'),
      'ppo/loss/total': average('loss'),
      'ppo/policy/entropy': average('entropy'),
      'ppo/policy/approxkl': average('approxkl'),
      'ppo/policy/clipfrac': average('clipfrac'),
      'ppo/policy/ratio': average('ratio'),
      'ppo/policy/ratio_error': average('ratioError'),
      'ppo/policy/ratio_error_max': ratioErrorMax,
      'ppo/val/vpred': average('vpred'),
      'ppo/val/clipfrac': average('valueClipfrac'),
      'ppo/val/error': average('valueError'),
      'ppo/val/var_explained': 1 - average('valueError') / (objective['ppo/returns/var']! + 1e-8),
      'ppo/grad_norm': average('norm'),
      'ppo/updates': steps,
      'ppo/lr': rate,
      'elapsed/episodes': (iteration + 1) * config.rollout,
    };
    requireFinite('ppo', iteration + 1, metrics);
    beta = adaptedBeta(beta, kl, { target: config.klTarget, horizon: config.horizon }, rows.length);
    await report({ stage: 'ppo', step: iteration + 1, steps: iterations, metrics });
    await save({ actor, adam, beta, iteration: iteration + 1 });
  }
  const optimised = lora ? merged(parent, actor.parameters as Lora) : (actor.parameters as Parameters);
  dispose(adam, actor.value, actor.critic ?? [], lora ? actor.parameters : []);
  return optimised;
}

type MiniBatch = {
  temperature: Tensor; // ()
  batch: Batch; // (R, W)
  predictions: Predictions; // (N)
  old: Tensor; // (N)
  advantages: Tensor; // (N)
  returns: Tensor; // (N)
  values: Tensor; // (N)
  importance: Tensor; // (N)
};

/** The prompts of an iteration, each as often as it is answered: pass after pass over all, each pass in an order of its own. */
function promptsOf(prompts: number[][], iteration: number, { rollout, answersPerPrompt, seed }: PpoConfig): number[][] {
  const distinct = Math.ceil(rollout / answersPerPrompt);
  return Array.from({ length: rollout }, (_, i) => {
    const place = iteration * distinct + Math.floor(i / answersPerPrompt);
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
