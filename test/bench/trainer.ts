// The compiled calls of a run at the demo's shape, beside the same code run op by op (what tfjs-node does by itself): PPO's step,
// the reward model's step, and the scoring of answers. Rows are real: tickets of the little world with answers of the seed policy.

import { batchOf, type Row } from '../../trainer/data.ts';
import { dispose, type Tree } from '../../trainer/engine/compile.ts';
import { backend, type Tensor, tf } from '../../trainer/engine/tf.ts';
import { stagesOf } from '../../trainer/judgements.ts';
import { adamState } from '../../trainer/optimizer.ts';
import { PPO_DEFAULTS, policyCalls } from '../../trainer/ppo.ts';
import { evidence, REWARD_DEFAULTS, rewardCalls } from '../../trainer/reward.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { readWeights } from '../../trainer/weights.ts';
import { seedPolicy } from '../support/seed.ts';
import { type Pair, pair } from './pair.ts';

const SHAPE = { batch: 64, prompt: 44, answer: 40 };
const TOKENS = SHAPE.batch * (SHAPE.prompt + SHAPE.answer);
const ANSWERS_A_JUDGEMENT = 4;

/** Runs the work with a binding that cannot take graphs, so that compile() lets its function run op by op. */
function eagerly<T>(work: () => T): T {
  const real = backend.binding;
  backend.binding = Object.create(real, { addGraphFunction: { value: undefined } });
  try {
    return work();
  } finally {
    backend.binding = real;
  }
}

export async function* trainer(): AsyncGenerator<Pair> {
  const { folder, policy } = seedPolicy();
  const { config: model } = policy;
  const parameters = readWeights(folder, model);
  const prompts = tickets('judging', 1, SHAPE.batch).map(({ text }) =>
    policy.encodePrompt([{ role: 'user', content: text }]),
  );
  const sampler = startSampler(model);
  const drawn = await sampler.sample(
    parameters,
    prompts,
    prompts.map((_, i) => i),
    { maxTokens: SHAPE.answer, temperature: 1 },
  );
  await sampler.close();
  const rows: Row[] = drawn.map(({ ids }, i) => ({ prompt: prompts[i]!, answer: ids }));
  const calls = policyCalls(model, SHAPE, PPO_DEFAULTS);
  const reward = rewardCalls(model, SHAPE, REWARD_DEFAULTS);

  const head = () => ({ weight: tf.zeros([model.hidden_size]), bias: tf.scalar(0) });
  const actor = { parameters, value: head() };
  const actorAdam = adamState(actor);
  const rm = { parameters, head: head(), thumbs: { logScale: tf.scalar(0), bias: tf.scalar(0) } };
  const rmAdam = adamState(rm);
  const rate = tf.scalar(1e-4);
  const temperature = tf.scalar(1);
  const batch = batchOf(rows, SHAPE, model.pad_token_id);
  const perToken = (value: number): Tensor => tf.fill([SHAPE.batch, SHAPE.answer], value);
  const minibatch = {
    ...batch,
    old: perToken(-1),
    advantages: perToken(0.5),
    returns: perToken(0.5),
    values: perToken(0),
    importance: perToken(1),
  };
  const groups = Array.from({ length: ANSWERS_A_JUDGEMENT }, (_, i) => [i]);
  const judgements = Array.from({ length: rows.length / ANSWERS_A_JUDGEMENT }, (_, j) => ({
    id: `judgement ${j}`,
    root: `prompt ${j}`,
    texts: [],
    rows: rows.slice(j * ANSWERS_A_JUDGEMENT, (j + 1) * ANSWERS_A_JUDGEMENT),
    stages: stagesOf(groups),
    thumbs: [],
  }));
  const judged = evidence(judgements, SHAPE, model.pad_token_id);

  const works: [string, () => { result: Tree; last: Tensor }][] = [
    [
      'ppo step',
      () => {
        const result = calls.step(actor, actorAdam, rate, temperature, minibatch);
        return { result, last: result.norm };
      },
    ],
    [
      'reward step',
      () => {
        const result = reward.step(rm, rmAdam, rate, judged.rows, judged.stages, judged.thumbs);
        return { result, last: result.norm };
      },
    ],
    [
      'score answers',
      () => {
        const result = calls.score(actor, temperature, batch.tokens, batch.start);
        return { result, last: result.logprobs };
      },
    ],
  ];
  const tokensPerSecond = (work: () => { result: Tree; last: Tensor }, repeats: number): number => {
    const started = performance.now();
    for (let i = 0; i < repeats; i++) {
      const { result, last } = work();
      last.dataSync(); // the work is done when its last value is here
      dispose(result);
    }
    return (1000 * repeats * TOKENS) / (performance.now() - started);
  };
  for (const [name, work] of works) {
    const repeats = name === 'score answers' ? 6 : 3;
    tokensPerSecond(work, 1); // traces and compiles
    eagerly(() => tokensPerSecond(work, 1));
    yield await pair({
      name: `trainer/${name}`,
      unit: 'tok/s',
      more: true,
      goal: 1.3,
      ours: () => tokensPerSecond(work, repeats),
      theirs: () => eagerly(() => tokensPerSecond(work, repeats)),
      note: `compiled beside op by op, ${TOKENS} tokens a call, padding included`,
    });
  }
}
