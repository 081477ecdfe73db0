import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { crc32c, toTensorBoard } from '../../trainer/tensorboard.ts';
import { venvPython } from '../support/venv.ts';

test('the checksum is Castagnoli’s', () => {
  // RFC 3720, B.4
  expect(crc32c(new TextEncoder().encode('123456789'))).toBe(0xe3069283);
  expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
});

const READ = `
import json, sys
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
runs = EventMultiplexer().AddRunsFromDirectory(sys.argv[1])
runs.Reload()
print(json.dumps({run: {tag: [[e.step, e.value] for e in runs.Scalars(run, tag)] for tag in found["scalars"]} for run, found in runs.Runs().items()}))
`;

test('TensorBoard reads what was written, stage by stage; a process that goes on replaces the steps that it does again', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'tensorboard-'));
  const write = async (stage: string, steps: number[], value: (step: number) => number) => {
    const report = toTensorBoard(folder);
    for (const step of steps)
      await report({ stage, step, steps: 300, metrics: { 'objective/kl': value(step), 'ppo/lr': 1e-4 } });
  };
  await write('ppo', [1, 2, 3, 300], (step) => step / 2);
  await new Promise((resolve) => setTimeout(resolve, 5)); // files are told apart by the millisecond
  await write('ppo', [3, 4], (step) => -step);
  await write('reward', [1], () => 0.25);
  expect(readdirSync(join(folder, 'ppo'))).toHaveLength(2);
  const python = venvPython('test-tensorboard', ['tensorboard==2.20.0', 'setuptools<81'], '180 MB');
  const { stdout, stderr } = spawnSync(python, ['-c', READ, folder], { encoding: 'utf8' });
  expect(stdout, stderr).not.toBe('');
  const read = JSON.parse(stdout.trim().split('\n').at(-1)!);
  expect(read.ppo['objective/kl']).toEqual([
    [1, 0.5],
    [2, 1],
    [3, -3],
    [4, -4],
  ]);
  expect(read.ppo['ppo/lr'][0][1]).toBeCloseTo(1e-4, 9);
  expect(read.reward['objective/kl']).toEqual([[1, 0.25]]);
});
