// Stage 1, initial model training: cross-entropy on the answers' tokens, by AdamW with warm-up and linear decay.
//
//   plumb train sft --data rows.jsonl --base <policy folder> --out <policy folder>
//
// Rows are TRL's: {messages}, {prompt, completion}, or {text}. Left out: LoRA, packing, early stopping.

import type { ModelConfig } from '../schema/manifest.ts';
import { batchOf, type Row, type Shape } from './data.ts';
import { compile, dispose } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { type Report, requireFinite } from './metrics.ts';
import { answerLogprobs, answerMask, hiddenStates, type Parameters } from './model.ts';
import { type AdamState, adamState, adamStep, gradients } from './optimizer.ts';
import { random } from './random.ts';

export interface SftConfig {
  steps: number;
  shape: Shape;
  learningRate: number;
  warmup: number;
  weightDecay: number;
  seed: number;
}

export const SFT_DEFAULTS = { learningRate: 1.5e-3, warmup: 100, weightDecay: 0.05, seed: 0 };

/**
 * Trains on `rows`; the loss on `held` rows is measured at the end and every tenth of the way.
 * @returns the new weights (the given ones are disposed) and the last held-out loss, nats a token
 */
export async function sft(
  model: ModelConfig,
  parameters: Parameters,
  rows: Row[],
  held: Row[],
  config: SftConfig,
  report: Report,
): Promise<{ parameters: Parameters; loss: number }> {
  const { shape, steps } = config;
  const rng = random(config.seed, 'sft');

  // Cross-entropy, nats a token of the answers; () and the count of those tokens
  const lossOf = (weights: Parameters, tokens: Tensor, start: Tensor, lengths: Tensor) => {
    const hidden = hiddenStates(model, weights, tokens, start); // (B, T, D)
    const { logprobs } = answerLogprobs(weights, hidden, tokens, shape.answer); // (B, A)
    const mask = answerMask(lengths, shape.answer); // (B, A)
    return tf.div(tf.neg(tf.sum(tf.mul(logprobs, mask))), tf.sum(mask)); // ()
  };
  const trainStep = compile(
    'sft step',
    (weights: Parameters, adam: AdamState, rate: Tensor, tokens: Tensor, start: Tensor, lengths: Tensor) => {
      const { grads, values } = gradients(weights, (w) => ({ loss: lossOf(w, tokens, start, lengths) }));
      const next = adamStep(weights, grads, adam, rate, {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weightDecay: config.weightDecay,
        clipNorm: 1,
      });
      return { parameters: next.parameters, adam: next.state, loss: values.loss, norm: next.norm };
    },
  );
  const evaluate = compile('sft loss', lossOf);
  const heldLoss = (weights: Parameters): number => {
    let sum = 0;
    let count = 0;
    for (let i = 0; i < held.length; i += shape.batch) {
      const part = held.slice(i, i + shape.batch);
      const tokens = part.reduce((n, row) => n + Math.min(row.answer.length, shape.answer), 0);
      const batch = batchOf(part, shape, model.pad_token_id);
      const loss = evaluate(weights, batch.tokens, batch.start, batch.lengths);
      sum += (loss.dataSync()[0] as number) * tokens;
      count += tokens;
      dispose(batch, loss);
    }
    return sum / count;
  };

  let weights = parameters;
  let adam = adamState(weights);
  let order: Row[] = [];
  let loss = Number.NaN;
  for (let step = 1; step <= steps; step++) {
    while (order.length < shape.batch) order = [...order, ...rng.shuffle([...rows])];
    const batch = batchOf(order.splice(0, shape.batch), shape, model.pad_token_id);
    const rate = tf.scalar(
      config.learningRate * Math.min(1, step / config.warmup) * Math.max(0.02, 1 - (step - 1) / steps),
    );
    const result = trainStep(weights, adam, rate, batch.tokens, batch.start, batch.lengths);
    const metrics: Record<string, number> = {
      'loss/train': result.loss.dataSync()[0]!,
      'grad/norm': result.norm.dataSync()[0]!,
    };
    dispose(weights, adam, batch, rate, result.loss, result.norm);
    weights = result.parameters;
    adam = result.adam;
    if (held.length > 0 && (step === steps || step % Math.ceil(steps / 10) === 0)) {
      loss = heldLoss(weights);
      metrics['loss/held_out'] = loss;
    }
    requireFinite('sft', step, metrics);
    await report({ stage: 'sft', step, steps, metrics });
    // Gives signal handlers and heartbeats their turn: a step blocks the event loop.
    await new Promise(setImmediate);
  }
  dispose(adam);
  return { parameters: weights, loss };
}
