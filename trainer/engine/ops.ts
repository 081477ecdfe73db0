// Ops that tfjs-node has in a form that cannot be traced.

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
