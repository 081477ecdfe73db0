// The embedded default policy itself: is there something to learn? Answers are drawn as the Worker draws them.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { decode } from '../../../schema/tokenizer.ts';
import { startSampler } from '../../../trainer/rollout.ts';
import { type Gold, gold, tickets } from '../../../trainer/seed/world.ts';
import { readWeights } from '../../../trainer/weights.ts';
import { seedPolicy } from '../../support/seed.ts';

const TICKETS = 150;
const ANSWERS = 8;
const { folder, policy } = seedPolicy();
const sampler = startSampler(policy.config);
afterAll(() => sampler.close());

/** Gold of 8 answers to each ticket at temperature 1. */
let scores: Gold[][];
beforeAll(async () => {
  const asked = tickets('evaluation', 4, TICKETS);
  const each = asked.flatMap((ticket) => Array.from({ length: ANSWERS }, () => ticket));
  const prompts = each.map((ticket) => policy.encodePrompt([{ role: 'user', content: ticket.text }]));
  const seeds = each.map((_, i) => i);
  const weights = readWeights(folder, policy.config);
  const drawn = await sampler.sample(weights, prompts, seeds, { maxTokens: 40, temperature: 1 });
  const of = drawn.map(({ ids }, i) => gold(each[i]!, decode(policy.tokenizer, ids)));
  scores = asked.map((_, t) => of.slice(t * ANSWERS, (t + 1) * ANSWERS));
});

const mean = (x: number[]) => x.reduce((a, b) => a + b, 0) / x.length;
const deviation = (x: number[]) => Math.sqrt(x.reduce((sum, y) => sum + (y - mean(x)) ** 2, 0) / (x.length - 1));

test('its mean gold is middling: .4 to .6', () => {
  const all = mean(scores.flat().map((score) => score.mean));
  expect(all).toBeGreaterThan(0.4);
  expect(all).toBeLessThan(0.6);
});

test.each(['mean', 'relevance', 'coherence', 'ethics'] as const)('answers to one ticket differ in %s', (aspect) => {
  expect(mean(scores.map((answers) => deviation(answers.map((score) => score[aspect]))))).toBeGreaterThan(0.15);
});

test('the best of 8 answers is far better than the mean one', () => {
  const best = mean(scores.map((answers) => Math.max(...answers.map((score) => score.mean))));
  expect(best).toBeGreaterThan(mean(scores.flat().map((score) => score.mean)) + 0.2);
});
