import { expect, test } from 'vitest';
import { calibrationOf, concordanceOf, type Preferred, preferredIn, tableOf } from '../../trainer/calibration.ts';
import { random } from '../../trainer/random.ts';
import { judged } from '../support/judged.ts';

const pair = (margin: number, rest: Partial<Preferred> = {}): Preferred => ({
  margin,
  weight: 1,
  kind: 'choice',
  rater: null,
  cohorts: {},
  answers: 'x or y',
  better: 'x',
  ...rest,
});
const P = (p: number) => Math.log(p / (1 - p)); // the margin of a probability

test('log loss, Brier score, error and bins are those of a small example by hand', () => {
  // sure of .8 twice, right once; sure of .6 once, wrong
  const { asFitted, accuracy, pairs, byKind } = calibrationOf([
    pair(P(0.8)),
    pair(P(0.2)),
    pair(P(0.4), { kind: 'ranking' }),
  ]);
  expect([pairs, accuracy]).toEqual([3, 1 / 3]);
  expect(asFitted.logLoss).toBeCloseTo(-(Math.log(0.8) + Math.log(0.2) + Math.log(0.4)) / 3, 10);
  expect(asFitted.brier).toBeCloseTo((0.04 + 0.64 + 0.36) / 3, 10);
  expect(asFitted.ece).toBeCloseTo((2 * Math.abs(0.5 - 0.8) + Math.abs(0 - 0.6)) / 3, 10);
  expect(byKind).toEqual({ choice: { right: 0.5, pairs: 2 }, ranking: { right: 0, pairs: 1 } });
});

test('pairs count by their weight', () => {
  const { accuracy, asFitted } = calibrationOf([pair(P(0.7), { weight: 3 }), pair(P(0.3))]);
  expect(accuracy).toBe(0.75);
  expect(asFitted.brier).toBeCloseTo((3 * 0.09 + 0.49) / 4, 10);
});

test('the temperature is that of the least log loss: 2.5 where margins are 2.5 times too large', () => {
  const rng = random(2);
  const pairs = Array.from({ length: 20_000 }, () => {
    const margin = 1.5 * rng.normal();
    return pair(2.5 * (rng() < 1 / (1 + Math.exp(-margin)) ? margin : -margin));
  });
  const { temperature, asFitted, tempered, reliability } = calibrationOf(pairs);
  expect(Math.abs(temperature - 2.5)).toBeLessThan(0.15);
  expect(tempered.logLoss).toBeLessThan(asFitted.logLoss);
  expect(tempered.ece).toBeLessThan(0.02);
  expect(asFitted.ece).toBeGreaterThan(0.05);
  for (const { confidence, accuracy, from, to } of reliability) {
    expect(confidence).toBeGreaterThanOrEqual(from);
    expect(confidence).toBeLessThanOrEqual(to);
    expect(Math.abs(confidence - accuracy)).toBeLessThan(0.05);
  }
  expect(reliability.reduce((sum, bin) => sum + bin.pairs, 0)).toBe(20_000);
});

test('what is always right or always wrong has a temperature at the end of its range, and finite figures', () => {
  expect(calibrationOf([pair(1)]).temperature).toBeCloseTo(1 / 20, 5);
  const wrong = calibrationOf([pair(-4000)]);
  expect(wrong.temperature).toBeCloseTo(20, 3);
  expect(wrong.asFitted.logLoss).toBeCloseTo(4000, 6);
});

test('the worst cohort is named, of those with ten pairs at least', () => {
  const of = (team: string, right: number, wrong: number) =>
    [...Array(right).fill(1), ...Array(wrong).fill(-1)].map((margin) => pair(margin, { cohorts: { team } }));
  const { byCohort, worstCohort } = calibrationOf([...of('red', 9, 3), ...of('blue', 4, 6), ...of('few', 0, 2)]);
  expect(worstCohort).toBe('team=blue');
  expect(byCohort['team=red']).toEqual({ right: 0.75, pairs: 12 });
});

test('raters who preferred one of the same two answers agree or not; one alone, or one who is not known, with nobody', () => {
  const by = (rater: string | null, better: string, answers = 'x or y') => pair(1, { rater, better, answers });
  const votes = [by('ann', 'x'), by('bob', 'x'), by('eve', 'y'), by(null, 'y'), by('ann', 'p', 'p or q')];
  expect(calibrationOf(votes).agreement).toEqual({ right: 1 / 3, pairs: 3 });
  expect(calibrationOf([by('ann', 'x')]).agreement).toBeNull();
});

test('a judgement’s pairs share its weight, scaled margins, and are the same whoever saw them in whichever order', () => {
  const rows = [0, 1, 2].map((id) => ({ prompt: [7], answer: [id] }));
  const stages = [{ remaining: [0, 1, 2], chosen: [1], weight: 1 }];
  const one = preferredIn([judged(rows, { texts: ['a', 'b', 'c'], stages })], [[1, 2, 4]], 0.5);
  expect(one.map(({ margin, weight }) => [margin, weight])).toEqual([
    [0.5, 0.5],
    [-1, 0.5],
  ]);
  const turned = { texts: ['b', 'a'], stages: [{ remaining: [0, 1], chosen: [1], weight: 1 }] };
  const [other] = preferredIn([judged(rows.slice(0, 2), turned)], [[0, 0]], 1);
  expect(other!.answers).toBe(one[0]!.answers);
  expect([one[0]!.better, other!.better]).toEqual(['b', 'a']);
});

test('concordance is how often of two unequal values the higher scores higher, equal scores by half', () => {
  const of = (...all: [score: number, value: number][]) =>
    concordanceOf(all.map(([score, value]) => ({ score, value })));
  expect(of([1, 5], [2, 3], [0, 1], [2, 5])).toEqual({ right: 3.5 / 5, pairs: 5 });
  expect(of([1, 5], [2, 5])).toBeNull();
});

test('the table says what there is', () => {
  const preferences = calibrationOf(
    Array.from({ length: 12 }, (_, i) => pair(i - 2, { rater: `${i}`, cohorts: { team: 'red' } })),
  );
  const byAspect = { tone: { right: 0.7, pairs: 30 } };
  const lines = tableOf({ preferences, thumbs: null, byAspect, byOutcome: {} }).join('\n');
  expect(lines).toMatch(/pairs of a choice +79\.2 % of 12/);
  expect(lines).toMatch(/worst, team=red +79\.2 % of 12/);
  expect(lines).toMatch(/raters agree +100\.0 % of 66/);
  expect(lines).toMatch(/ordered by tone +70\.0 % of 30/);
  expect(lines).toMatch(/temperature [\d.]+: log loss/);
});
