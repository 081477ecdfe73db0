// A Llama in plain tfjs: RMSNorm, rotary positions, grouped-query attention, SwiGLU, embeddings tied or not; and what Qwen 2 and 3
// add to it. Written to be read and to be traced by compile(): speed is XLA's part. Conversations lie side by side in rows of one
// fixed length, as pack.ts packs them.
//
// Left out: dropout (never used in RL), biases but Qwen 2's.

import type { ModelConfig } from '../schema/manifest.ts';
import type { Precision } from './engine/compile.ts';
import { gatherRows, recomputed } from './engine/ops.ts';
import { expectWeights, hasBfloat16, type Tensor, tf } from './engine/tf.ts';
import type { Batch, Predictions } from './pack.ts';
import type { Random } from './random.ts';
import { UserError } from './user-error.ts';

type Layer = {
  attentionNorm: Tensor; // (D)
  qkv: Tensor; // (D, (H + 2 K) hd): queries, keys, values side by side
  /** Qwen 2 alone. */
  qkvBias?: Tensor; // ((H + 2 K) hd)
  /** Qwen 3 alone. */
  queryNorm?: Tensor; // (hd)
  keyNorm?: Tensor; // (hd)
  attentionOut: Tensor; // (H hd, D)
  mlpNorm: Tensor; // (D)
  gateUp: Tensor; // (D, 2 F): gate and up side by side
  down: Tensor; // (F, D)
  /** Thin products beside the matrices (lora.ts). */
  adapters?: Partial<Record<Matrix, Adapter>>;
};
export type Matrix = 'qkv' | 'attentionOut' | 'gateUp' | 'down';
export type Adapter = {
  a: Tensor; // (in, r)
  b: Tensor; // (r, out)
};
export type Parameters = {
  embedding: Tensor; // (V, D)
  layers: Layer[];
  norm: Tensor; // (D)
  /** The output matrix where it is not the embedding. */
  head?: Tensor; // (V, D)
};
/** A policy's weights but for its output matrix, of which a reward model has no use. */
export const trunkOf = ({ embedding, layers, norm }: Parameters): Parameters => ({ embedding, layers, norm });

/** A linear read-out of a hidden state: a value, or a reward. */
export type Head = {
  weight: Tensor; // (D)
  bias: Tensor; // ()
};

/** From so many weights on, products in bfloat16 save more than their longer compilation takes (LOG.md). */
const WORTH_BFLOAT16 = 4e6;

/** From so many weights on, a block's inner tensors are computed again on the way back instead of kept. */
const WORTH_RECOMPUTING = 50e6;

/** A model's weights but for norms, an output matrix of its own aside. */
function weightsIn(config: ModelConfig): number {
  const { hidden_size: D, intermediate_size: F, head_dim: hd, num_attention_heads: H, num_key_value_heads: K } = config;
  return config.num_hidden_layers * D * ((2 * H + 2 * K) * hd + 3 * F) + config.vocab_size * D;
}

/** What a model's products are computed in: bfloat16 where the processor multiplies it and the model is large, or what PLUMB_PRECISION says. */
export function precisionFor(config: ModelConfig): Precision {
  const weights = weightsIn(config);
  const asked = process.env.PLUMB_PRECISION ?? '';
  if (asked === '') return hasBfloat16 && weights >= WORTH_BFLOAT16 ? 'bfloat16' : 'float32';
  if (asked !== 'float32' && asked !== 'bfloat16')
    throw new UserError(`PLUMB_PRECISION=${asked} cannot be: float32 or bfloat16`);
  if (asked === 'bfloat16' && !hasBfloat16)
    throw new UserError(
      'PLUMB_PRECISION=bfloat16: this processor has no products in bfloat16 (avx512_bf16 or amx_bf16)',
    );
  return asked;
}

/** Fresh weights: normal(0, .02), the projections back into the residual stream smaller by √(2 layers) (GPT-2's scheme). */
export function initialParameters(config: ModelConfig, rng: Random): Parameters {
  const {
    hidden_size: D,
    intermediate_size: F,
    head_dim: hd,
    num_attention_heads: H,
    num_key_value_heads: K,
    vocab_size: V,
  } = config;
  expectWeights(V * D + config.num_hidden_layers * D * (2 * (H + K) * hd + 3 * F));
  const normal = (shape: [number, number], deviation: number) => {
    const values = new Float32Array(shape[0] * shape[1]);
    for (let i = 0; i < values.length; i++) values[i] = deviation * rng.normal();
    return tf.tensor(values, shape);
  };
  const residual = 0.02 / Math.sqrt(2 * config.num_hidden_layers);
  const layers = Array.from({ length: config.num_hidden_layers }, () => ({
    attentionNorm: tf.ones([D]),
    qkv: normal([D, (H + 2 * K) * hd], 0.02),
    ...(config.model_type === 'qwen2' ? { qkvBias: tf.zeros([(H + 2 * K) * hd]) } : {}),
    ...(config.model_type === 'qwen3' ? { queryNorm: tf.ones([hd]), keyNorm: tf.ones([hd]) } : {}),
    attentionOut: normal([H * hd, D], residual),
    mlpNorm: tf.ones([D]),
    gateUp: normal([D, 2 * F], 0.02),
    down: normal([F, D], residual),
  }));
  const head = config.tie_word_embeddings ? {} : { head: normal([V, D], 0.02) };
  return { embedding: normal([V, D], 0.02), layers, norm: tf.ones([D]), ...head };
}

