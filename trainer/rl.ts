// The mathematics of RLHF with PPO, apart from any model. Host side: arrays of (rows × answer columns), row after row, with a
// length a row. In the graph: losses on tensors (N), one number a token. Conventions are those of OpenAI's lm-human-preferences, of which
// "The N Implementation Details of RLHF with PPO" (Huang et al. 2023) tells the fine print.

import { type Tensor, tf } from './engine/tf.ts';

/** Numbers for each token of each answer: `columns` a row, of which the row's first `lengths[b]` count. */
export interface PerToken {
  columns: number;
  lengths: ArrayLike<number>;
}

/** Calls back for each token that counts. */
function eachToken({ columns, lengths }: PerToken, visit: (index: number, row: number, column: number) => void): void {
  for (let row = 0; row < lengths.length; row++) {
    for (let column = 0; column < Math.min(lengths[row]!, columns); column++)
      visit(row * columns + column, row, column);
  }
}

/**
 * The reward of each token: −β·k1 for straying from the reference, k1 = log π − log π_ref, and the answer's score on its last
 * token (its EOS where it has one).
 * @param logprobs of the policy that sampled, as the trainer computes them
 * @returns rewards, k1 for each token, and the other two estimators of Schulman's "Approximating KL divergence": k2 = k1²/2, which is
 * biased and varies little, and k3 = (r − 1) − log r with r = π_ref/π, which is neither
 */
export function penalisedRewards(
  logprobs: Float32Array,
  reference: Float32Array,
  scores: ArrayLike<number>,
  beta: number,
  shape: PerToken,
): Record<'rewards' | 'k1' | 'k2' | 'k3', Float32Array> {
  const rewards = new Float32Array(logprobs.length);
  const k1 = new Float32Array(logprobs.length);
  const k2 = new Float32Array(logprobs.length);
  const k3 = new Float32Array(logprobs.length);
  eachToken(shape, (i, row, column) => {
    k1[i] = logprobs[i]! - reference[i]!;
    k2[i] = k1[i]! ** 2 / 2;
    k3[i] = Math.expm1(-k1[i]!) + k1[i]!;
    rewards[i] = -beta * k1[i]! + (column === shape.lengths[row]! - 1 ? scores[row]! : 0);
  });
  return { rewards, k1, k2, k3 };
}

/**
 * Generalised advantage estimation (Schulman et al. 2016, eq. 16), from the last token of each answer backwards; beyond it the
 * value is 0, for an answer is one episode.
 * @returns advantages and returns (advantage + value)
 */
export function gae(
  rewards: Float32Array,
  values: Float32Array,
  { gamma, lambda }: { gamma: number; lambda: number },
  shape: PerToken,
): { advantages: Float32Array; returns: Float32Array } {
  const advantages = new Float32Array(rewards.length);
  const returns = new Float32Array(rewards.length);
  for (let row = 0; row < shape.lengths.length; row++) {
    let next = 0;
    let nextValue = 0;
    for (let column = shape.lengths[row]! - 1; column >= 0; column--) {
      const i = row * shape.columns + column;
      const delta = rewards[i]! + gamma * nextValue - values[i]!;
      next = delta + gamma * lambda * next;
      advantages[i] = next;
      returns[i] = next + values[i]!;
      nextValue = values[i]!;
    }
  }
  return { advantages, returns };
}

/** Scales the tokens that count to variance 1 (biased, as lm-human-preferences has it) and, if asked, to mean 0. */
export function whiten(x: Float32Array, shiftMean: boolean, shape: PerToken): Float32Array {
  let count = 0;
  let sum = 0;
  let squares = 0;
  eachToken(shape, (i) => {
    count++;
    sum += x[i]!;
  });
  const mean = sum / count;
  eachToken(shape, (i) => {
    squares += (x[i]! - mean) ** 2;
  });
  const scale = 1 / Math.sqrt(squares / count + 1e-8);
  const out = new Float32Array(x.length);
  eachToken(shape, (i) => {
    out[i] = (x[i]! - mean) * scale + (shiftMean ? 0 : mean);
  });
  return out;
}

/** The KL coefficient after a batch (Ziegler et al. 2019, §2.2): β·(1 + clip(KL/target − 1, ±.2)·n/horizon). */
export function adaptedBeta(
  beta: number,
  kl: number,
  { target, horizon }: { target: number; horizon: number },
  n: number,
): number {
  return beta * (1 + (Math.max(-0.2, Math.min(0.2, kl / target - 1)) * n) / horizon);
}

/** Mean over the tokens that count. */
export function tokenMean(x: ArrayLike<number>, shape: PerToken): number {
  let sum = 0;
  let count = 0;
  eachToken(shape, (i) => {
    sum += x[i]!;
    count++;
  });
  return sum / count;
}

