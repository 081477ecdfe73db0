import { writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { newId } from '../../schema/ids.ts';
import type { Vote } from '../../schema/snapshot.ts';
import {
  type Judgement,
  judgementOf,
  pairsOf,
  placed,
  readJudgements,
  stagesOf,
  subjectsOf,
  within,
} from '../../trainer/judgements.ts';
import { seedPolicy } from '../support/seed.ts';

const { policy } = seedPolicy();
const ids = ['a', 'b', 'c'].map(() => newId('sample'));
const vote = (texts: string[], rest: object): Vote =>
  ({
    seq: 1,
    feedback: newId('feedback'),
    side: 'A',
    root: 'r',
    rater: 'x',
    rater_kind: 'asserted',
    cohorts: {},
    created_at: '2026-01-01T00:00:00Z',
    prompt: [{ role: 'user', content: 'Hello' }],
    samples: texts.map((text, i) => ({ id: ids[i]!, text, policy: 'p' })),
    ...rest,
  }) as Vote;
const weightOf = (j: ReturnType<typeof judgementOf>) =>
  [...j!.stages, ...j!.thumbs, ...j!.ratings].reduce((sum, part) => sum + part.weight, 0);

const bare: Judgement = judgementOf(policy, vote(['x', 'y'], { kind: 'choice', winner: 'tie' }))!;

test('a ranking is a stage for each place but the last, among those not yet placed', () => {
  expect(stagesOf([[2], [0], [1]]).map(({ remaining, chosen }) => [chosen, [...remaining].sort()])).toEqual([
    [[2], [0, 1, 2]],
    [[0], [0, 1]],
  ]);
});

test('a tie is one stage that takes them all; in a ranking equals are taken together, and last ones that are several too', () => {
  expect(stagesOf([[0, 1]])).toEqual([{ remaining: [0, 1], chosen: [0, 1], weight: 1 }]);
  expect(stagesOf([[3], [0, 2], [1]]).map(({ remaining, chosen }) => [chosen, remaining])).toEqual([
    [[3], [3, 0, 2, 1]],
    [
      [0, 2],
      [0, 2, 1],
    ],
  ]);
  expect(stagesOf([[3], [0, 1]]).map(({ chosen }) => chosen)).toEqual([[3], [0, 1]]);
});

test('a choice beats each other and orders no two of the others', () => {
  const judgement = judgementOf(policy, vote(['x', 'y', 'z'], { kind: 'choice', winner: ids[1] }))!;
  expect(pairsOf(judgement).sort()).toEqual([
    [1, 0],
    [1, 2],
  ]);
  expect(weightOf(judgement)).toBeCloseTo(1);
});

test('both bad is a tie and a thumb down for each, which weigh alike and together as one vote', () => {
  const judgement = judgementOf(policy, vote(['x', 'y'], { kind: 'choice', winner: 'both_bad' }))!;
  expect(judgement.thumbs).toEqual([0, 1].map((row) => ({ row, up: false, weight: 1 / 3 })));
  expect(judgement.stages).toEqual([{ remaining: [0, 1], chosen: [0, 1], weight: 1 / 3 }]);
  expect(pairsOf(judgement)).toEqual([]);
  expect(weightOf(judgement)).toBeCloseTo(1);
});

test('a thumb has a weight above 0', () => {
  const judgement = judgementOf(policy, vote(['x'], { kind: 'thumb', value: 1 }))!;
  expect(judgement.thumbs).toEqual([{ row: 0, up: true, weight: 1 }]);
});

test('a correction is preferred over what it corrected; equal texts say nothing', () => {
  expect(pairsOf(judgementOf(policy, vote(['x'], { kind: 'correction', text: 'better' }))!)).toEqual([[1, 0]]);
  expect(judgementOf(policy, vote(['same', 'same'], { kind: 'choice', winner: ids[0] }))).toBeNull();
});

test('a rating is of its row and aspect; who judged is kept', () => {
  const judgement = judgementOf(
    policy,
    vote(['x'], { kind: 'rating', aspect: 'tone', value: 4, cohorts: { age: 'old' } }),
  )!;
  expect(judgement.ratings).toEqual([{ row: 0, aspect: 'tone', value: 4, weight: 1 }]);
  expect(judgement).toMatchObject({ kind: 'rating', rater: 'x', cohorts: { age: 'old' } });
  expect(pairsOf(judgement)).toEqual([]);
});

test('an outcome is of its row and name', () => {
  const judgement = judgementOf(policy, vote(['x'], { kind: 'outcome', name: 'closed', value: false }))!;
  expect(judgement).toMatchObject({ kind: 'outcome', outcomes: [{ row: 0, name: 'closed', value: false, weight: 1 }] });
});

test('a ranking with a tie at its end weighs as one vote', () => {
  const judgement = judgementOf(
    policy,
    vote(['x', 'y', 'z'], { kind: 'ranking', order: [[ids[2]], [ids[0], ids[1]]] }),
  )!;
  expect(judgement.stages.map(({ weight }) => weight)).toEqual([1 / 2, 1 / 2]);
  expect(pairsOf(judgement)).toEqual([
    [2, 0],
    [2, 1],
  ]);
});

const written = (name: string, lines: object[]): string => {
  const path = join(tmpdir(), `${name}-${process.pid}.jsonl`);
  writeFileSync(path, lines.map((line) => JSON.stringify({ prompt: 'q', completion: 'a', ...line })).join('\n'));
  return path;
};

test('a file’s rows may be ratings and outcomes, have a rater, cohorts and a weight', () => {
  const rated = { aspect: 'tone', value: 2, rater: 'rtr_1', cohorts: '{"age":"old"}', weight: 0.25 };
  const [rating, yes, minutes] = readJudgements(
    policy,
    written('kinds', [rated, { name: 'closed', outcome: true }, { name: 'minutes', outcome: 4.5, rater: null }]),
  );
  expect(rating).toMatchObject({ kind: 'rating', rater: 'rtr_1', cohorts: { age: 'old' } });
  expect(rating!.ratings).toEqual([{ row: 0, aspect: 'tone', value: 2, weight: 0.25 }]);
  expect(yes!.outcomes).toEqual([{ row: 0, name: 'closed', value: true, weight: 1 }]);
  expect(minutes).toMatchObject({ rater: null, outcomes: [{ row: 0, name: 'minutes', value: 4.5, weight: 1 }] });
});

test('subjects come by order of first appearance; numbers with their mean and deviation; raters only of thumbs', () => {
  const lines = [
    { aspect: 'tone', value: 2, rater: 'a' },
    { aspect: 'facts', value: 5, rater: 'b' },
    { label: true, rater: 'c' },
    { name: 'minutes', outcome: 2 },
    { name: 'minutes', outcome: 6, weight: 2 },
  ];
  const subjects = subjectsOf(readJudgements(policy, written('subjects', lines)));
  expect(subjects).toEqual({
    aspects: ['tone', 'facts'],
    outcomes: [{ name: 'minutes', isNumber: true, least: -38, most: 46, mean: 4, deviation: 2 }],
    raters: new Map([['c', 1]]),
    weight: 6,
  });
});

test('a number that is always the same has a deviation of one: nothing is divided by nothing', () => {
  const lines = [
    { name: 'minutes', outcome: 3 },
    { name: 'minutes', outcome: 3 },
  ];
  const { outcomes } = subjectsOf(readJudgements(policy, written('constant', lines)));
  expect(outcomes).toEqual([{ name: 'minutes', isNumber: true, least: -1e15, most: 1e15, mean: 3, deviation: 1 }]);
});

test('one number that is beyond all others, or none that can be squared, leaves the others what they are', () => {
  const of = (...values: number[]) =>
    subjectsOf(
      readJudgements(
        policy,
        written(
          'fences',
          values.map((outcome) => ({ name: 'minutes', outcome })),
        ),
      ),
    ).outcomes[0]!;
  const kind = [1, 2, 3, 4, 5, 6, 7, 8];
  for (const slip of [1e200, -1e200, 1.7e308]) {
    const { mean, deviation, least, most } = of(...kind, slip);
    expect([mean > -10, mean < 20, deviation < 20]).toEqual([true, true, true]);
    expect([within({ least, most }, 8), within({ least, most }, 1)]).toEqual([8, 1]);
  }
  expect(of(...kind)).toMatchObject({ mean: 4.5, deviation: Math.sqrt(5.25) });
  const two = of(1.7e308, -1.7e308, 1.7e308);
  expect([Number.isFinite(two.mean), Number.isFinite(two.deviation)]).toEqual([true, true]);
});

test('an answer is one message, the assistant’s', () => {
  const said = (...roles: string[]) => roles.map((role) => ({ role, content: role }));
  const choice = (chosen: object[]) => () =>
    readJudgements(policy, written('turns', [{ completion: undefined, chosen, rejected: said('assistant') }]));
  expect(choice([{ role: 'assistant', content: 'Yes.' }])).not.toThrow();
  for (const roles of [['user'], ['assistant', 'user', 'assistant']])
    expect(choice(said(...roles))).toThrow(
      `line 1: an answer of ${roles.length} messages (${roles.join(', ')}): expected one, the assistant's`,
    );
});

test('ranks are numbers: ten is below two', () => {
  const ranked = { completion: undefined, completions: ['a', 'b', 'c'], ranks: [10, 2, 1] };
  const [judgement] = readJudgements(policy, written('ranks', [ranked]));
  expect(judgement!.stages.map(({ chosen }) => chosen)).toEqual([[2], [1]]);
});

test('of names beyond eight, a run keeps the most used ones, and of an outcome’s two types the one that more have', () => {
  const rated = (aspect: string) => ({ ...bare, ratings: [{ row: 0, aspect, value: 3, weight: 1 }] });
  const came = (name: string, value: boolean | number) => ({ ...bare, outcomes: [{ row: 0, name, value, weight: 1 }] });
  const names = Array.from({ length: 8 }, (_, i) => `n${i}`);
  const all = [
    ...names.flatMap((name) => [rated(name), rated(name)]),
    ...names.flatMap((name) => [came(name, 1), came(name, 2)]),
    rated('once'),
    came('once', true),
    came('n3', true),
    bare,
  ];
  const kept = all.filter(placed(all));
  expect(kept).toHaveLength(33);
  expect(kept).toEqual([...all.slice(0, 32), bare]);
  expect(() => subjectsOf(kept)).not.toThrow();
});

test('more than eight aspects or outcomes, and an outcome of two types, are said in one line', () => {
  const nine = (of: (i: number) => object) => Array.from({ length: 9 }, (_, i) => of(i));
  const refused = (lines: object[]) => expect(() => readJudgements(policy, written('refused', lines)));
  refused(nine((i) => ({ aspect: `a${i}`, value: 3 }))).toThrow(/^ratings on 9 aspects \(a0, .*\): 8 at most$/);
  refused(nine((i) => ({ name: `n${i}`, outcome: i }))).toThrow(/^outcomes of 9 names \(n0, .*\): 8 at most$/);
  refused([
    { name: 'n', outcome: 1 },
    { name: 'n', outcome: true },
  ]).toThrow(/^outcome n is a number here/);
  refused([{ aspect: 'tone', value: 6 }]).toThrow(/line 1: /);
});

test('a file that is no JSON Lines is told as such, not line by line', () => {
  const path = join(tmpdir(), `no-lines-${process.pid}.jsonl`);
  writeFileSync(path, '[\n  {"prompt": "Hi"}\n]');
  expect(() => readJudgements(policy, path)).toThrow(/one JSON array: write JSON Lines/);
  writeFileSync(path, '{"prompt": "Hi"}', 'utf16le');
  expect(() => readJudgements(policy, path)).toThrow(/not text in UTF-8/);
  writeFileSync(path, '{"prompt": "Hi"}\n{"prompt": "na\xefve"}\n', 'latin1');
  expect(() => readJudgements(policy, path)).toThrow(/not text in UTF-8 \(line 2\): save it as UTF-8/);
});

test('bad lines are named by number and reason, up to twenty, before anything starts', () => {
  const path = join(tmpdir(), `judgements-${process.pid}.jsonl`);
  const good = JSON.stringify({ prompt: 'q', chosen: 'a', rejected: 'b' });
  writeFileSync(path, [good, '{"prompt": "q"}', 'not json', good, ...Array(30).fill('[]')].join('\n'));
  expect(() => readJudgements(policy, path)).toThrow(
    /32 bad lines\n {2}line 2: expected .*\n {2}line 3: not JSON\n[\s\S]*and 12 more/,
  );
  writeFileSync(
    path,
    `${good}\n${JSON.stringify({ prompt: 'q', completion: 'a', label: false })}\n${JSON.stringify({ prompt: 'q', completions: ['a', 'b', 'c'], ranks: [2, 1, 2] })}\n`,
  );
  const read = readJudgements(policy, path);
  expect(read.map((judgement) => pairsOf(judgement))).toEqual([
    [[0, 1]],
    [],
    [
      [1, 0],
      [1, 2],
    ],
  ]);
});
