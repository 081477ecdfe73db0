import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { packEdge, readEdge, unpackEdge } from '../../schema/edge.ts';
import { mapTree } from '../../trainer/engine/compile.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { freshLora, type Lora, merged } from '../../trainer/lora.ts';
import { DivergedError } from '../../trainer/metrics.ts';
import type { Parameters } from '../../trainer/model.ts';
import { random } from '../../trainer/random.ts';
import { type Adapted, type Sampled, startSampler } from '../../trainer/rollout.ts';
import { toHuggingFace } from '../../trainer/weights.ts';
import { randomModel, tinyConfig } from '../support/model.ts';
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

test('an image with corrections takes the place of one without, and gives its place back', async () => {
  const config = tinyConfig({ hidden_size: 192, intermediate_size: 512 });
  const plain = packEdge(config, randomModel(config, 1), 4);
  const onSteps = unpackEdge(plain).tensors;
  for (const [name, { shape, data }] of onSteps)
    if (name.includes('_proj'))
      onSteps.set(name, { shape, data: data.map((x, i) => x + (i % 2 === 0 ? 1e-3 : -1e-3)) });
  const corrected = packEdge(config, onSteps, 4);
  expect([readEdge(plain).corrected, readEdge(corrected).corrected]).toEqual([false, true]);
  const draw = (of: typeof sampler, image: Uint8Array) => of.sampleImage(image, prompts, seeds, options);
  const [used, fresh] = [startSampler(config), startSampler(config)];
  const first = await draw(used, plain);
  const second = await draw(used, corrected);
  expect(second).toEqual(await draw(fresh, corrected));
  expect(second).not.toEqual(first);
  expect(await draw(used, plain)).toEqual(first);
  await Promise.all([used.close(), fresh.close()]);
});

test.each([
  ['attention', 4],
  ['mlp', 8],
  ['both', 8],
  ['both', 12], // more than an image can add: merged
] as const)(
  'what adapters on %s of rank %i make of a policy is drawn from, as if they were merged',
  async (on, rank) => {
    const lora = mapTree(
      freshLora(TINY, { rank, on: on === 'both' ? ['attention', 'mlp'] : [on] }, random(1)),
      (tensor) => tf.add(tensor, tf.randomNormal(tensor.shape, 0, 0.05, 'float32', 1)),
    ) as Lora;
    const draw = (policy: Parameters | Adapted) => sampler.sample(policy, prompts, seeds, options);
    const whole = merged(weights, lora);
    const [adapted, expected, before] = [await draw({ base: weights, lora }), await draw(whole), await draw(weights)];
    expect(adapted.map(({ ids }) => ids)).toEqual(expected.map(({ ids }) => ids));
    const apart = (a: Sampled[], b: Sampled[]) =>
      Math.max(...a.flatMap(({ logprobs }, i) => logprobs.map((logprob, n) => Math.abs(logprob - b[i]!.logprobs[n]!))));
    expect(apart(adapted, expected)).toBeLessThan(0.02);
    expect(before.map(({ ids }) => ids)).not.toEqual(expected.map(({ ids }) => ids));
  },
);

test('adapters of one base, then the same of another, are drawn from with the base they are of', async () => {
  const lora = freshLora(TINY, { rank: 2, on: ['mlp'] }, random(1)); // which change nothing
  const second = tinyParameters(5);
  const draw = (base: Parameters) => sampler.sample({ base, lora }, prompts, seeds, options);
  const plain = async (of: Parameters) => (await other.sample(of, prompts, seeds, options)).map(({ ids }) => ids);
  const drawn = [await draw(weights), await draw(second), await draw(weights)].map((answers) =>
    answers.map(({ ids }) => ids),
  );
  expect(drawn).toEqual([await plain(weights), await plain(second), await plain(weights)]);
  expect(drawn[0]).not.toEqual(drawn[1]);
});

test('adapters that are not finite end the run, and draw nothing', async () => {
  const lora = freshLora(TINY, { rank: 2, on: ['mlp'] }, random(1));
  lora.layers[0]!.down!.b = tf.fill(lora.layers[0]!.down!.b.shape, Number.NaN) as never;
  await expect(sampler.sample({ base: weights, lora }, prompts, seeds, options)).rejects.toThrow(DivergedError);
});

test('threads that drew from a large image end with it: the process needs no close', { timeout: 60_000 }, () => {
  const root = join(import.meta.dirname, '../..');
  const script = `
    const { startSampler } = await import('${root}/trainer/rollout.ts');
    const { packEdge } = await import('${root}/schema/edge.ts');
    const { randomModel, tinyConfig } = await import('${root}/test/support/model.ts');
    const config = tinyConfig({ vocab_size: 200_000, hidden_size: 256, num_hidden_layers: 1 });
    const image = packEdge(config, randomModel(config, 1), 8);
    const sampler = startSampler(config);
    const draw = () => sampler.sampleImage(image, [[3], [4]], [1, 2], { maxTokens: 2, temperature: 1 });
    console.log(JSON.stringify(await draw()) === JSON.stringify(await draw()));
  `;
  const { stdout, stderr, status } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    timeout: 50_000,
  });
  expect({ stdout, stderr, status }).toEqual({ stdout: 'true\n', stderr: '', status: 0 });
});
