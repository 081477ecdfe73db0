// What --plan makes of the steps that it times.
import { afterEach, expect, test, vi } from 'vitest';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { planned } from '../../trainer/plan.ts';

afterEach(() => vi.restoreAllMocks());

test.each([
  [0, '52 s'],
  [20, '1 min 2 s'],
])('the steps that are left take as long as those that were timed, and so do %i more', (extra, time) => {
  const lines: string[] = [];
  vi.spyOn(console, 'log').mockImplementation((line) => void lines.push(line));
  vi.spyOn(process, 'exit').mockImplementation(() => undefined as never);
  const now = vi.spyOn(performance, 'now');
  const { report, save, giveUp } = planned(1234, (metrics) => metrics.tokens!, extra);
  const state = tf.scalar(1) as Tensor;
  const step = (number: number, at: number) => {
    now.mockReturnValue(at);
    report({ stage: 'sft', step: number, steps: 100, metrics: { tokens: 4000 } });
    save(number, state);
  };
  step(1, 2000); // compiled in it: it tells nothing of the others
  step(2, 2500);
  step(3, 3000);
  try {
    step(4, 3500);
  } catch (error) {
    giveUp(error);
  }
  const rows = Object.fromEntries(lines.map((line) => line.split(/ {2,}/) as [string, string]));
  expect(rows).toMatchObject({ parameters: '1,234', 'tokens a step': '4,000', steps: '100', time });
});
