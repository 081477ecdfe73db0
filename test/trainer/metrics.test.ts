import { expect, test, vi } from 'vitest';
import { toTerminal } from '../../trainer/metrics.ts';

test('rate and time left are of the steps made here, where a stage goes on in its middle, too', () => {
  vi.useFakeTimers();
  try {
    const written: string[] = [];
    const report = toTerminal({ isTTY: true, write: (text: string) => written.push(text) } as never);
    for (const step of [50, 51, 52]) {
      report({ stage: 'ppo', step, steps: 60, metrics: { 'objective/kl': 1 } });
      vi.advanceTimersByTime(500);
    }
    expect(written[0]).toContain('ppo 50/60  0.0 steps/s');
    expect(written[2]).toContain('ppo 52/60  2.0 steps/s  4 s left  objective/kl 1.000');
  } finally {
    vi.useRealTimers();
  }
});
