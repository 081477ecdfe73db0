import { afterAll, expect, test } from 'vitest';
import { packEdge } from '../../schema/edge.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { toHuggingFace } from '../../trainer/weights.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const sampler = startSampler(TINY);
const other = startSampler(TINY);
afterAll(() => Promise.all([sampler.close(), other.close()]));
const prompts = Array.from({ length: 6 }, (_, i) => [2 + i, 3]);
const seeds = prompts.map((_, i) => i);
const options = { maxTokens: 6, temperature: 1 };
const weights = tinyParameters();
const image = (bits: 4 | 8) => packEdge(TINY, toHuggingFace(TINY, weights), bits);

test('threads that have drawn from an image of 8 bits draw from one of 4, and back, as fresh ones do', async () => {
  const draw = (of: typeof sampler, bits: 4 | 8) => of.sampleImage(image(bits), prompts, seeds, options);
  const eight = await draw(sampler, 8);
  const four = await draw(sampler, 4);
  expect(four).toEqual(await draw(other, 4));
  expect(four).not.toEqual(eight);
  expect(await draw(sampler, 8)).toEqual(eight);
  expect(await sampler.sample(weights, prompts, seeds, options)).toEqual(eight);
});

test('a longer context than before is made room for', async () => {
  const long = [Array.from({ length: 20 }, (_, i) => 2 + (i % 20))];
  const draw = (of: typeof sampler) => of.sample(weights, long, [7], { ...options, maxTokens: 30 });
  expect(await draw(sampler)).toEqual(await draw(other));
});
