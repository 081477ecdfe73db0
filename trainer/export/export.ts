// A policy's files as others read them: a folder in Hugging Face's layout, or llama.cpp's .gguf file. Needs no training engine.

import { existsSync, readdirSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readTensors } from '../../schema/safetensors.ts';
import { makeFolder, writeWhole } from '../folder.ts';
import { policyFromFiles } from '../policy.ts';
import { UserError } from '../user-error.ts';
import { GGUF_TYPES, type GgufType, ggufMetadata, ggufTensors, writeGguf } from './gguf.ts';

/** Whether a policy can be written there, in such a type if one is asked for, is said before it is read. */
export function requireWritable(path: string, type?: GgufType): void {
  if (type && !path.endsWith('.gguf'))
    throw new UserError(
      `--type ${type} is of .gguf files: ${path} becomes a folder, whose weights are as they were published`,
    );
  if (path.endsWith('.gguf') && !existsSync(dirname(path)))
    throw new UserError(`there is no folder ${dirname(path)}: make it first`);
  if (path.endsWith('.gguf') ? existsSync(path) : existsSync(path) && !isEmptyFolder(path))
    throw new UserError(`${path} is there already: nothing is written over`);
}
const isEmptyFolder = (path: string) => statSync(path).isDirectory() && readdirSync(path).length === 0;

/** @param files the policy's, by name; the image that the edge maps stays behind */
export function exportTo(path: string, files: Map<string, Uint8Array>, name: string, type: GgufType = 'f16'): void {
  if (path.endsWith('.gguf')) {
    const policy = policyFromFiles(files);
    const tensors = ggufTensors(policy.config, readTensors(files.get('model.safetensors')!));
    const metadata = { ...ggufMetadata(policy, name), 'general.file_type': GGUF_TYPES[type][1] };
    writeWhole(path, writeGguf(metadata, tensors, type));
    return;
  }
  const isNew = !existsSync(path);
  makeFolder(path);
  try {
    for (const [file, bytes] of files) if (file !== 'edge.bin') writeWhole(join(path, file), bytes);
  } catch (error) {
    // half a folder would be in the way when it is done again
    for (const file of files.keys()) rmSync(join(path, file), { force: true });
    if (isNew) rmdirSync(path);
    throw error;
  }
}
