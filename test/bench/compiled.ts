// The compiled calls of a run at the demo's shape, beside the same code run op by op (what tfjs-node does by itself): PPO's step,
// the reward model's step, and the scoring of answers. Rows are real: tickets of the little world with answers of the seed policy.

import { packEdge, withLow } from '../../schema/edge.ts';
import { PPO_DEFAULTS, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import type { Row } from '../../trainer/data.ts';
import { dispose, mapTree } from '../../trainer/engine/compile.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { stagesOf, subjectsOf } from '../../trainer/judgements.ts';
import { ASPECTS, freshLikelihood } from '../../trainer/likelihood.ts';
import { freshLora, merged } from '../../trainer/lora.ts';
import type { Head } from '../../trainer/model.ts';
import { adamState } from '../../trainer/optimizer.ts';
import { batchOf, byPrompt, gathered, pack, predictionsOf, shapeFor } from '../../trainer/pack.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { policyCalls, scoreAnswers } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { evidence, type RewardModel, rewardCalls } from '../../trainer/reward.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { lowOf, readWeights, toHuggingFace } from '../../trainer/weights.ts';
import { eagerly } from '../support/eagerly.ts';
import { judged } from '../support/judged.ts';
import { seedPolicy } from '../support/seed.ts';
import { type Pair, pair } from './pair.ts';

const ANSWERS = 64;
const ANSWERS_A_PROMPT = 4;
const MAX_TOKENS = 40;

export async function* compiled(): AsyncGenerator<Pair> {
  const { folder, policy } = seedPolicy();
  const { config: model } = policy;
  const parameters = readWeights(folder, model);
  const asked = tickets('judging', 1, ANSWERS / ANSWERS_A_PROMPT).map(({ text }) =>
    policy.encodePrompt([{ role: 'user', content: text }]),
  );
  const prompts = asked.flatMap((prompt) => Array.from({ length: ANSWERS_A_PROMPT }, () => prompt));
  const sampler = startSampler(model);
  const drawn = await sampler.sample(
    parameters,
    prompts,
    prompts.map((_, i) => i),
    { maxTokens: MAX_TOKENS, temperature: 1 },
  );
  await sampler.close();
  const rows: Row[] = drawn.map(({ ids }, i) => ({ prompt: prompts[i]!, answer: ids }));
  const shape = shapeFor(0);
  const calls = policyCalls(model, shape, PPO_DEFAULTS);
  const reward = rewardCalls(model, shape, REWARD_DEFAULTS);

  const head = (): Head => ({ weight: tf.zeros([model.hidden_size]), bias: tf.scalar(0) });
  let actor = { parameters: mapTree(parameters, tf.clone), value: head() };
  let actorAdam = adamState(actor);
  let rm = {
    parameters: mapTree(parameters, tf.clone),
    head: head(),
    aspects: tf.zeros([ASPECTS, model.hidden_size]),
    likelihood: freshLikelihood(1024),
  } as RewardModel;
  let rmAdam = adamState(rm);
  const packs = pack(rows, byPrompt(rows, shape), shape, model.pad_token_id);
  const tokens = rows.reduce((sum, { prompt, answer }) => sum + prompt.length + answer.length, 0);
  const groups = Array.from({ length: ANSWERS_A_PROMPT }, (_, i) => [i]);
  const judgements = asked.map((_, j) =>
    judged(rows.slice(j * ANSWERS_A_PROMPT, (j + 1) * ANSWERS_A_PROMPT), { stages: stagesOf(groups) }),
  );
  const subjects = subjectsOf(judgements);

  const works: [string, () => void][] = [
    [
      'ppo step',
      () => {
        const numbers = new Float32Array(ANSWERS * MAX_TOKENS);
        const parts = packs.map((part) => ({
          temperature: tf.scalar(1),
          batch: batchOf(part, shape),
          predictions: predictionsOf(part, 1 / tokens),
          old: gathered(numbers, MAX_TOKENS, part),
          advantages: gathered(numbers, MAX_TOKENS, part),
          returns: gathered(numbers, MAX_TOKENS, part),
          values: gathered(numbers, MAX_TOKENS, part),
          importance: gathered(numbers, MAX_TOKENS, part),
        }));
        const stepped = calls.step(actor, actorAdam, 1e-5, parts);
        actor = stepped.parameters as typeof actor;
        actorAdam = stepped.adam;
      },
    ],
    [
      'reward step',
      () => {
        const parts = evidence(judgements, shape, model.pad_token_id, subjects);
        const stepped = reward.step(rm, rmAdam, 1e-5, parts);
        rm = stepped.parameters as RewardModel;
        rmAdam = stepped.adam;
      },
    ],
    ['score answers', async () => void (await scoreAnswers(calls, actor, rows, 1, model.pad_token_id))],
  ];
  const tokensPerSecond = async (work: () => void | Promise<void>, repeats: number): Promise<number> => {
    const started = performance.now();
    for (let i = 0; i < repeats; i++) await work();
    return (1000 * repeats * tokens) / (performance.now() - started);
  };
  for (const [name, work] of works) {
    const repeats = name === 'score answers' ? 6 : 3;
    await tokensPerSecond(work, 1); // traces and compiles
    await eagerly(() => tokensPerSecond(work, 1));
    yield await pair({
      name: `compiled/${name}`,
      unit: 'tok/s',
      more: true,
      goal: 1.3,
      ours: () => tokensPerSecond(work, repeats),
      theirs: () => eagerly(() => tokensPerSecond(work, repeats)),
      note: `compiled beside op by op; ${ANSWERS} answers, ${tokens} tokens with their prompts, in ${packs.length} calls of ${shape.rows} × ${shape.columns}`,
    });
  }

  yield await rolloutImage();
}

/** Adapters of SmolLM2-135M into the image of an iteration's rollouts: laid beside the base's, as PPO does, or merged and all packed anew. A second is allowed. */
async function rolloutImage(): Promise<Pair> {
  const path = await smollm2();
  const { config } = readPolicy(path);
  const weights = readWeights(path, config);
  const lora = freshLora(config, { rank: 8, on: ['attention', 'mlp'] }, random(1));
  const base = packEdge(config, toHuggingFace(config, weights), 8);
  const seconds = (work: () => void): number => {
    const started = performance.now();
    work();
    return (performance.now() - started) / 1000;
  };
  return pair({
    name: 'compiled/adapters of 135 M into the image of rollouts',
    unit: 's',
    more: false,
    goal: 1,
    ours: () => seconds(() => void withLow(base, lowOf(config, lora))),
    theirs: () =>
      seconds(() => {
        const whole = merged(weights, lora);
        packEdge(config, toHuggingFace(config, whole), 8);
        dispose(whole);
      }),
    note: 'beside merging and packing all of it; at most 1 s is meant',
  });
}
