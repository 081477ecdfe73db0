// AdamW over a tree of tensors, inside a compiled step. Pure: parameters and moments in, new ones out.

import { flatten, type Tree, unflatten } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';

export type AdamState = {
  step: Tensor; // ()
  m: Tensor[];
  v: Tensor[];
};
export interface AdamOptions {
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Decoupled; matrices only, never norms or biases. */
  weightDecay: number;
  /** The gradient's global norm is clipped to this. */
  clipNorm: number;
}

export const adamState = (parameters: Tree): AdamState => {
  const tensors = flatten(parameters);
  return { step: tf.scalar(0), m: tensors.map((t) => tf.zerosLike(t)), v: tensors.map((t) => tf.zerosLike(t)) };
};

/**
 * The gradient of a loss with respect to every tensor of a tree.
 * @param loss of the parameters, () ; whatever else it returns is handed through
 */
export function gradients<P extends Tree, Other extends Record<string, Tensor>>(
  parameters: P,
  loss: (parameters: P) => { loss: Tensor } & Other,
): { grads: Tensor[]; values: { loss: Tensor } & Other } {
  let values: ({ loss: Tensor } & Other) | undefined;
  const of = tf.valueAndGrads((...tensors: Tensor[]) => {
    values = loss(unflatten(parameters, tensors) as P);
    for (const value of Object.values(values)) tf.keep(value);
    return values.loss as never;
  });
  const { grads } = of(flatten(parameters) as never);
  return { grads, values: values! };
}

/**
 * One step of AdamW (Loshchilov & Hutter 2019), ε in TensorFlow 1's form: lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε). PyTorch adds ε
 * after correcting v, which makes it √(1−β₂ᵗ) times smaller at first; PPO's approxkl notices.
 * @returns the new tree, the new state, and the gradient's norm before clipping
 */
export function adamStep<P extends Tree>(
  parameters: P,
  grads: Tensor[],
  state: AdamState,
  learningRate: Tensor,
  { beta1, beta2, epsilon, weightDecay, clipNorm }: AdamOptions,
): { parameters: P; state: AdamState; norm: Tensor } {
  const norm = tf.sqrt(tf.addN(grads.map((g) => tf.sum(tf.square(g)) as never))); // ()
  const scale = tf.minimum(1, tf.div(clipNorm, tf.add(norm, 1e-6))); // ()
  const step = tf.add(state.step, 1); // ()
  const corrected = tf.mul(
    learningRate,
    tf.div(tf.sqrt(tf.sub(1, tf.pow(beta2, step))), tf.sub(1, tf.pow(beta1, step))),
  ); // ()
  const m: Tensor[] = [];
  const v: Tensor[] = [];
  const next = flatten(parameters).map((parameter, i) => {
    const g = tf.mul(grads[i]!, scale);
    m.push(tf.add(tf.mul(state.m[i]!, beta1), tf.mul(g, 1 - beta1)));
    v.push(tf.add(tf.mul(state.v[i]!, beta2), tf.mul(tf.square(g), 1 - beta2)));
    const update = tf.div(tf.mul(m[i]!, corrected), tf.add(tf.sqrt(v[i]!), epsilon));
    const decay = parameter.rank > 1 ? tf.sub(1, tf.mul(learningRate, weightDecay)) : 1;
    return tf.sub(tf.mul(parameter, decay), update);
  });
  return { parameters: unflatten(parameters, next) as P, state: { step, m, v }, norm };
}