/** What every block of a batch looks through. */
type Seen = {
  bias: Tensor; // (B, 1, T, T)
  cos: Tensor; // (B, T, 1, hd)
  sin: Tensor; // (B, T, 1, hd)
};

/**
 * The last hidden states of a batch, before the output matrix.
 * @returns (R W, D), place by place
 */
export function hiddenStates(config: ModelConfig, parameters: Parameters, batch: Batch): Tensor {
  const { head_dim: hd, num_attention_heads: H, num_key_value_heads: K, rms_norm_eps: epsilon } = config;
  const [B, T] = batch.tokens.shape as [number, number]; // R rows of W tokens
  const seen: Seen = { bias: attentionBias(batch), ...rotations(config, batch.position) };
  const rotate = (x: Tensor, { cos, sin }: Seen) => {
    const [left, right] = tf.split(x, 2, -1) as [Tensor, Tensor]; // (B, T, heads, hd) → 2 × (B, T, heads, hd/2)
    return tf.add(tf.mul(x, cos), tf.mul(tf.concat([tf.neg(right), left], -1), sin)); // (B, T, heads, hd)
  };
  const heads = (x: Tensor, count: number) => tf.reshape(x, [B, T, count, hd]); // (B T, count hd) → (B, T, count, hd)
  const byHead = (x: Tensor) => tf.transpose(x, [0, 2, 1, 3]); // (B, T, heads, hd) → (B, heads, T, hd)
  // Grouped-query attention: each key and value head serves H / K query heads that lie side by side.
  const spread = (x: Tensor) =>
    K === H ? x : tf.reshape(tf.tile(tf.reshape(x, [B, K, 1, T * hd]), [1, 1, H / K, 1]), [B, H, T, hd]); // (B, K, T, hd) → (B, H, T, hd)

  const block = (x: Tensor, layer: Layer, seen: Seen): Tensor => {
    const normed = rmsNorm(x, layer.attentionNorm, epsilon); // (B T, D)
    const plain = product(normed, layer, 'qkv'); // (B T, (H + 2 K) hd)
    const mixed = layer.qkvBias ? tf.add(plain, layer.qkvBias) : plain;
    const [q, k, v] = tf.split(mixed, [H * hd, K * hd, K * hd], -1) as [Tensor, Tensor, Tensor];
    const level = (x: Tensor, gain?: Tensor) => (gain ? rmsNorm(x, gain, epsilon) : x); // (B, T, heads, hd)
    const queries = byHead(rotate(level(heads(q, H), layer.queryNorm), seen)); // (B, H, T, hd)
    const keys = spread(byHead(rotate(level(heads(k, K), layer.keyNorm), seen))); // (B, H, T, hd)
    const values = spread(byHead(heads(v, K))); // (B, H, T, hd)
    const scores = tf.mul(tf.matMul(queries, tf.transpose(keys, [0, 1, 3, 2])), 1 / Math.sqrt(hd)); // (B, H, T, T)
    const attended = tf.matMul(tf.softmax(tf.add(scores, seen.bias)), values); // (B, H, T, hd)
    const joined = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [B * T, H * hd]); // (B T, H hd)
    const between = tf.add(x, product(joined, layer, 'attentionOut')); // (B T, D)
    const [gate, up] = tf.split(product(rmsNorm(between, layer.mlpNorm, epsilon), layer, 'gateUp'), 2, -1) as [
      Tensor,
      Tensor,
    ]; // (B T, F)
    return tf.add(between, product(tf.mul(tf.mul(gate, tf.sigmoid(gate)), up), layer, 'down')); // (B T, D)
  };

  let x: Tensor = gatherRows(parameters.embedding, tf.reshape(batch.tokens, [B * T])); // (B, T) → (B T, D)
  const large = weightsIn(config) >= WORTH_RECOMPUTING;
  for (const layer of parameters.layers) x = large ? recomputed(block, x, layer, seen) : block(x, layer, seen); // (B T, D)
  return rmsNorm(x, parameters.norm, epsilon); // (B T, D)
}

