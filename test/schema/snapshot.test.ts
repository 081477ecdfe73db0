// What a trainer takes for a vote: each kind as it is, and nothing that is near it.
import { expect, test } from 'vitest';
import { newId } from '../../schema/ids.ts';
import { SnapshotRow } from '../../schema/snapshot.ts';

const [first, second] = [newId('sample'), newId('sample')];
const base = {
  seq: 1,
  feedback: newId('feedback'),
  side: 'A',
  root: 'root',
  rater: 'ada',
  rater_kind: 'verified',
  cohorts: {},
  created_at: '2026-01-02T03:04:05.000Z',
  prompt: [{ role: 'user', content: 'Where is it?' }],
  samples: [first, second].map((id) => ({ id, text: 'Here.', policy: 'pol' })),
};
test.each([
  ['thumb', { value: -1 }, [{ value: 0 }, { value: 2 }, { value: true }]],
  ['choice', { winner: 'tie' }, [{ winner: 1 }, {}]],
  ['ranking', { order: [[first], [second]] }, [{ order: [first, second] }, { order: [['x']] }]],
  ['rating', { aspect: 'helpful', value: 4 }, [{ aspect: 'helpful', value: 4.5 }, { value: 4 }]],
  ['correction', { text: 'There.' }, [{ text: null }]],
  ['outcome', { name: 'sold', value: 3.5 }, [{ name: 'sold', value: 'yes' }]],
])('a %s', (kind, right, wrong) => {
  expect(SnapshotRow.safeParse({ ...base, kind, ...right }).error).toBeUndefined();
  for (const body of [...wrong, { ...right, more: 1 }])
    expect(SnapshotRow.safeParse({ ...base, kind, ...body }).success, JSON.stringify(body)).toBe(false);
});
