// How much arithmetic a step asks for, and how fast this machine does it at best: what a row's speed is a share of.
import type { ModelConfig } from '../../schema/manifest.ts';
import { compile, dispose, type Precision } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { ROUNDS } from './pair.ts';

/** Rows and columns of the products that a machine's peak is told by. */
export const PRODUCT = 4096;

/**
 * Multiplications and additions of a forward pass over rows of T tokens each, `predicting` of which need logits. Two for each weight of a product,
 * and attention's scores and mixtures over T places, masked or not; a backward pass is two of these (PaLM, appendix B). What is computed
 * twice to save memory counts once.
 */
export function forwardFlop(model: ModelConfig, tokens: number, T: number, predicting: number): number {
  const { hidden_size: D, num_hidden_layers: L, intermediate_size: F, vocab_size: V, head_dim: d } = model;
  const [queries, keys] = [model.num_attention_heads * d, model.num_key_value_heads * d];
  const weights = D * (queries + 2 * keys) + queries * D + 3 * D * F;
  return 2 * (L * weights * tokens + V * D * predicting) + 4 * L * T * queries * tokens;
}

/** A product that is large enough to need nothing else. @returns how fast it runs once, by XLA or by TensorFlow's own op, GFLOP/s */
export function productsAlone(precision: Precision): () => number {
  const N = PRODUCT;
  const [a, b] = [tf.randomNormal([N, N]) as Tensor, tf.randomNormal([N, N]) as Tensor];
  const product = (a: Tensor, b: Tensor) => tf.matMul(a, b) as Tensor;
  const ways = [compile(`product in ${precision}`, product, { precision })];
  if (precision === 'float32') ways.push(compile('product', product, { xla: false }));
  const speed = (way: typeof product) => {
    const started = performance.now();
    const result = way(a, b);
    result.dataSync();
    dispose(result);
    return (2 * N ** 3) / 1e6 / (performance.now() - started);
  };
  ways.forEach(speed); // traces and compiles
  return () => Math.max(...ways.map(speed));
}

const peaks = new Map<Precision, number>();

/** What such products run at, at best: measured once. GFLOP/s */
export function peakOf(precision: Precision): number {
  const known = peaks.get(precision);
  if (known) return known;
  const peak = Math.max(...Array.from({ length: ROUNDS }, productsAlone(precision)));
  peaks.set(precision, peak);
  return peak;
}

/** In words: so many GFLOP/s, and their share of what products alone reach. */
export const shareOf = (speed: number, precision: Precision): string => {
  const peak = peakOf(precision);
  return `${speed.toFixed(0)} GFLOP/s, ${((100 * speed) / peak).toFixed(0)} % of the ${peak.toFixed(0)} of products alone in ${precision}`;
};
