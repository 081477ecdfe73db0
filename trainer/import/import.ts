// A policy from a folder in Hugging Face's layout or from a GGUF file, made ready to publish: with the
// image that the edge maps.
// Needs no training engine.

import { roomInSlot } from '../../functions/policy/room.ts';
import { isLarge, readEdge } from '../../schema/edge.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { writeSafetensors } from '../../schema/safetensors.ts';
import { filesOf, manifestOf } from '../manifest.ts';
import { readPolicy } from '../policy.ts';
import { reading, UserError } from '../user-error.ts';
import { folderWeights } from './from-folder.ts';
import { dtypeOf, isGguf, openGguf, tensorsOf } from './from-gguf.ts';

/** Image and one answer's cache, of a policy that decodes in the api's own isolate. */
const LARGEST = 115e6;

export function importFrom(path: string, name: string): { manifest: Manifest; files: Map<string, Uint8Array> } {
  const policy = readPolicy(path);
  const files = reading(path, () => {
    if (!isGguf(path)) {
      const { tensors, file } = folderWeights(path);
      return filesOf(policy, file, tensors);
    }
    const gguf = openGguf(path);
    const tensors = tensorsOf(gguf);
    return filesOf(policy, writeSafetensors(tensors, dtypeOf(gguf)), tensors);
  });
  const image = files.get('edge.bin')!;
  if (isLarge(policy.config)) {
    try {
      roomInSlot(readEdge(image));
    } catch (error) {
      throw error instanceof RangeError ? new UserError(`${path} ${error.message}`) : error;
    }
    return { manifest: manifestOf(policy, files, name), files };
  }
  const { num_hidden_layers, num_key_value_heads, head_dim, max_position_embeddings } = policy.config;
  const cache = 8 * num_hidden_layers * num_key_value_heads * head_dim * max_position_embeddings;
  if (image.length + cache > LARGEST)
    throw new UserError(
      `${path} asks for a cache of ${Math.ceil(cache / 1e6)} MB at ${max_position_embeddings} positions; with its image it has ${LARGEST / 1e6} MB: lower max_position_embeddings in config.json`,
    );
  return { manifest: manifestOf(policy, files, name), files };
}
