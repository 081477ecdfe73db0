// Ops that tfjs-node has in a form that cannot be traced, or does not have.

import { flatten, type Tree, unflatten } from './compile.ts';
import { typeAttribute } from './graph.ts';
import { backend, type Tensor, tf } from './tf.ts';

/**
 * Rows of a table. tf.gather reads the indices back to check them, which a traced call cannot; whoever makes the indices
 * keeps them in range (compiled code clamps them silently).
 * @param table (V, D) · @param indices (N) int32 · @returns (N, D)
 */
export const gatherRows = (table: Tensor, indices: Tensor): Tensor => {
  const { TF_ATTR_TYPE: TYPE, TF_ATTR_INT: INT, TF_FLOAT: FLOAT, TF_INT32: INT32 } = backend.binding;
  const attributes = [
    { name: 'Tparams', type: TYPE!, value: FLOAT },
    { name: 'Tindices', type: TYPE!, value: INT32 },
    { name: 'Taxis', type: TYPE!, value: INT32 },
    { name: 'batch_dims', type: INT!, value: 0 },
  ];
  return tf.customGrad((x, save) => {
    (save as (tensors: Tensor[]) => void)([indices]);
    return {
      value: backend.executeSingleOutput('GatherV2', attributes, [
        x as Tensor,
        indices,
        tf.scalar(0, 'int32'),
      ]) as never,
      gradFunc: (dy: Tensor, saved: Tensor[]) =>
        tf.unsortedSegmentSum(dy as never, saved[0] as never, table.shape[0]!) as never,
    };
  })(table);
};

/** The same numbers without a copy, yet another tensor to tfjs, for which a tf.clone is one with its original. */
export const twin = (x: Tensor): Tensor =>
  backend.executeSingleOutput('Identity', [typeAttribute('T', backend.getDTypeInteger(x.dtype))], [x]);

/**
 * f(x, weights, fixed), of whose inner tensors none is kept for the way back: there f runs once more (Chen et al. 2016, "Training Deep Nets
 * with Sublinear Memory Cost"). All that f reads comes as its arguments; what is fixed gets no gradient.
 */
export function recomputed<W extends Tree, F extends Tree>(
  f: (x: Tensor, weights: W, fixed: F) => Tensor,
  x: Tensor,
  weights: W,
  fixed: F,
): Tensor {
  const engine = tf.engine() as unknown as { state: { activeTape: unknown } };
  const others = flatten(fixed);
  return tf.customGrad((...given) => {
    const save = given.pop() as unknown as (tensors: Tensor[]) => void;
    save([...(given as Tensor[]), ...others]);
    const of =
      (fixed: F) =>
      (...[x, ...own]: Tensor[]) =>
        f(x!, unflatten(weights, own) as W, fixed);
    return {
      value: of(fixed)(...(given as Tensor[])) as never,
      gradFunc: (dy: Tensor, saved: Tensor[]) => {
        const [x, ...own] = saved.slice(0, saved.length - others.length);
        // Made to wait for dy: a compiler would otherwise find that all this was computed before, and keep that instead.
        const later = tf.add(x!, tf.mul(tf.sum(dy), 0));
        const outer = engine.state.activeTape; // which tfjs would forget
        const again = of(unflatten(fixed, saved.slice(saved.length - others.length)) as F);
        const grads = tf.grads(again as never)([later, ...own] as never, dy as never);
        engine.state.activeTape = outer;
        return grads as never;
      },
    };
  })(x as never, ...(flatten(weights) as never[])) as Tensor;
}
