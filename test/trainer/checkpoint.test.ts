import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
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

test('values that are not finite are no state: they are named by stage, step and path', () => {
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
    const actor = { parameters: { layers: [{ qkv: tf.tensor1d([1, value, 3]) as Tensor }] } };
    expect(() => treeToFile({ actor }, { stage: 'ppo', step: 12 })).toThrow(
      'ppo: actor/parameters/layers/0/qkv holds values that are not finite at step 12',
    );
  }
  const large = { v: tf.tensor1d([3.4e38, -3.4e38, 1e-45]) };
  expect(() => treeToFile(large)).not.toThrow();
});

test('a disk that fills up half way leaves the file that was there, and nothing beside it', () => {
  const folder = mkdtempSync(join(tmpdir(), 'plumb-'));
  const path = join(folder, 'state.safetensors');
  const before = treeToFile(tree());
  writeWhole(path, before);
  // Files of this process may not grow beyond a limit, as on a disk of that size.
  const code = `import { writeWhole } from ${JSON.stringify(join(import.meta.dirname, '../../trainer/folder.ts'))};
    process.on('SIGXFSZ', () => {});
    writeWhole(${JSON.stringify(path)}, new Uint8Array(4_000_000));`;
  const limited = ['-c', 'ulimit -f 1000; exec "$0" --input-type=module -e "$1"', process.execPath, code];
  const { status, stderr } = spawnSync('bash', limited, { encoding: 'utf8' });
  expect([status, stderr]).toEqual([1, expect.stringContaining(`${path}: EFBIG`)]);
  expect(readFileSync(path)).toEqual(Buffer.from(before));
  expect(readdirSync(folder)).toEqual(['state.safetensors']);
});
