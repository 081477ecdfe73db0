import { expect, test } from 'vitest';
import { measured, pooled } from '../../../trainer/seed/measure.ts';

test('answers drawn anew narrow a question’s gold, and count as one question', () => {
  const first = measured([0, 1, 0.5, 0.5], ['a b', 'a', 'a', 'a'], { ethics: 0.2 });
  const second = measured([1, 0, 0.5, 1], ['a b c d', 'a b', 'a b', 'a b'], { ethics: 0.4 });
  const both = pooled([first, second]);
  expect(both.each).toEqual([0.5, 0.5, 0.5, 0.75]);
  expect(both.gold.mean).toBeCloseTo(0.5625, 12);
  // the standard deviation of four means is 1/8
  expect(both.gold.high - both.gold.low).toBeCloseTo((2 * 1.96 * 0.125) / 2, 12);
  expect(both.figures.ethics).toBeCloseTo(0.3, 12);
  expect(both.length).toBeCloseTo((5 / 4 + 10 / 4) / 2, 12);
});

test('one draw is measured as it is', () => {
  const one = measured([0.2, 0.4, 0.9], ['a', 'b', 'c d'], { ethics: 1 });
  expect(pooled([one])).toEqual(one);
});
