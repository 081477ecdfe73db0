// A Llama in plain tfjs: RMSNorm, rotary positions, grouped-query attention, SwiGLU, embeddings tied or not. Written to be
// read and to be traced by compile(): speed is XLA's part. Sequences are rows of one fixed length, a prompt padded on the left
// and an answer padded on the right, so that every answer begins at the same column:
//
//   | pad pad  p0 p1 p2 | a0 a1 a2 eos pad |
//     0                  P                  P+A = T
//
// Left out: dropout (never used in RL), biases, attention across rows.

import type { ModelConfig } from '../schema/manifest.ts';
import { gatherRows } from './engine/ops.ts';
import { type Tensor, tf } from './engine/tf.ts';
import type { Random } from './random.ts';

export type Layer = {
  attentionNorm: Tensor; // (D)
  qkv: Tensor; // (D, (H + 2 K) hd): queries, keys, values side by side
  attentionOut: Tensor; // (H hd, D)
  mlpNorm: Tensor; // (D)
  gateUp: Tensor; // (D, 2 F): gate and up side by side
  down: Tensor; // (F, D)
};
export type Parameters = {
  embedding: Tensor; // (V, D)
  layers: Layer[];
  norm: Tensor; // (D)
  /** The output matrix where it is not the embedding. */
  head?: Tensor; // (V, D)
};
/** A linear read-out of a hidden state: a value, or a reward. */
export type Head = {
  weight: Tensor; // (D)
  bias: Tensor; // ()
};

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
  const normal = (shape: [number, number], deviation: number) => {
    const values = new Float32Array(shape[0] * shape[1]);
    for (let i = 0; i < values.length; i++) values[i] = deviation * rng.normal();
    return tf.tensor(values, shape);
  };
  const residual = 0.02 / Math.sqrt(2 * config.num_hidden_layers);
  const layers = Array.from({ length: config.num_hidden_layers }, () => ({
    attentionNorm: tf.ones([D]),
    qkv: normal([D, (H + 2 * K) * hd], 0.02),
    attentionOut: normal([H * hd, D], residual),
    mlpNorm: tf.ones([D]),
    gateUp: normal([D, 2 * F], 0.02),
    down: normal([F, D], residual),
  }));
  const head = config.tie_word_embeddings ? {} : { head: normal([V, D], 0.02) };
  return { embedding: normal([V, D], 0.02), layers, norm: tf.ones([D]), ...head };
}

/**
 * The last hidden states of a batch, before the output matrix.
 * @param tokens (B, T) int32
 * @param start (B) int32, how many columns of padding stand on the left of each row
 * @returns (B, T, D)
 */
export function hiddenStates(config: ModelConfig, parameters: Parameters, tokens: Tensor, start: Tensor): Tensor {
  const {
    hidden_size: D,
    head_dim: hd,
    num_attention_heads: H,
    num_key_value_heads: K,
    rms_norm_eps: epsilon,
  } = config;
  const [B, T] = tokens.shape as [number, number];
  const bias = attentionBias(start, T); // (B, 1, T, T)
  const { cos, sin } = rotaryTables(config, T); // (1, T, 1, hd)
  const rotate = (x: Tensor) => {
    const [left, right] = tf.split(x, 2, -1) as [Tensor, Tensor]; // (B, T, heads, hd) → 2 × (B, T, heads, hd/2)
    return tf.add(tf.mul(x, cos), tf.mul(tf.concat([tf.neg(right), left], -1), sin)); // (B, T, heads, hd)
  };
  const heads = (x: Tensor, count: number) => tf.reshape(x, [B, T, count, hd]); // (B T, count hd) → (B, T, count, hd)
  const byHead = (x: Tensor) => tf.transpose(x, [0, 2, 1, 3]); // (B, T, heads, hd) → (B, heads, T, hd)
  // Grouped-query attention: each key and value head serves H / K query heads that lie side by side.
  const spread = (x: Tensor) =>
    K === H ? x : tf.reshape(tf.tile(tf.reshape(x, [B, K, 1, T * hd]), [1, 1, H / K, 1]), [B, H, T, hd]); // (B, K, T, hd) → (B, H, T, hd)

  let x: Tensor = gatherRows(parameters.embedding, tf.reshape(tokens, [B * T])); // (B, T) → (B T, D)
  for (const layer of parameters.layers) {
    const normed = rmsNorm(x, layer.attentionNorm, epsilon); // (B T, D)
    const mixed = tf.matMul(normed, layer.qkv); // (B T, (H + 2 K) hd)
    const [q, k, v] = tf.split(mixed, [H * hd, K * hd, K * hd], -1) as [Tensor, Tensor, Tensor];
    const queries = byHead(rotate(heads(q, H))); // (B, H, T, hd)
    const keys = spread(byHead(rotate(heads(k, K)))); // (B, H, T, hd)
    const values = spread(byHead(heads(v, K))); // (B, H, T, hd)
    const scores = tf.mul(tf.matMul(queries, tf.transpose(keys, [0, 1, 3, 2])), 1 / Math.sqrt(hd)); // (B, H, T, T)
    const attended = tf.matMul(tf.softmax(tf.add(scores, bias)), values); // (B, H, T, hd)
    const joined = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [B * T, H * hd]); // (B T, H hd)
    x = tf.add(x, tf.matMul(joined, layer.attentionOut)); // (B T, D)
    const [gate, up] = tf.split(tf.matMul(rmsNorm(x, layer.mlpNorm, epsilon), layer.gateUp), 2, -1) as [Tensor, Tensor]; // (B T, F)
    x = tf.add(x, tf.matMul(tf.mul(tf.mul(gate, tf.sigmoid(gate)), up), layer.down)); // (B T, D)
  }
  return tf.reshape(rmsNorm(x, parameters.norm, epsilon), [B, T, D]); // (B, T, D)
}