/** Variance over the tokens that count, biased as tf.nn.moments has it. */
export function tokenVariance(x: ArrayLike<number>, shape: PerToken): number {
  const mean = tokenMean(x, shape);
  return tokenMean(
    Float64Array.from(x, (value) => (value - mean) ** 2),
    shape,
  );
}

/** Mean over rows of the sum over each row's tokens: nats a sequence for k1. */
export function sequenceMean(x: ArrayLike<number>, shape: PerToken): number {
  return tokenMean(x, shape) * meanLength(shape);
}

export function meanLength({ columns, lengths }: PerToken): number {
  let sum = 0;
  for (let row = 0; row < lengths.length; row++) sum += Math.min(lengths[row]!, columns);
  return sum / lengths.length;
}

/**
 * The truncated importance weight of each token, min(π_trainer / π_rollout, cap): what was sampled came from the served
 * image, whose numbers are rounded, while the gradient is the trainer's (Yao et al. 2025, "off-policy RL … rollout mismatch").
 * @returns the weights with their mean, the largest ratio before the cap, the share of tokens whose weight was capped, and how many tokens they are worth
 * (Kish's effective sample size (Σw)²/Σw², as a share of all)
 */
export function mismatch(trainer: Float32Array, rollout: Float32Array, cap: number, shape: PerToken) {
  const weights = new Float32Array(trainer.length);
  let [count, capped, sum, squares, max] = [0, 0, 0, 0, 0];
  eachToken(shape, (i) => {
    const ratio = Math.exp(trainer[i]! - rollout[i]!);
    const weight = Math.min(cap, ratio);
    weights[i] = weight;
    count++;
    if (ratio > cap) capped++;
    sum += weight;
    squares += weight ** 2;
    max = Math.max(max, ratio);
  });
  return { weights, mean: sum / count, max, capped: capped / count, effective: sum ** 2 / squares / count };
}

const weighed = (x: Tensor, weight: Tensor): Tensor => tf.sum(tf.mul(x, weight)); // (N) → ()

/**
 * PPO's clipped policy loss (Schulman et al. 2017, eq. 7), with a second bound where the advantage is negative: a token that became
 * far more likely would otherwise pull without limit (dual clip, Ye et al. 2020, eq. 6). All (N); the results ().
 * @param importance truncated importance weights, 1 where sampler and trainer agree
 * @param weight of each token in the means: 1 / count where it counts, else 0
 */
export function policyLoss(
  logprobs: Tensor,
  old: Tensor,
  advantages: Tensor,
  importance: Tensor,
  weight: Tensor,
  { clip, dualClip }: { clip: number; dualClip: number },
) {
  const logRatio = tf.sub(logprobs, old); // (N)
  const ratio = tf.exp(logRatio); // (N)
  const plain = tf.neg(tf.mul(advantages, ratio)); // (N)
  const clipped = tf.neg(tf.mul(advantages, tf.clipByValue(ratio, 1 - clip, 1 + clip))); // (N)
  const single = tf.maximum(plain, clipped); // (N)
  const bounded = Number.isFinite(dualClip)
    ? tf.where(tf.less(advantages, 0), tf.minimum(single, tf.mul(advantages, -dualClip)), single) // (N)
    : single;
  return {
    loss: weighed(tf.mul(bounded, importance), weight),
    clipfrac: weighed(tf.cast(tf.greater(clipped, plain), 'float32'), weight),
    approxkl: weighed(tf.mul(tf.square(logRatio), 0.5), weight),
    ratio: weighed(ratio, weight),
    ratioError: weighed(tf.abs(tf.sub(ratio, 1)), weight),
    ratioErrorMax: tf.max(tf.mul(tf.abs(tf.sub(ratio, 1)), tf.cast(tf.greater(weight, 0), 'float32'))),
  };
}

/** Half the squared error of the values, clipped around their old ones. All (N); the results (). */
export function valueLoss(values: Tensor, old: Tensor, returns: Tensor, weight: Tensor, clip: number) {
  const near = tf.add(old, tf.clipByValue(tf.sub(values, old), -clip, clip)); // (N)
  const plain = tf.square(tf.sub(values, returns)); // (N)
  const clipped = tf.square(tf.sub(near, returns)); // (N)
  return {
    loss: tf.mul(0.5, weighed(tf.maximum(plain, clipped), weight)),
    clipfrac: weighed(tf.cast(tf.greater(clipped, plain), 'float32'), weight),
    error: weighed(plain, weight),
  };
}

/** Biased. */
export const variance = (values: ArrayLike<number>): number => {
  const middle = mean(values);
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i]! - middle) ** 2;
  return sum / values.length;
};

export const mean = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  return sum / values.length;
};
