// A policy from a folder in Hugging Face's layout, made ready to publish: its files as they are, and the image that the edge maps.
// Needs no training engine.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packEdge } from '../../schema/edge.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { floats, readSafetensors } from '../../schema/safetensors.ts';
import { manifestOf } from '../manifest.ts';
import { readPolicy } from '../policy.ts';
import { UserError } from '../user-error.ts';

export function importFolder(folder: string, name: string): { manifest: Manifest; files: Map<string, Uint8Array> } {
  const policy = readPolicy(folder);
  const path = join(folder, 'model.safetensors');
  if (!existsSync(path)) throw new UserError(`${folder} has no model.safetensors`);
  const weights = readFileSync(path);
  const tensors = new Map(
    [...readSafetensors(weights)].map(([key, tensor]) => [key, { shape: tensor.shape, data: floats(tensor) }]),
  );
  const text = new TextEncoder();
  const files = new Map<string, Uint8Array>([
    ['config.json', text.encode(`${JSON.stringify(policy.config, null, 2)}\n`)],
    ...Object.entries(policy.files).map(([file, content]) => [file, text.encode(content)] as const),
    ['model.safetensors', weights],
    ['edge.bin', packEdge(policy.config, tensors)],
  ]);
  return { manifest: manifestOf(policy, files, name), files };
}
