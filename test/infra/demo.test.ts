import { expect, test } from 'vitest';
import { goldRose } from '../../infra/demo.ts';
import type { Measured } from '../../trainer/seed/measure.ts';

test('gold rose only where its interval after lies above the one before', () => {
  const gold = (low: number, high: number) => ({ gold: { mean: (low + high) / 2, low, high } }) as Measured;
  const before = gold(0.4, 0.5);
  expect(goldRose(before, gold(0.51, 0.6))).toBe(true);
  for (const after of [gold(0.5, 0.6), gold(0.45, 0.6), gold(0.4, 0.5), gold(0.2, 0.3)])
    expect(goldRose(before, after)).toBe(false);
});
