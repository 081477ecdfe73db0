import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { fileToTree, inFormOf, treeToFile } from '../../trainer/checkpoint.ts';
import { flatten } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { writeWhole } from '../../trainer/folder.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-checkpoint-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const tree = () => ({
  zeta: tf.scalar(0.1) as Tensor,
  layers: Array.from({ length: 12 }, (_, i) => ({ w: tf.tensor1d([i, i + 0.5]) as Tensor })),
});
const values = (t: ReturnType<typeof tree>) => flatten(t).map((x) => Array.from(x.dataSync()));

test('a tree comes back from its file bit for bit, its arrays in order, its keys in the form’s', () => {
  const form = tree();
  const back = inFormOf(form, fileToTree(treeToFile(form)));
  expect(values(back)).toEqual(values(form));
  expect(Object.keys(back)).toEqual(Object.keys(form));
});

test('tensors of another shape are those of another model, even if they hold as many numbers', () => {
  const form = { w: tf.zeros([2, 3]) as Tensor };
  for (const shape of [[3, 2], [6], [2, 4]])
    expect(() => inFormOf(form, fileToTree(treeToFile({ w: tf.zeros(shape) })))).toThrow(/another model/);
});

test('a file is there whole or not at all', () => {
  const path = join(folder, 'state.safetensors');
  writeWhole(path, treeToFile(tree()));
  expect(existsSync(`${path}.part`)).toBe(false);
  expect(readFileSync(path).length).toBe(treeToFile(tree()).length);
  expect(() => fileToTree(readFileSync(path).subarray(0, 700))).toThrow(/safetensors/);
});

test('a disk that is full is said with what was being written', () => {
  const path = join(folder, 'full.safetensors');
  symlinkSync('/dev/full', `${path}.part`);
  expect(() => writeWhole(path, new Uint8Array(10))).toThrow(`${path}: ENOSPC`);
});
