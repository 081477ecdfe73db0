// The manifest of a policy's files.

import { createHash } from 'node:crypto';
import { newId } from '../schema/ids.ts';
import type { Manifest } from '../schema/manifest.ts';
import type { Policy } from './policy.ts';

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

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
