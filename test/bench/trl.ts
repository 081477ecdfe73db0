// The stages beside TRL's on 6.84 million weights and random tokens, two threads each: whole steps as the stages make them, and PPO's iterations
// with their rollouts. TRL's better precision counts.

import { PPO_DEFAULTS, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { type Judgement, stagesOf } from '../../trainer/judgements.ts';
import type { Report } from '../../trainer/metrics.ts';
import { initialParameters, precisionFor } from '../../trainer/model.ts';
import { shapeFor } from '../../trainer/pack.ts';
import { policyCalls, ppo } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { fitReward, freshHead, rewardCalls, type Scorer, scores } from '../../trainer/reward.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { sft } from '../../trainer/sft.ts';
import { judged } from '../support/judged.ts';
import { type Pair, pair } from './pair.ts';
import { type Peer, startPeer } from './peers.ts';
import { MODEL as TIED } from './torch.ts';

/** With an output matrix of its own, as TRL's classifiers want it: 6.84 million. */
const MODEL = {
  ...TIED,
  max_position_embeddings: 1024,
  tie_word_embeddings: false,
  bos_token_id: 1,
  eos_token_id: 2,
};
const WARM_UP = 2;
const MANY = 100_000;
const rng = random(1);
const tokens = (count: number) => Array.from({ length: count }, () => rng.int(4, MODEL.vocab_size));

/** A stage that goes on only while it is asked to: its report after each step waits. */
async function inTurn(stage: (report: Report) => Promise<unknown>): Promise<(steps: number) => Promise<number>> {
  let left = WARM_UP;
  let told: () => void = () => {};
  let go: () => void = () => {};
  const pause = () => new Promise<void>((resolve) => (told = resolve));
  const warm = pause();
  const ended = stage(async () => {
    if (--left > 0) return;
    told();
    await new Promise<void>((resolve) => (go = resolve));
  });
  await Promise.race([warm, ended]);
  return async (steps) => {
    left = steps;
    const done = pause();
    const started = performance.now();
    go();
    await Promise.race([done, ended]);
    return (1000 * steps) / (performance.now() - started);
  };
}

const sftStage = () =>
  inTurn((report) => {
    const rows = Array.from({ length: 16 * 40 }, () => ({ prompt: tokens(1), answer: tokens(127) }));
    const settings = { ...SFT_DEFAULTS, batch: 16, steps: MANY, warmup: 1, learningRate: 1e-4, weightDecay: 0 };
    return sft(
      MODEL,
      initialParameters(MODEL, rng),
      rows,
      [],
      { ...settings, shape: { rows: 16, columns: 128 } },
      report,
    );
  });

/** Pairs of answers of 64 tokens: to prompts of their own (unrelated, as TRL is given them), or half of it a prompt that both share. */
const rewardStage = (shared: number) =>
  inTurn((report) => {
    const judgements = Array.from({ length: 16 * 40 }, (_, i): Judgement => {
      const prompt = tokens(shared);
      const rows = [0, 1].map(() =>
        shared > 0 ? { prompt, answer: tokens(64 - shared) } : { prompt: tokens(1), answer: tokens(63) },
      );
      return judged(rows, { id: `${i}`, root: `${i}`, stages: stagesOf([[0], [1]]) });
    });
    const calls = rewardCalls(MODEL, { rows: 16, columns: 128 }, { ...REWARD_DEFAULTS, epochs: MANY });
    const on = judgements.slice(0, 8).flatMap(({ rows }) => rows);
    return fitReward(MODEL, calls, initialParameters(MODEL, rng), judgements, on, 0, 'reward', report);
  });

const ppoStage = (sampler: ReturnType<typeof startSampler>, separateValue: boolean) =>
  inTurn((report) => {
    const settings = {
      ...PPO_DEFAULTS,
      rollout: 32,
      minibatch: 8,
      epochs: 4,
      answersPerPrompt: 1,
      separateValue,
      seed: 0,
    };
    const config = { ...settings, episodes: 32 * MANY, learningRate: 3e-6, beta: 0.05 };
    const calls = policyCalls(MODEL, shapeFor(64), config);
    const reward = rewardCalls(MODEL, shapeFor(64), REWARD_DEFAULTS);
    const weight = tf.tensor1d(freshHead(MODEL.hidden_size, rng));
    const rm: Scorer = {
      parameters: initialParameters(MODEL, rng),
      head: { weight, bias: tf.scalar(0) },
    };
    const prompts = Array.from({ length: 32 * 1000 }, () => tokens(16));
    const parent = initialParameters(MODEL, rng);
    return ppo(
      MODEL,
      calls,
      (rows) => scores(reward, rm, rows, MODEL.pad_token_id),
      parent,
      prompts,
      sampler.sample,
      48,
      config,
      report,
    );
  });

export async function* trl(): AsyncGenerator<Pair> {
  const sampler = startSampler(MODEL);
  const rows: [string, string, number, number, () => Promise<(steps: number) => Promise<number>>][] = [
    ['sft 6.84M vs trl', 'sft', 2, 4, sftStage],
    ['reward 6.84M vs trl, unrelated pairs', 'reward', 1.8, 4, () => rewardStage(0)],
    ['reward 6.84M vs trl, prompts shared', 'reward', 2.5, 4, () => rewardStage(32)],
    ['ppo 6.84M default vs trl', 'ppo', 5, 1, () => ppoStage(sampler, false)],
    ['ppo 6.84M separate value vs trl', 'ppo', 3, 1, () => ppoStage(sampler, true)],
  ];
  for (const [name, stage, goal, steps, start] of rows) {
    const ours = await start();
    const peers: Peer[] = [];
    for (const dtype of ['float32', 'bfloat16']) peers.push(await startPeer('trl_stage.py', stage, dtype));
    yield await pair({
      name: `trl/${name}`,
      unit: 'steps/s',
      more: true,
      goal,
      ours: () => ours(steps),
      theirs: async () => {
        const rates: number[] = [];
        for (const peer of peers) rates.push(await peer.rate(steps));
        return Math.max(...rates);
      },
      note: `products in ${precisionFor(MODEL)}; TRL in float32 and bfloat16, the better of the two`,
    });
    for (const peer of peers) peer.close();
  }
  await sampler.close();
}
