// PPO learns what there is to learn: on a graph, from walks at random, to take the shortest way to the goal. After trlX's
// examples/randomwalks (golden/randomwalks.py); scores are the task's own, no reward model stands between.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ModelConfig } from '../../schema/manifest.ts';
import { PPO_DEFAULTS } from '../../schema/run-config.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import type { Row } from '../../trainer/data.ts';
import { dispose } from '../../trainer/engine/compile.ts';
import { initialParameters, type Parameters } from '../../trainer/model.ts';
import { shapeFor } from '../../trainer/pack.ts';
import { policyCalls, ppo } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { mean } from '../../trainer/rl.ts';
import { rowsOf, startSampler } from '../../trainer/rollout.ts';
import { sft } from '../../trainer/sft.ts';

const { longest, edges, shortest, walks } = JSON.parse(
  readFileSync(join(import.meta.dirname, '../golden/randomwalks.json'), 'utf8'),
) as { longest: number; edges: number[][]; shortest: number[]; walks: string[] };
const GOAL = 0;
const PAD = edges.length;
const EOS = PAD + 1;
const MODEL: ModelConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 32,
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 1,
  num_key_value_heads: 1,
  head_dim: 64,
  max_position_embeddings: 32,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: EOS,
  pad_token_id: PAD,
};
const nodes = walks.map((walk) => [...walk].map((letter) => letter.charCodeAt(0) - 97));
const starts = [...new Set(nodes.map(([start]) => start!))].sort((a, b) => a - b);

/** How near a walk is to the shortest one from its start: 0 where it leaves the graph or never arrives, 1 where it is the shortest. */
function optimality({ prompt, answer }: Row): number {
  const path = [prompt[0]!, ...answer];
  const arrived = path.indexOf(GOAL);
  const valid = arrived > 0 && path.slice(0, arrived).every((node, i) => edges[node]?.includes(path[i + 1]!));
  const length = valid ? Math.min(longest, arrived + 1) : longest;
  return (longest - length) / (longest - shortest[prompt[0]!]!);
}

const sampler = startSampler(MODEL);
afterAll(() => sampler.close());
const SHAPE = shapeFor(longest + 1);
const config = {
  ...PPO_DEFAULTS,
  rollout: 128,
  episodes: 128 * 20,
  minibatch: 64,
  epochs: 4,
  learningRate: 1e-3,
  beta: 0,
  missingEosScore: 0,
  klLimit: 1000,
  valueWeight: 1,
};
const calls = policyCalls(MODEL, SHAPE, config);

async function scoreOf(parameters: Parameters, seed: number): Promise<number> {
  const asked = Array.from({ length: 500 }, (_, i) => [starts[i % starts.length]!]);
  const seeds = asked.map((_, i) => seed * 1000 + i);
  const drawn = await sampler.sample(parameters, asked, seeds, { maxTokens: longest, temperature: 1 });
  return mean(rowsOf(asked, drawn).map(optimality));
}

/** All three take a minute: `npm run test:seeds`. */
const SEEDS = (process.env.PLUMB_SEEDS ?? '1').split(',').map(Number);
test.each(SEEDS)(
  'seed %i: twenty iterations take a policy that was trained on walks at random from .6 to above .9',
  async (seed) => {
    const rows = nodes.map(([start, ...rest]): Row => ({ prompt: [start!], answer: [...rest, EOS] }));
    const { parameters } = await sft(
      MODEL,
      initialParameters(MODEL, random(seed, 'weights')),
      rows,
      [],
      {
        ...SFT_DEFAULTS,
        steps: 100,
        batch: 100,
        shape: SHAPE,
        learningRate: 3e-3,
        warmup: 20,
        weightDecay: 0,
        seed,
      },
      () => {},
    );
    const before = await scoreOf(parameters, seed);
    const optimised = await ppo(
      MODEL,
      calls,
      (rows) => rows.map(optimality),
      parameters,
      starts.map((start) => [start]),
      sampler.sample,
      longest,
      { ...config, seed },
      () => {},
    );
    const after = await scoreOf(optimised, seed);
    dispose(parameters, optimised);
    expect(before).toBeGreaterThan(0.55);
    expect(before).toBeLessThan(0.7);
    expect(after).toBeGreaterThan(0.9);
  },
);