/** Logits of hidden states. (N, D) → (N, V) */
export function logits(parameters: Parameters, hidden: Tensor): Tensor {
  return tf.matMul(hidden, tf.transpose(parameters.head ?? parameters.embedding)); // (N, D) · (D, V) → (N, V)
}

/**
 * Log-probabilities of the answer's tokens, at a temperature, and the entropy of the distributions they were drawn from.
 * @param hidden (B, T, D) of hiddenStates
 * @param tokens (B, T) int32
 * @param answer A, how many columns from the right are answer
 * @returns logprobs (B, A), entropy (B, A)
 */
export function answerLogprobs(
  parameters: Parameters,
  hidden: Tensor,
  tokens: Tensor,
  answer: number,
  temperature: Tensor | number = 1,
): { logprobs: Tensor; entropy: Tensor } {
  const [B, T, D] = hidden.shape as [number, number, number];
  const before = tf.reshape(tf.slice(hidden, [0, T - answer - 1, 0], [B, answer, D]), [B * answer, D]); // (B A, D)
  const targets = tf.reshape(tf.slice(tokens, [0, T - answer], [B, answer]), [B * answer, 1]); // (B A, 1)
  const scaled = tf.div(logits(parameters, before), temperature); // (B A, V)
  const logSum = tf.logSumExp(scaled, -1, true); // (B A, 1)
  const vocabulary = tf.reshape(tf.range(0, scaled.shape[1]!, 1, 'int32'), [1, -1]); // (1, V)
  const picked = tf.sum(tf.where(tf.equal(targets, vocabulary), scaled, tf.zerosLike(scaled)), -1, true); // (B A, 1)
  const logprobs = tf.reshape(tf.sub(picked, logSum), [B, answer]); // (B, A)
  const distribution = tf.exp(tf.sub(scaled, logSum)); // (B A, V)
  const entropy = tf.reshape(tf.sub(logSum, tf.sum(tf.mul(distribution, scaled), -1, true)), [B, answer]); // (B, A)
  return { logprobs, entropy };
}

/** A head's reading of each hidden state. (B, N, D) → (B, N) */
export function readOut(head: Head, hidden: Tensor): Tensor {
  const [B, N, D] = hidden.shape as [number, number, number];
  const flat = tf.matMul(tf.reshape(hidden, [B * N, D]), tf.reshape(head.weight, [D, 1])); // (B N, 1)
  return tf.add(tf.reshape(flat, [B, N]), head.bias); // (B, N)
}

/** 1 where an answer of the given lengths has a token (its EOS counts), else 0. (B) int32 → (B, A) */
export function answerMask(lengths: Tensor, answer: number): Tensor {
  const columns = tf.reshape(tf.range(0, answer, 1, 'int32'), [1, answer]); // (1, A)
  return tf.cast(tf.less(columns, tf.reshape(lengths, [-1, 1])), 'float32'); // (B, A)
}

function rmsNorm(x: Tensor, weight: Tensor, epsilon: number): Tensor {
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), epsilon))), weight);
}

/** 0 where a query may look, −1e9 elsewhere: never ahead, never at the padding on the left. → (B, 1, T, T) */
function attentionBias(start: Tensor, T: number): Tensor {
  const columns = tf.range(0, T, 1, 'int32');
  const query = tf.reshape(columns, [1, 1, T, 1]);
  const key = tf.reshape(columns, [1, 1, 1, T]);
  const allowed = tf.logicalAnd(tf.lessEqual(key, query), tf.greaterEqual(key, tf.reshape(start, [-1, 1, 1, 1]))); // (B, 1, T, T)
  return tf.mul(tf.cast(tf.logicalNot(allowed), 'float32'), -1e9);
}

/**
 * Rotary tables, each (1, T, 1, hd), the two halves of a head alike (Hugging Face's rotate_half). A row's padding shifts all
 * its positions alike, and rotations only see differences, so no row needs positions of its own.
 */
function rotaryTables({ head_dim: hd, rope_theta: theta }: ModelConfig, T: number): { cos: Tensor; sin: Tensor } {
  const angles = new Float32Array(T * hd);
  for (let t = 0; t < T; t++)
    for (let i = 0; i < hd; i++) angles[t * hd + i] = t * theta ** ((-2 * (i % (hd / 2))) / hd);
  const shape: [number, number, number, number] = [1, T, 1, hd];
  return { cos: tf.tensor4d(angles.map(Math.cos), shape), sin: tf.tensor4d(angles.map(Math.sin), shape) };
}
