import { expect, test } from 'vitest';
import { REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { rewardsFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import type { Row } from '../../trainer/data.ts';
import { mapTree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { bootstrapped, cautious, memberSees } from '../../trainer/ensemble.ts';
import { stagesOf } from '../../trainer/judgements.ts';
import { random } from '../../trainer/random.ts';
import { fitReward, normalised, type RewardModel, rewardCalls, scores } from '../../trainer/reward.ts';
import { judged } from '../support/judged.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const base = tinyParameters();
const rng = random(5);
const row = (): Row => ({ prompt: [rng.int(2, 32)], answer: [...Array.from({ length: 10 }, () => rng.int(2, 32)), 1] });
/** What raters like: many even tokens. They err the more, the nearer two answers are. */
const quality = ({ answer }: Row) => answer.filter((id) => id % 2 === 0).length;
const compared = (count: number, errs = true) =>
  Array.from({ length: count }, (_, i) => {
    const rows = [row(), row()];
    const difference = quality(rows[0]!) - quality(rows[1]!);
    const first = errs ? rng() < 1 / (1 + Math.exp(-difference)) : difference > 0;
    return judged(rows, { root: `${i}`, stages: stagesOf(first ? [[0], [1]] : [[1], [0]]) });
  });
const calls = rewardCalls(TINY, { rows: 2, columns: 64 }, { ...REWARD_DEFAULTS, epochs: 6, learningRate: 2e-3 });
const on = Array.from({ length: 60 }, row);
const said = compared(120);
const members: RewardModel[] = [];
for (let i = 0; i < 4; i++) {
  const seen = bootstrapped(said, random(1, `member ${i}`));
  members.push(await fitReward(TINY, calls, base, seen, on, i, 'reward', () => {}));
}
const byMember = async (models: RewardModel[], rows: Row[]) => {
  const scored: number[][] = [];
  for (const member of models) scored.push(await scores(calls, member, rows, TINY.pad_token_id));
  return scored;
};

test('the penalty takes the members’ standard deviation from their mean', () => {
  const scored = [
    [1, 4],
    [5, 4],
  ];
  expect(cautious(scored, 0)).toEqual([3, 4]);
  expect(cautious(scored, 2)).toEqual([-1, 4]);
});

test('conversations are drawn with replacement, as many as there are, each with all that was said of it', () => {
  const judgements = said.slice(0, 40).map((judgement, i) => ({ ...judgement, root: `${i >> 1}` }));
  const drawn = bootstrapped(judgements, random(7));
  expect(drawn).toHaveLength(40);
  const roots = new Set(drawn.map(({ root }) => root));
  expect(roots.size).toBeGreaterThan(8);
  expect(roots.size).toBeLessThan(17); // 1 − 1/e of twenty, about
  for (const root of roots) {
    const [own, all] = [drawn, judgements].map((of) => of.filter((judgement) => judgement.root === root).length);
    expect(own! % all!).toBe(0);
  }
});

test('the first member sees all, each other one conversations drawn for it', () => {
  const seen = [0, 1, 2].map((member) => memberSees(said, member, 1).map(({ root }) => root));
  expect(seen[0]).toEqual(said.map(({ root }) => root));
  for (const own of seen.slice(1)) expect(new Set(own).size).toBeLessThan(said.length);
  expect(seen[1]).not.toEqual(seen[2]);
  expect(memberSees(said, 1, 1).map(({ root }) => root)).toEqual(seen[1]);
});

test('an offset and a scale of one member change nothing once it is normalised', async () => {
  const rows = Array.from({ length: 20 }, row);
  const { head } = members[2]!;
  const other = {
    ...(mapTree(members[2]!, tf.clone) as RewardModel),
    head: { weight: tf.mul(head.weight, 3) as Tensor, bias: tf.add(tf.mul(head.bias, 3), 5) as Tensor },
  };
  const even = normalised(other, await scores(calls, other, on, TINY.pad_token_id));
  const [before, after] = [
    cautious(await byMember(members, rows), 1),
    cautious(await byMember([members[0]!, members[1]!, even, members[3]!], rows), 1),
  ];
  for (const [i, score] of after.entries()) expect(score).toBeCloseTo(before[i]!, 3);
});

test('where the members’ margins spread most, they are wrong most: the error rate rises over quintiles of spread, on pairs they never saw', async () => {
  const pairs = compared(600, false).filter(({ rows }) => quality(rows[0]!) !== quality(rows[1]!));
  const scored = await byMember(
    members,
    pairs.flatMap(({ rows }) => rows),
  );
  const margins = scored.map((own) => pairs.map((_, i) => own[2 * i]! - own[2 * i + 1]!));
  const wrong = cautious(margins, 0).map((mean, i) => {
    const [first, second] = pairs[i]!.rows as [Row, Row];
    return mean > 0 === quality(first) > quality(second) ? 0 : 1;
  });
  const spread = cautious(margins, -1).map((above, i) => above - cautious(margins, 0)[i]!);
  const order = pairs.map((_, i) => i).sort((a, b) => spread[a]! - spread[b]!);
  const rates = [0, 1, 2, 3, 4].map((q) => {
    const quintile = order.slice((q * order.length) / 5, ((q + 1) * order.length) / 5);
    return quintile.reduce((sum, i) => sum + wrong[i]!, 0) / quintile.length;
  });
  for (let q = 1; q < 5; q++) expect(rates[q]).toBeGreaterThan(rates[q - 1]! - 0.03);
  expect(rates[4]).toBeGreaterThan(rates[0]! + 0.1);
});

test('members are saved and read back, as many as there are', async () => {
  const read = rewardsFromFile(treeToFile(members.slice(0, 2)), base);
  const rows = on.slice(0, 5);
  expect(await byMember(read, rows)).toEqual(await byMember(members.slice(0, 2), rows));
});
