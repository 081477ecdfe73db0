// A stage of ours on random weights and tokens. One side of trl.ts, in a process of its own so that its memory counts by itself.
//
// Trains only while it is asked to, as peers/trl_stage.py does: reads the number of steps from each line of its input, and answers with the
// steps a second.
// usage: stage.ts sft|sft-lora|reward|reward-shared|ppo|ppo-separate small|large
import { createInterface } from 'node:readline';
import type { ModelConfig } from '../../schema/manifest.ts';
import { type LoraConfig, PPO_DEFAULTS, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import { parked } from '../../trainer/engine/parked.ts';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { type Judgement, stagesOf } from '../../trainer/judgements.ts';
import type { Report } from '../../trainer/metrics.ts';
import { initialParameters } from '../../trainer/model.ts';
import { fullestShape, rolloutShape } from '../../trainer/pack.ts';
import { policyCalls, ppo } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { fitReward, freshHead, rewardCalls, type Scorer, scores } from '../../trainer/reward.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { sft } from '../../trainer/sft.ts';
import { judged } from '../support/judged.ts';
import { LARGE, SMALL } from './models.ts';

await setUpEngine();
const [stage, size] = process.argv.slice(2);
const model: ModelConfig = size === 'large' ? LARGE : SMALL;
const LORA: LoraConfig = { rank: 8, on: ['attention', 'mlp'] };
const WARM_UP = 2;
const MANY = 100_000;
const rng = random(1);
const tokens = (count: number) => Array.from({ length: count }, () => rng.int(4, model.vocab_size));

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

const sftStage = (lora: LoraConfig | null) =>
  inTurn((report) => {
    const rows = Array.from({ length: 16 * 40 }, () => ({ prompt: tokens(1), answer: tokens(127) }));
    const settings = { ...SFT_DEFAULTS, lora, batch: 16, steps: MANY, warmup: 1, learningRate: 1e-4, weightDecay: 0 };
    return sft(
      model,
      initialParameters(model, rng),
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
    const settings = { ...REWARD_DEFAULTS, epochs: MANY };
    const shape = fullestShape(
      64,
      judgements.map(({ rows }) => rows),
      settings.judgements,
    );
    const calls = rewardCalls(model, shape, settings);
    const on = judgements.slice(0, 8).flatMap(({ rows }) => rows);
    return fitReward(model, calls, initialParameters(model, rng), judgements, on, 0, 'reward', report);
  });

/** As our defaults have it: four answers to a prompt, values from a head on the policy. Or as TRL has it: an answer to each, a value model. */
const ppoStage = (asTrl: boolean) =>
  inTurn((report) => {
    const size = { rollout: 32, minibatch: 8, epochs: 4, seed: 0 };
    const settings = { ...PPO_DEFAULTS, ...size, ...(asTrl && { answersPerPrompt: 1, separateValue: true }) };
    const config = { ...settings, episodes: 32 * MANY, learningRate: 3e-6, beta: 0.05 };
    const prompts = Array.from({ length: 32 * 1000 }, () => tokens(16));
    const drawn = { prompt: [], answer: tokens(48) }; // random weights hardly ever end before
    const shape = rolloutShape(64, prompts, [drawn], config);
    const calls = policyCalls(model, shape, config);
    const reward = rewardCalls(model, shape, REWARD_DEFAULTS);
    const weight = tf.tensor1d(freshHead(model.hidden_size, rng));
    const rm: Scorer = {
      parameters: initialParameters(model, rng),
      head: { weight, bias: tf.scalar(0) },
    };
    const parent = initialParameters(model, rng);
    const resting = parked(rm.parameters);
    return ppo(
      model,
      calls,
      (rows) => resting.use(() => scores(reward, rm, rows, model.pad_token_id)),
      parent,
      prompts,
      startSampler(model).sample,
      48,
      config,
      report,
    );
  });

const STAGES: Record<string, () => Promise<(steps: number) => Promise<number>>> = {
  sft: () => sftStage(null),
  'sft-lora': () => sftStage(LORA),
  reward: () => rewardStage(0),
  'reward-shared': () => rewardStage(32),
  ppo: () => ppoStage(false),
  'ppo-separate': () => ppoStage(true),
};
const rate = await STAGES[stage!]!();
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) console.log(await rate(Number(line)));
process.exit(0);
