// Where the weights of a folder in Hugging Face's layout are: in model.safetensors, or in several files beside
// model.safetensors.index.json, which says what is in which.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { inWords, MalformedFile } from '../../schema/malformed.ts';
import {
  type FloatTensor,
  inFloats,
  readSafetensors,
  readTensors,
  type StoredTensor,
  writeSafetensors,
} from '../../schema/safetensors.ts';
import { reading, requireFolder, UserError } from '../user-error.ts';

const WHOLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
/** Names of files, not ways out of the folder. */
const Index = z.looseObject({
  weight_map: z.record(
    z.string(),
    z.string().regex(/^[\w-][\w.-]*\.safetensors$/, 'is no name of a .safetensors file'),
  ),
});

function shardsOf(folder: string): Record<string, string> {
  const path = join(folder, INDEX);
  return reading(path, () => {
    let json: unknown;
    try {
      json = JSON.parse(readFileSync(path, 'utf8'));
    } catch (error) {
      throw error instanceof SyntaxError ? new MalformedFile('is not JSON') : error;
    }
    const { data, error } = Index.safeParse(json);
    if (error) throw new MalformedFile(inWords(error));
    return data.weight_map;
  });
}

const isSharded = (folder: string) => !existsSync(join(folder, WHOLE)) && existsSync(join(folder, INDEX));

/** The files that the weights are in. */
export function weightFiles(folder: string): string[] {
  requireFolder(folder);
  const names = isSharded(folder) ? [...new Set(Object.values(shardsOf(folder)))].sort() : [WHOLE];
  for (const name of names)
    if (!existsSync(join(folder, name)))
      throw new UserError(`${folder} has no ${name}${name === WHOLE ? '' : `, which its ${INDEX} names`}`);
  return names.map((name) => join(folder, name));
}

/** The weights by their names; of several files those that the index says are there. */
function stored(folder: string): Map<string, StoredTensor> {
  const files = weightFiles(folder);
  const read = (file: string) => reading(file, () => readSafetensors(readFileSync(file)));
  if (!isSharded(folder)) return read(files[0]!);
  const out = new Map<string, StoredTensor>();
  const shards = new Map(files.map((file) => [file, read(file)]));
  for (const [name, shard] of Object.entries(shardsOf(folder))) {
    const file = join(folder, shard);
    const tensor = shards.get(file)!.get(name);
    if (!tensor) throw new UserError(`${file} has no ${name}, which the ${INDEX} says is there`);
    out.set(name, tensor);
  }
  return out;
}

export const folderTensors = (folder: string): Map<string, FloatTensor> => inFloats(stored(folder));

/** The weights, and the one file that they are published in: the folder's own, or of several what is in them, in a type that loses nothing. */
export function folderWeights(folder: string): { tensors: Map<string, FloatTensor>; file: Uint8Array } {
  if (!isSharded(folder)) {
    const [path] = weightFiles(folder) as [string];
    return reading(path, () => {
      const file = readFileSync(path);
      return { tensors: readTensors(file), file };
    });
  }
  const all = stored(folder);
  const tensors = inFloats(all);
  const [only, ...others] = new Set([...all.values()].map(({ dtype }) => dtype));
  return { tensors, file: writeSafetensors(tensors, only && others.length === 0 ? only : 'F32') };
}
