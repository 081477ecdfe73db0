// Stage 5, publishing: a policy as the files that people and the edge read, with the manifest that names them.

import { createHash } from 'node:crypto';
import { packEdge } from '../schema/edge.ts';
import { newId } from '../schema/ids.ts';
import type { Manifest } from '../schema/manifest.ts';
import { writeSafetensors } from '../schema/safetensors.ts';
import type { Parameters } from './model.ts';
import { type Policy, toHuggingFace } from './policy.ts';

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

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
    files: [...files].map(([file, bytes]) => ({ name: file as Manifest['files'][number]['name'], sha256: sha256(bytes), bytes: bytes.length })),
    parent: null,
    root: id,
    run: null,
    snapshot: null,
    metrics: {},
    ...line,
  };
}
