import { appendFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { requireFinite, toFile, toTerminal } from '../../trainer/metrics.ts';

test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
  '%s is told with stage, number and step',
  (value) => {
    requireFinite('ppo', 3, { 'objective/kl': 1 });
    expect(() => requireFinite('ppo', 3, { 'objective/kl': 1, 'ppo/loss/total': value })).toThrow(
      `ppo: ppo/loss/total is ${value} at step 3`,
    );
  },
);

test('rate and time left are of the steps made here, where a stage goes on in its middle, too', () => {
  vi.useFakeTimers();
  try {
    const written: string[] = [];
    const report = toTerminal({ isTTY: true, write: (text: string) => written.push(text) } as never);
    for (const step of [50, 51, 52]) {
      report({ stage: 'ppo', step, steps: 60, metrics: { 'objective/kl': 1 } });
      vi.advanceTimersByTime(500);
    }
    expect(written[0]).toContain('ppo 50/60    ');
    expect(written[2]).toContain('ppo 52/60  2.0 steps/s  4 s left  objective/kl 1.000');
  } finally {
    vi.useRealTimers();
  }
});

test('each number stands in the file once, though a stage that was cut off does some steps again', () => {
  const folder = mkdtempSync(join(tmpdir(), 'plumb-metrics-'));
  const path = join(folder, 'metrics.jsonl');
  try {
    const work = (stage: string, steps: number[], value: number, name = `${stage}/loss`) => {
      for (const step of steps) report({ stage, step, steps: 9, metrics: { [name]: value } });
    };
    let report = toFile(path);
    work('reward', [1, 2, 3], 1);
    work('reward', [1], 1, 'reward/accuracy');
    work('ppo', [1, 2, 3, 4], 1);
    appendFileSync(path, '{"stage":"ppo","st'); // here the power went
    report = toFile(path);
    work('reward', [1], 2, 'reward/accuracy');
    work('ppo', [3, 4, 5], 2);
    const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
    expect(lines.map((line) => JSON.parse(line)).map(({ step, time: _, stage: __, ...rest }) => [step, rest])).toEqual([
      ...[1, 2, 3].map((step) => [step, { 'reward/loss': 1 }]),
      ...[1, 2].map((step) => [step, { 'ppo/loss': 1 }]),
      [1, { 'reward/accuracy': 2 }],
      ...[3, 4, 5].map((step) => [step, { 'ppo/loss': 2 }]),
    ]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
