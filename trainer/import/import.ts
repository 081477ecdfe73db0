// A policy from a folder in Hugging Face's layout or from a GGUF file, made ready to publish: with the
// image that the edge maps.
// Needs no training engine.

import { requireWorkerRoom } from '../../functions/policy/room.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { writeSafetensors } from '../../schema/safetensors.ts';
import { filesOf, manifestOf } from '../manifest.ts';
import { readPolicy } from '../policy.ts';
import { reading, UserError } from '../user-error.ts';
import { folderWeights } from './from-folder.ts';
import { dtypesOf, isGguf, openGguf, tensorsOf } from './from-gguf.ts';

export function importFrom(path: string, name: string): { manifest: Manifest; files: Map<string, Uint8Array> } {
  const policy = readPolicy(path);
  try {
    reading(path, () => requireWorkerRoom(policy.config)); // before gigabytes are read that could not be served
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UserError(
      `${path} ${error.message}; where another server answers with it, plumb import https://… --model <its name> serves that`,
    );
  }
  const files = reading(path, () => {
    if (!isGguf(path)) {
      const { tensors, file } = folderWeights(path);
      return filesOf(policy, file, tensors);
    }
    const gguf = openGguf(path);
    const tensors = tensorsOf(gguf);
    const { matrices, vectors } = dtypesOf(gguf);
    return filesOf(policy, writeSafetensors(tensors, matrices, vectors), tensors);
  });
  return { manifest: manifestOf(policy, files, name), files };
}
