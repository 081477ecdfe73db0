// Stage 5, publishing: a policy as the files that people and the edge read. The manifest that names them is manifest.ts's.

import { packEdge } from '../schema/edge.ts';
import { writeSafetensors } from '../schema/safetensors.ts';
import type { Parameters } from './model.ts';
import type { Policy } from './policy.ts';
import { toHuggingFace } from './weights.ts';

/** Every file of a policy by name; the weights once for people (bf16) and once for the decoder. */
export function policyFiles(policy: Policy, parameters: Parameters): Map<string, Uint8Array> {
  const tensors = toHuggingFace(policy.config, parameters);
  const text = new TextEncoder();
  return new Map([
    ['config.json', text.encode(`${JSON.stringify(policy.config, null, 2)}\n`)],
    ...Object.entries(policy.files).map(([name, content]) => [name, text.encode(content)] as const),
    ['model.safetensors', writeSafetensors(tensors, 'BF16')],
    ['edge.bin', packEdge(policy.config, tensors)],
  ]);
}
