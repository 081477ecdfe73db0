// A policy's files and their manifest. Needs no training engine.

import { createHash } from 'node:crypto';
import { packEdge } from '../schema/edge.ts';
import { newId } from '../schema/ids.ts';
import type { Manifest } from '../schema/manifest.ts';
import type { FloatTensor } from '../schema/safetensors.ts';
import type { Policy } from './policy.ts';

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Its files by name: the texts as they are, the weights, and the image that the edge maps. */
export function filesOf(policy: Policy, weights: Uint8Array, tensors: Map<string, FloatTensor>) {
  const text = new TextEncoder();
  return new Map<string, Uint8Array>([
    ['config.json', text.encode(`${JSON.stringify(policy.config, null, 2)}\n`)],
    ...Object.entries(policy.files).map(([name, content]) => [name, text.encode(content)] as const),
    ['model.safetensors', weights],
    ['edge.bin', packEdge(policy.config, tensors)],
  ]);
}

/** The manifest of files that are about to be published; line says where the policy comes from (nothing for an import). */
export function manifestOf(
  policy: Policy,
  files: Map<string, Uint8Array>,
  name: string,
  line: Partial<Pick<Manifest, 'parent' | 'root' | 'run' | 'snapshot' | 'metrics'>> = {},
): Manifest {
  const id = newId('policy');
  return {
    object: 'policy',
    id,
    name,
    created_at: new Date().toISOString(),
    config: policy.config,
    tokenizer: { chat_template: policy.chatTemplate },
    files: [...files].map(([file, bytes]) => ({
      name: file as Manifest['files'][number]['name'],
      sha256: sha256(bytes),
      bytes: bytes.length,
    })),
    parent: null,
    root: id,
    run: null,
    snapshot: null,
    metrics: {},
    ...line,
  };
}
