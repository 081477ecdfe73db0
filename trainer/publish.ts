// Stage 5, deployment: a trained policy as the files that people and the edge read.

import { writeSafetensors } from '../schema/safetensors.ts';
import { filesOf } from './manifest.ts';
import type { Parameters } from './model.ts';
import type { Policy } from './policy.ts';
import { toHuggingFace } from './weights.ts';

/** Every file of a policy by name; the weights once for people (bf16) and once for the decoder. */
export function policyFiles(policy: Policy, parameters: Parameters): Map<string, Uint8Array> {
  const tensors = toHuggingFace(policy.config, parameters);
  return filesOf(policy, writeSafetensors(tensors, 'BF16'), tensors);
}
