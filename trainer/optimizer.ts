// AdamW over a tree of tensors, inside compiled calls: parameters and moments in, new ones out, in the same memory. A batch comes in parts of
// one fixed shape, as pack.ts packs it, and the parts' gradients are summed before the step.

import { compile, dispose, flatten, type Precision, type Tree, unflatten } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';

type Moments = {
  step: Tensor; // ()
  m: Tensor[];
  v: Tensor[];
};
export type AdamState = Moments & {
  /** (): 1 once a batch came in parts. It is saved with the rest, for whoever goes on must add up as the one before did. */
  parted: Tensor;
};
interface AdamOptions<P extends Tree> {
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Decoupled; matrices only, never norms or biases. */
  weightDecay: number;
  /** The gradient's global norm is clipped to this. */
  clipNorm: number;
  /** Tensors that go so many times as far in a step, and do not decay: a few numbers that must get where weights need not. */
  quick?: { of: (parameters: P) => Tree; times: number };
  /** What is trained are adapters: many small tensors, whose step takes longer to compile than it runs in all. */
  adapters?: boolean;
}

/** From so many weights on a step is a call of its own, which holds less at its peak than one call with the gradients (LOG.md). */
const ALONE = 50e6;

export const adamState = (parameters: Tree): AdamState => {
  const tensors = flatten(parameters);
  return {
    step: tf.scalar(0),
    parted: tf.scalar(0),
    m: tensors.map((t) => tf.zerosLike(t)),
    v: tensors.map((t) => tf.zerosLike(t)),
  };
};

/**
 * The gradient of a loss with respect to every tensor of a tree.
 * @param loss of the parameters, () ; whatever else it returns is handed through
 */
function gradients<P extends Tree, Values extends { loss: Tensor } & Record<string, Tensor>>(
  parameters: P,
  loss: (parameters: P) => Values,
): { grads: Tensor[]; values: Values } {
  let values: Values | undefined;
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
function adamStep<P extends Tree>(
  parameters: P,
  grads: Tensor[],
  state: Moments,
  learningRate: Tensor,
  { beta1, beta2, epsilon, weightDecay, clipNorm, quick }: AdamOptions<P>,
): { parameters: P; adam: Moments; norm: Tensor } {
  const norm = tf.sqrt(tf.addN(grads.map((g) => tf.sum(tf.square(g)) as never))); // ()
  const scale = tf.minimum(1, tf.div(clipNorm, tf.add(norm, 1e-6))); // ()
  const step = tf.add(state.step, 1); // ()
  const corrected = tf.mul(
    learningRate,
    tf.div(tf.sqrt(tf.sub(1, tf.pow(beta2, step))), tf.sub(1, tf.pow(beta1, step))),
  ); // ()
  const hasty = new Set(quick ? flatten(quick.of(parameters)) : []);
  const m: Tensor[] = [];
  const v: Tensor[] = [];
  const next = flatten(parameters).map((parameter, i) => {
    const g = tf.mul(grads[i]!, scale);
    m.push(tf.add(tf.mul(state.m[i]!, beta1), tf.mul(g, 1 - beta1)));
    v.push(tf.add(tf.mul(state.v[i]!, beta2), tf.mul(tf.square(g), 1 - beta2)));
    const rate = hasty.has(parameter) ? tf.mul(corrected, quick!.times) : corrected;
    const update = tf.div(tf.mul(m[i]!, rate), tf.add(tf.sqrt(v[i]!), epsilon));
    const decay = parameter.rank > 1 && !hasty.has(parameter) ? tf.sub(1, tf.mul(learningRate, weightDecay)) : 1;
    return tf.sub(tf.mul(parameter, decay), update);
  });
  return { parameters: unflatten(parameters, next) as P, adam: { step, m, v }, norm };
}

/**
 * Compiles the training of a loss. A batch that is one part is one call: forward, backward, clipping, Adam. A batch of several,
 * or any of a large model or of adapters, is a call for each part, which adds to the gradient's sum, and one for Adam's step, which
 * adapters do without; parameters, moments and sums stay where they are in memory.
 * @param loss of one part, () ; the parts' losses, and whatever else it returns, sum to those of the batch; its third argument is what is
 * not trained
 * @param precision of the products of forward and backward; weights, sums and Adam's step are float32
 * @param peaks which of the values do not sum: their largest is the batch's
 * @returns a function from parameters, moments and a batch's parts to what they become. It frees all that it is given but what is not trained.
 */
export function trainer<
  P extends Tree,
  Part extends Tree,
  Values extends { loss: Tensor } & Record<string, Tensor>,
  Frozen extends Tree = [],
>(
  name: string,
  loss: (parameters: P, part: Part, frozen: Frozen) => Values,
  options: AdamOptions<P>,
  precision: Precision = 'float32',
  peaks: (keyof Values)[] = [],
) {
  type State = { parameters: P; adam: Moments };
  const whole = compile(
    `${name} step`,
    ({ parameters, adam }: State, part: Part, rate: Tensor, frozen: Frozen) => {
      const { grads, values } = gradients(parameters, (p) => loss(p, part, frozen));
      const { norm, ...state } = adamStep(parameters, grads, adam, rate, options);
      return { state, norm, values };
    },
    { state: true, precision },
  );
  const accumulate = compile(
    `${name} gradient`,
    (sums: Tensor[], parameters: P, part: Part, frozen: Frozen) => {
      const { grads, values } = gradients(parameters, (p) => loss(p, part, frozen));
      return { state: sums.map((sum, i) => tf.add(sum, grads[i]!)), values };
    },
    { state: true, precision },
  );
  const update = compile(
    `${name} update`,
    ({ parameters, adam }: State, sums: Tensor[], rate: Tensor) => {
      const { norm, ...state } = adamStep(parameters, sums, adam, rate, options);
      return { state, norm };
    },
    { state: true, xla: !options.adapters },
  );
  return (given: P, adam: AdamState, learningRate: number, parts: Part[], frozen: Frozen = [] as never) => {
    // once a batch came in parts, one that is a single part goes the same way: nothing more is compiled for it
    const { parted: before, ...moments } = adam;
    const large = flatten(given).reduce((sum, { size }) => sum + size, 0) > ALONE;
    const inParts = options.adapters || large || parts.length > 1 || before.dataSync()[0] === 1;
    const parted = tf.scalar(inParts ? 1 : 0);
    dispose(before);
    const rate = tf.scalar(learningRate);
    const values: Record<string, number> = {};
    const sumUp = (of: Tree) => {
      for (const [key, tensor] of Object.entries(of as Values)) {
        const value = tensor.dataSync()[0] as number;
        const sum = values[key];
        values[key] = sum === undefined ? value : peaks.includes(key) ? Math.max(sum, value) : sum + value;
      }
      dispose(of);
    };
    let result: { state: State; norm: Tensor };
    if (inParts) {
      let sums = flatten(given).map((tensor) => tf.zerosLike(tensor));
      for (const part of parts) {
        const { state, values } = accumulate(sums, given, part, frozen);
        sums = state;
        sumUp(values);
        dispose(part);
      }
      result = update({ parameters: given, adam: moments }, sums, rate);
      dispose(sums);
    } else {
      const { values, ...rest } = whole({ parameters: given, adam: moments }, parts[0]!, rate, frozen);
      result = rest;
      sumUp(values);
      dispose(parts);
    }
    const norm = result.norm.dataSync()[0] as number;
    dispose(rate, result.norm);
    const { parameters, adam: after } = result.state;
    return { parameters, adam: { ...after, parted }, norm, values: values as Record<keyof Values, number> };
  };
}
