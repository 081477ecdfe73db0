import { afterAll, expect, test } from 'vitest';
import { REWARD_DEFAULTS } from '../../../schema/run-config.ts';
import { decode } from '../../../schema/tokenizer.ts';
import { dispose } from '../../../trainer/engine/compile.ts';
import { judgementOf } from '../../../trainer/judgements.ts';
import { shapeFor } from '../../../trainer/pack.ts';
import { random } from '../../../trainer/random.ts';
import { fitReward, rewardCalls, scores } from '../../../trainer/reward.ts';
import { startSampler } from '../../../trainer/rollout.ts';
import { mean } from '../../../trainer/seed/measure.ts';
import { BIASED_SHARE, RATER_DEFAULTS } from '../../../trainer/seed/raters.ts';
import { questions, repeated, votesOn } from '../../../trainer/seed/votes.ts';
import { gold, type Ticket, tickets } from '../../../trainer/seed/world.ts';
import { readWeights } from '../../../trainer/weights.ts';
import { seedPolicy } from '../../support/seed.ts';

const { folder, policy } = seedPolicy();
const model = policy.config;
const weights = readWeights(folder, model);
const sampler = startSampler(model);
afterAll(() => sampler.close());
const MAX_TOKENS = 40;
const calls = rewardCalls(model, shapeFor(44 + MAX_TOKENS), { ...REWARD_DEFAULTS, epochs: 2 });

async function answers(asked: Ticket[], seed: number) {
  const prompts = asked.map((ticket) => policy.encodePrompt([{ role: 'user', content: ticket.text }]));
  const sampled = await sampler.sample(
    weights,
    prompts,
    prompts.map((_, i) => seed * 1_000_000 + i),
    { maxTokens: MAX_TOKENS, temperature: 1 },
  );
  return sampled.map(({ ids }, i) => ({
    row: { prompt: prompts[i]!, answer: ids },
    text: decode(policy.tokenizer, ids),
  }));
}

test('a planted bias shows: with it the best of 8 is worse in dialect B by .1 or more, without it the dialects are near', async () => {
  const asked = questions(tickets('judging', 4, 240), random(4, 'questions'));
  const judged = await answers(repeated(asked), 4);
  const tested = tickets('tests', 4, 150);
  const eight = await answers(
    tested.flatMap((ticket) => Array.from({ length: 8 }, () => ticket)),
    5,
  );

  /** Gold of the best of 8 answers by a reward model fitted to 240 votes, dialect A minus dialect B. */
  async function gapOfBestOf8(bias: number): Promise<number> {
    const votes = votesOn(
      asked,
      judged.map(({ text }) => text),
      { ...RATER_DEFAULTS, bias },
      random(4, 'bias'),
      'bias',
    );
    const judgements = votes.flatMap((vote) => judgementOf(policy, vote) ?? []);
    const normalised = judged.slice(0, 200).map(({ row }) => row);
    const rm = await fitReward(model, calls, weights, judgements, normalised, 4, 'reward', () => {});
    const rows = eight.map(({ row }) => row);
    const scored = await scores(calls, rm, rows, model.pad_token_id);
    dispose(rm);
    const best = tested.map((ticket, i) => {
      const own = scored.slice(8 * i, 8 * i + 8);
      return { dialect: ticket.dialect, gold: gold(ticket, eight[8 * i + own.indexOf(Math.max(...own))]!.text).mean };
    });
    const of = (dialect: string) => mean(best.filter((b) => b.dialect === dialect).map((b) => b.gold));
    return of('A') - of('B');
  }

  const plain = await gapOfBestOf8(RATER_DEFAULTS.bias);
  const biased = await gapOfBestOf8(BIASED_SHARE);
  expect(Math.abs(plain)).toBeLessThan(0.08);
  expect(biased).toBeGreaterThan(0.1);
}, 900_000);
