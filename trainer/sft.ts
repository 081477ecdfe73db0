// Stage 1, initial model training: cross-entropy on the answers' tokens, by AdamW with warm-up and decay.
//
//   plumb train sft --data rows.jsonl --base <policy folder> --out <policy folder>
//
// Rows are TRL's and OpenAI's: {messages}, {prompt, completion}, {prompt, chosen}, or {text}.

import type { ModelConfig } from '../schema/manifest.ts';
import type { SftConfig } from './config.ts';
import type { Row } from './data.ts';
import { compile, dispose, mapTree } from './engine/compile.ts';
import { tf } from './engine/tf.ts';
import { freshLora, type Lora, merged, type Trained, weightsOf } from './lora.ts';
import { type Report, requireFinite } from './metrics.ts';
import { hiddenStates, type Parameters, precisionFor, statesBefore, tokenLogprobs } from './model.ts';
import { type AdamState, adamState, trainer } from './optimizer.ts';
import { type Batch, batchOf, byPrompt, type Predictions, pack, predictionsOf } from './pack.ts';
import { random } from './random.ts';

/** What a step leaves behind, enough to go on from. */
export type SftState = {
  /** What is trained: the weights, or adapters beside them. */
  trained: Trained;
  adam: AdamState;
  step: number;
  /** The weights of the least held-out loss, where they are looked for. */
  best: Trained | null;
  /** Held-out losses so far; NaN before the first. */
  loss: { last: number; least: number; sinceLeast: number };
};

/** The learning rate's share of its peak. */
function rateOf(step: number, { steps, warmup, schedule }: SftConfig): number {
  const done = (step - 1) / steps;
  const falling = schedule === 'linear' ? 1 - done : (1 + Math.cos(Math.PI * done)) / 2;
  return Math.min(1, step / warmup) * Math.max(0.02, falling);
}

/**
 * Trains on `rows`; the loss on `held` rows is measured at the end and every tenth of the way.
 * @param from goes on after a saved step
 * @param save is called after every step with all that is needed to go on
 * @returns the new weights (the given ones are disposed) and their held-out loss, nats a token
 */
export async function sft(
  model: ModelConfig,
  parameters: Parameters,
  rows: Row[],
  held: Row[],
  config: SftConfig,
  report: Report,
  from: SftState | null = null,
  save: (state: SftState) => void | Promise<void> = () => {},
): Promise<{ parameters: Parameters; loss: number }> {
  const { shape, steps } = config;
  const rng = random(config.seed, 'sft');

  type Part = { batch: Batch; predictions: Predictions };
  const { lora } = config;
  const frozen = lora ? [parameters] : [];
  // Cross-entropy of the answers' tokens, weighed; ()
  const lossOf = (trained: Trained, { batch, predictions }: Part, frozen: Parameters[]) => {
    const weights = weightsOf(trained, frozen);
    const before = statesBefore(hiddenStates(model, weights, batch), predictions); // (R W, D) → (N, D)
    const { logprobs } = tokenLogprobs(weights, before, predictions.target); // (N)
    return { loss: tf.neg(tf.sum(tf.mul(logprobs, predictions.weight))) };
  };
  const precision = precisionFor(model);
  const adamW = {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weightDecay: config.weightDecay,
    clipNorm: 1,
    adapters: lora !== null,
  };
  const trainStep = trainer('sft', lossOf, adamW, precision);
  /** A batch in the calls that it needs; the weights make its loss nats a token. */
  const partsOf = (batch: Row[]): Part[] => {
    const packs = pack(batch, byPrompt(batch, shape), shape, model.pad_token_id);
    const tokens = packs.flatMap(({ placed }) => placed).reduce((sum, { length }) => sum + length, 0);
    return packs.map((part) => ({ batch: batchOf(part, shape), predictions: predictionsOf(part, 1 / tokens) }));
  };
  const evaluate = compile('sft loss', lossOf, { precision });
  const heldLoss = (trained: Trained): number => {
    const parts = partsOf(held);
    const losses = parts.map((part) => evaluate(trained, part, frozen).loss);
    const sum = losses.reduce((total, loss) => total + (loss.dataSync()[0] as number), 0);
    dispose(parts, losses);
    return sum;
  };

  let trained: Trained = from?.trained ?? (lora ? freshLora(model, lora, random(config.seed, 'lora')) : parameters);
  let adam = from?.adam ?? adamState(trained);
  let best = from?.best ?? null;
  let loss = from?.loss ?? { last: Number.NaN, least: Number.NaN, sinceLeast: 0 };
  const stopped = () => config.patience > 0 && loss.sinceLeast >= config.patience;
  // What it begins with is the first to beat: training that only makes it worse gives it back.
  if (!from && held.length > 0 && config.patience > 0) {
    const last = heldLoss(trained);
    requireFinite('sft', 0, { 'loss/held_out': last });
    loss = { last, least: last, sinceLeast: 0 };
    best = mapTree(trained, tf.clone);
    await report({ stage: 'sft', step: 0, steps, metrics: { 'loss/held_out': last } });
  }
  let order: Row[] = [];
  for (let step = 1; step <= steps && !stopped(); step++) {
    while (order.length < config.batch) order = [...order, ...rng.shuffle([...rows])];
    const batch = order.splice(0, config.batch);
    if (from && step <= from.step) continue; // the batches come as they came
    const rate = rateOf(step, config);
    const parts = partsOf(batch);
    const result = trainStep(trained, adam, config.learningRate * rate, parts, frozen);
    ({ parameters: trained, adam } = result);
    const metrics: Record<string, number> = { 'loss/train': result.values.loss, 'grad/norm': result.norm };
    if (held.length > 0 && (step === steps || step % Math.ceil(steps / 10) === 0)) {
      const last = heldLoss(trained);
      metrics['loss/held_out'] = last;
      const better = !(last >= loss.least);
      loss = { last, least: better ? last : loss.least, sinceLeast: better ? 0 : loss.sinceLeast + 1 };
      if (better && config.patience > 0) {
        if (best) dispose(best);
        best = mapTree(trained, tf.clone);
      }
    }
    requireFinite('sft', step, metrics);
    await report({ stage: 'sft', step, steps: stopped() ? step : steps, metrics });
    await save({ trained, adam, step, best, loss });
    // Gives signal handlers and heartbeats their turn: a step blocks the event loop.
    await new Promise(setImmediate);
  }
  dispose(adam);
  const kept = best ?? trained;
  if (best) dispose(trained);
  const least = best ? loss.least : loss.last;
  if (!lora) return { parameters: kept as Parameters, loss: least };
  const whole = merged(parameters, kept as Lora);
  dispose(parameters, kept);
  return { parameters: whole, loss: least };
}
