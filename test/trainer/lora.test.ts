import { afterAll, expect, test } from 'vitest';
import { type LoraConfig, PPO_DEFAULTS, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { fitStateFromFile, ppoStateFromFile, sftStateFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import type { Row } from '../../trainer/data.ts';
import { compilations, flatten, mapTree, type Tree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { stagesOf } from '../../trainer/judgements.ts';
import { freshLora, LORA_ON, type Lora, merged, withLora } from '../../trainer/lora.ts';
import { hiddenStates } from '../../trainer/model.ts';
import { batchOf, pack } from '../../trainer/pack.ts';
import { answerLogprobsOf, type PpoState, policyCalls, ppo } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { accuracy, type FitState, fitReward, rewardCalls, rightShare } from '../../trainer/reward.ts';
import { mean } from '../../trainer/rl.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { sft } from '../../trainer/sft.ts';
import { countingRow } from '../support/counting.ts';
import { judged } from '../support/judged.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const BOTH: LoraConfig = { rank: 4, on: ['attention', 'mlp'] };
const sampler = startSampler(TINY);
afterAll(() => sampler.close());
const rng = random(4);
const rows = Array.from({ length: 50 }, () => countingRow(rng));
const held = rows.slice(0, 20);
const batch = batchOf(pack(rows.slice(0, 4), [[0], [1], [2], [3]], SHAPE, 0)[0]!, SHAPE);
const numbers = (tree: Tree) =>
  flatten(tree).map((tensor) => Buffer.from((tensor.dataSync() as Float32Array).slice().buffer).toString('base64'));
const close = (a: Tensor, b: Tensor) => {
  const difference = tf.max(tf.abs(tf.sub(a, b))).dataSync()[0];
  expect(difference).toBeLessThan(1e-5);
};
/** Adapters as training may leave them. */
const trained = (config: LoraConfig) => {
  const fresh = freshLora(TINY, config, random(1));
  return mapTree(fresh, (tensor) => tf.add(tensor, tf.randomNormal(tensor.shape, 0, 0.1, 'float32', 1))) as Lora;
};

test('fresh adapters change nothing; A is uniform in ±1/√in', () => {
  const base = tinyParameters();
  const lora = freshLora(TINY, BOTH, random(1));
  expect(numbers(hiddenStates(TINY, withLora(base, lora), batch))).toEqual(numbers(hiddenStates(TINY, base, batch)));
  const a = Array.from(lora.layers[0]!.qkv!.a.dataSync());
  expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(1 / Math.sqrt(TINY.hidden_size));
  expect(Math.max(...a.map(Math.abs))).toBeGreaterThan(0.9 / Math.sqrt(TINY.hidden_size));
});

test.each([[['attention']], [['mlp']], [['attention', 'mlp']]] as LoraConfig['on'][][])(
  'on %j: merged weights are the model with its adapters, and only what is adapted differs from the base',
  (on) => {
    const base = tinyParameters();
    const lora = trained({ rank: 4, on });
    const whole = merged(base, lora);
    close(hiddenStates(TINY, whole, batch), hiddenStates(TINY, withLora(base, lora), batch));
    const adapted: readonly string[] = on.flatMap((part) => [...LORA_ON[part]]);
    for (const [name, matrix] of Object.entries(whole.layers[0]!)) {
      const same = numbers(matrix as Tensor).toString() === numbers(base.layers[0]![name as 'qkv']).toString();
      expect([name, same]).toEqual([name, !adapted.includes(name)]);
    }
    expect(numbers([whole.embedding, whole.norm])).toEqual(numbers([base.embedding, base.norm]));
  },
);

test('training adapters lowers the loss, keeps every other weight, and goes on after a cut bit for bit', async () => {
  const config = { ...SFT_DEFAULTS, steps: 60, batch: 8, shape: SHAPE, learningRate: 3e-2, warmup: 5, lora: BOTH };
  const losses: number[] = [];
  let saved: { file: Uint8Array; scalars: string } | undefined;
  const whole = await sft(
    TINY,
    tinyParameters(),
    rows,
    held,
    config,
    ({ metrics }) => void losses.push(metrics['loss/train']!),
    null,
    ({ trained, adam, best, ...scalars }) => {
      if (scalars.step === 23) saved = { file: treeToFile({ trained, adam }), scalars: JSON.stringify(scalars) };
    },
  );
  expect(losses.at(-1)).toBeLessThan(0.85 * losses[0]!);
  const base = tinyParameters();
  expect(numbers([whole.parameters.embedding, whole.parameters.norm])).toEqual(numbers([base.embedding, base.norm]));
  expect(numbers(whole.parameters.layers[0]!.qkv)).not.toEqual(numbers(base.layers[0]!.qkv));
  const from = sftStateFromFile(saved!.file, JSON.parse(saved!.scalars), freshLora(TINY, BOTH, random(0)));
  const resumed = await sft(TINY, tinyParameters(), rows, held, config, () => {}, from);
  expect(numbers(resumed.parameters)).toEqual(numbers(whole.parameters));
});

test('PPO on adapters raises the score, leaves the parent, and goes on after a cut bit for bit; so does a value model on adapters', async () => {
  const parent = tinyParameters();
  const before = numbers(parent);
  const config = {
    ...PPO_DEFAULTS,
    episodes: 192,
    rollout: 32,
    minibatch: 16,
    learningRate: 2e-2,
    beta: 0,
    klLimit: 500,
  };
  const settings = { ...config, separateValue: true, seed: 1 };
  const calls = policyCalls(TINY, SHAPE, settings, BOTH);
  const prompts = [[2, 3], [4], [5, 6]];
  const liked = (answers: Row[]) => answers.map(() => 1); // to end; what was cut has −1
  const scored: number[] = [];
  let saved: { file: Uint8Array; scalars: object } | undefined;
  const run = (from: PpoState | null = null) =>
    ppo(
      TINY,
      calls,
      liked,
      parent,
      prompts,
      sampler.sample,
      8,
      settings,
      ({ metrics }) => void scored.push(metrics['objective/score']!),
      from,
      ({ actor, adam, ...scalars }) => {
        if (scalars.iteration === 1) saved = { file: treeToFile({ actor, adam }), scalars };
      },
    );
  const whole = await run();
  expect(mean(scored.slice(3))).toBeGreaterThan(scored[0]! + 0.15); // of six iterations
  expect(numbers(parent)).toEqual(before);
  expect(numbers(whole.embedding)).toEqual(numbers(parent.embedding));
  const resumed = await run(ppoStateFromFile(saved!.file, saved!.scalars, freshLora(TINY, BOTH, random(0))));
  expect(numbers(resumed)).toEqual(numbers(whole));
});

test('PPO by adapters compiles its gradient, and one call that scores policy, reference and whatever else', async () => {
  const parent = tinyParameters();
  const settings = { ...PPO_DEFAULTS, episodes: 16, rollout: 8, minibatch: 4, answersPerPrompt: 1, seed: 1 };
  const calls = policyCalls(TINY, SHAPE, settings, BOTH);
  const before = compilations.length;
  const liked = (answers: Row[]) => answers.map(() => 1);
  const whole = await ppo(TINY, calls, liked, parent, [[2, 3], [4]], sampler.sample, 8, settings, () => {});
  const byAdapters = await answerLogprobsOf(TINY, calls, whole, rows);
  expect(compilations.slice(before).map(({ name }) => name)).toEqual(['policy score', 'ppo gradient']);
  const plainly = await answerLogprobsOf(TINY, policyCalls(TINY, SHAPE, settings), whole, rows);
  close(tf.tensor1d(byAdapters), tf.tensor1d(plainly));
});

test('a reward model is fitted by adapters on the frozen policy, and comes out whole', async () => {
  const base = tinyParameters();
  const before = numbers(base);
  const even = ({ answer }: Row) => answer.filter((id) => id % 2 === 0).length;
  const compared = Array.from({ length: 120 }, () => {
    const pair = [0, 1].map(() => ({
      prompt: [2],
      answer: [...Array.from({ length: 8 }, () => rng.int(2, 32)), 1],
    }));
    const order = even(pair[0]!) >= even(pair[1]!) ? [[0], [1]] : [[1], [0]];
    return judged(pair, { stages: stagesOf(order) });
  });
  const calls = rewardCalls(TINY, SHAPE, { ...REWARD_DEFAULTS, epochs: 6, learningRate: 2e-2 }, BOTH);
  let saved: { file: Uint8Array; step: number } | undefined;
  const fitted = (from: FitState | null = null) =>
    fitReward(
      TINY,
      calls,
      base,
      compared.slice(0, 90),
      rows,
      3,
      'reward',
      () => {},
      from,
      ({ rm, adam, step }) => {
        if (step === 11) saved = { file: treeToFile({ rm, adam }), step };
      },
    );
  const rm = await fitted();
  expect(rightShare(await accuracy(calls, rm, compared.slice(90), TINY.pad_token_id))).toBeGreaterThan(0.7);
  expect(numbers(base)).toEqual(before);
  expect(numbers(rm.parameters.embedding)).toEqual(numbers(base.embedding));
  expect(numbers(rm.parameters.layers[0]!.down)).not.toEqual(numbers(base.layers[0]!.down));
  // It begins along what is said: before it has learnt anything it tells better from worse.
  const still = { ...calls, config: { ...calls.config, epochs: 1, learningRate: 1e-12 } };
  const begun = await fitReward(TINY, still, base, compared.slice(0, 90), rows, 3, 'reward', () => {});
  expect(rightShare(await accuracy(still, begun, compared.slice(90), TINY.pad_token_id))).toBeGreaterThan(0.7);
  const like = freshLora(TINY, BOTH, random(0));
  const resumed = await fitted(fitStateFromFile(saved!.file, { step: saved!.step }, like));
  expect(numbers(resumed)).toEqual(numbers(rm));
});
