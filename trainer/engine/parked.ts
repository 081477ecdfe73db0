// Weights that lie in a file while nobody needs them: of a large model, those that only score are needed for a moment of each iteration.

import { closeSync, mkdtempSync, openSync, readSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { flatten, type Tree } from './compile.ts';
import { backend, FRUGAL } from './tf.ts';

/** Not /tmp, which lies in memory on many systems. */
const FOLDER = process.env.TMPDIR || '/var/tmp';
/** What statfs(2) says of a file system that is memory. */
const TMPFS = 0x01021994;

/** Disposed of, it brings them back for good. */
interface Parked extends Disposable {
  /** Brings the weights back while work goes on. */
  use<T>(work: () => T | Promise<T>): Promise<T>;
}

/**
 * Gives the memory of weights that do not change to others: they may be read within `use` alone until what is returned is disposed of. Those of a
 * small model stay where they are, and so do all if there is no disk with room for them (`TMPDIR`, or /var/tmp).
 */
export function parked(weights: Tree): Parked {
  const { binding, tensorMap } = backend;
  const tensors = flatten(weights);
  const stay: Parked = { use: async (work) => work(), [Symbol.dispose]: () => {} };
  if (tensors.reduce((sum, { size }) => sum + size, 0) < FRUGAL) return stay;
  backend.getInputTensorIds(tensors); // now none is JavaScript's alone
  const held = [...new Set(tensors.map(({ dataId }) => tensorMap.get(dataId)))]
    .filter(({ dtype, refCount }) => dtype === binding.TF_FLOAT && refCount === 1) // of what has other owners nothing would be freed
    .map((data) => ({ data, bytes: 4 * data.shape.reduce((a, b) => a * b, 1) }));

  let file: number | undefined;
  try {
    if (statfsSync(FOLDER).type === TMPFS) return stay;
    const folder = mkdtempSync(join(FOLDER, 'plumb-parked-'));
    file = openSync(join(folder, 'weights'), 'wx+');
    rmSync(folder, { recursive: true }); // however this process ends, nothing is left
    for (const { data } of held) {
      const { buffer, byteOffset, byteLength } = binding.tensorDataSync(data.id);
      const bytes = new Uint8Array(buffer, byteOffset, byteLength);
      for (let at = 0; at < byteLength; ) at += writeSync(file, bytes, at);
    }
  } catch {
    if (file !== undefined) closeSync(file);
    return stay;
  }
  const from = file;
  const leave = () => {
    for (const { data } of held) {
      binding.deleteTensor(data.id);
      data.id = -1;
    }
  };
  const bring = () => {
    const bytes = new Uint8Array(Math.max(0, ...held.map(({ bytes }) => bytes)));
    let place = 0;
    for (const { data, bytes: length } of held) {
      for (let at = 0; at < length; ) at += readSync(from, bytes, at, length - at, place + at);
      place += length;
      data.id = binding.createTensor(data.shape, data.dtype, new Float32Array(bytes.buffer, 0, length / 4));
    }
  };
  leave();
  return {
    async use(work) {
      bring();
      try {
        return await work();
      } finally {
        leave();
      }
    },
    [Symbol.dispose]() {
      bring();
      closeSync(from);
    },
  };
}
