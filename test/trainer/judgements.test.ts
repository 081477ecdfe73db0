import { writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { newId } from '../../schema/ids.ts';
import type { Vote } from '../../schema/snapshot.ts';
import { judgementOf, pairsOf, readJudgements, stagesOf } from '../../trainer/judgements.ts';
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
  [...j!.stages, ...j!.thumbs].reduce((sum, part) => sum + part.weight, 0);

test('a ranking is a stage for each place but the last, among those not yet placed', () => {
  expect(stagesOf([[2], [0], [1]]).map(({ remaining, chosen }) => [chosen, [...remaining].sort()])).toEqual([
    [2, [0, 1, 2]],
    [0, [0, 1]],
  ]);
});

test('a tie of two is half a win each way', () => {
  expect(stagesOf([[0, 1]])).toEqual([
    { remaining: [0, 1], chosen: 0, weight: 0.5 },
    { remaining: [1, 0], chosen: 1, weight: 0.5 },
  ]);
});

test('among equals each is chosen first alike, whatever their number', () => {
  for (const size of [3, 4, 8]) {
    const first = stagesOf([Array.from({ length: size }, (_, i) => i)]).filter(
      (stage) => stage.remaining.length === size,
    );
    const share = new Map<number, number>();
    for (const { chosen, weight } of first) share.set(chosen, (share.get(chosen) ?? 0) + weight);
    expect([...share.values()].map((x) => x.toFixed(6))).toEqual(Array(size).fill((1 / size).toFixed(6)));
  }
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
  expect(judgement.stages.map(({ weight }) => weight)).toEqual([1 / 6, 1 / 6]); // a third for the tie, half of it each way
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

test('a file that is no JSON Lines is told as such, not line by line', () => {
  const path = join(tmpdir(), `no-lines-${process.pid}.jsonl`);
  writeFileSync(path, '[\n  {"prompt": "Hi"}\n]');
  expect(() => readJudgements(policy, path)).toThrow(/one JSON array: write JSON Lines/);
  writeFileSync(path, '{"prompt": "Hi"}', 'utf16le');
  expect(() => readJudgements(policy, path)).toThrow(/not text in UTF-8/);
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