/** x·W, and where W has an adapter (x·A)·B with it. (N, in) → (N, out) */
function product(x: Tensor, layer: Layer, name: Matrix): Tensor {
  const whole = tf.matMul(x, layer[name]); // (N, in) · (in, out) → (N, out)
  const adapter = layer.adapters?.[name];
  return adapter ? tf.add(whole, tf.matMul(tf.matMul(x, adapter.a), adapter.b)) : whole; // (N, in) · (in, r) · (r, out) → (N, out)
}

/** Logits of hidden states. (N, D) → (N, V) */
export function logits(parameters: Parameters, hidden: Tensor): Tensor {
  return tf.matMul(hidden, tf.transpose(parameters.head ?? parameters.embedding)); // (N, D) · (D, V) → (N, V)
}

/**
 * Log-probabilities of answers' tokens, at a temperature, and the entropy of the distributions they were drawn from.
 * @param states (N, D), those from which the tokens are predicted
 * @param targets (N) int32
 * @returns logprobs (N), entropy (N)
 */
export function tokenLogprobs(
  parameters: Parameters,
  states: Tensor,
  targets: Tensor,
  temperature: Tensor | number = 1,
): { logprobs: Tensor; entropy: Tensor } {
  const scaled = tf.div(logits(parameters, states), temperature); // (N, V)
  const logSum = tf.logSumExp(scaled, -1); // (N)
  const vocabulary = tf.reshape(tf.range(0, scaled.shape[1]!, 1, 'int32'), [1, -1]); // (1, V)
  const target = tf.equal(tf.reshape(targets, [-1, 1]), vocabulary); // (N, V)
  const picked = tf.sum(tf.where(target, scaled, tf.zerosLike(scaled)), -1); // (N)
  const distribution = tf.exp(tf.sub(scaled, tf.reshape(logSum, [-1, 1]))); // (N, V)
  const entropy = tf.sub(logSum, tf.sum(tf.mul(distribution, scaled), -1)); // (N)
  return { logprobs: tf.sub(picked, logSum), entropy };
}

/** The states from which the answers' tokens are predicted. (R W, D) → (N, D) */
export const statesBefore = (hidden: Tensor, { from }: Pick<Predictions, 'from'>): Tensor => gatherRows(hidden, from);

/** A head's reading of each hidden state. (N, D) → (N) */
export function readOut(head: Head, hidden: Tensor): Tensor {
  const [N, D] = hidden.shape as [number, number];
  return tf.add(tf.reshape(tf.matMul(hidden, tf.reshape(head.weight, [D, 1])), [N]), head.bias); // (N, D) → (N)
}

function rmsNorm(x: Tensor, weight: Tensor, epsilon: number): Tensor {
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), epsilon))), weight);
}

/** 0 where a token may look, −1e9 elsewhere: never ahead, at its own prompt, and at its own answer. → (B, 1, T, T) */
function attentionBias({ tokens, prompt, answer }: Batch): Tensor {
  const [B, T] = tokens.shape as [number, number];
  const query = (x: Tensor) => tf.reshape(x, [B, 1, T, 1]); // (B, T) → (B, 1, T, 1)
  const key = (x: Tensor) => tf.reshape(x, [B, 1, 1, T]); // (B, T) → (B, 1, 1, T)
  const columns = tf.range(0, T, 1, 'int32');
  const behind = tf.lessEqual(tf.reshape(columns, [1, 1, 1, T]), tf.reshape(columns, [1, 1, T, 1])); // (1, 1, T, T)
  const ownPrompt = tf.equal(key(prompt), query(prompt)); // (B, 1, T, T)
  const shared = tf.equal(key(answer), tf.zerosLike(key(answer))); // (B, 1, 1, T)
  const ownAnswer = tf.logicalOr(shared, tf.equal(key(answer), query(answer))); // (B, 1, T, T)
  const allowed = tf.logicalAnd(behind, tf.logicalAnd(ownPrompt, ownAnswer)); // (B, 1, T, T)
  return tf.mul(tf.cast(tf.logicalNot(allowed), 'float32'), -1e9);
}

/** Rotary tables of each token's position, the two halves of a head alike (Hugging Face's rotate_half). → (B, T, 1, hd) */
function rotations({ head_dim: hd, rope_theta: theta }: ModelConfig, position: Tensor): { cos: Tensor; sin: Tensor } {
  const [B, T] = position.shape as [number, number];
  const angles = new Float32Array(T * hd); // no position is beyond a row's length
  for (let t = 0; t < T; t++)
    for (let i = 0; i < hd; i++) angles[t * hd + i] = t * theta ** ((-2 * (i % (hd / 2))) / hd);
  const places = tf.reshape(position, [B * T]); // (B T)
  const table = (values: Float32Array) => tf.reshape(gatherRows(tf.tensor2d(values, [T, hd]), places), [B, T, 1, hd]); // (T, hd) → (B, T, 1, hd)
  return { cos: table(angles.map(Math.cos)), sin: table(angles.map(Math.sin)) };
}
