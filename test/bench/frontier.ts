// Gold against KL on the little world: what each way of optimising against people's judgements buys for straying from the first policy. The
// same votes and, but for DPO, the same reward model for all.
//
//   node test/bench/frontier.ts [--seeds 1,2,3,4,5] [--plot file.svg]
//
// PPO with and without KL control, TRL's PPO at two coefficients of KL (it has no controller), DPO (Rafailov et al. 2023) on the same pairs, and the best of n answers by the reward model, whose KL is
// log n − (n − 1)/n at most (Beirami et al. 2024). Without KL control gold falls again while the reward still rises (Gao et al. 2023).
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PPO_DEFAULTS, type PpoConfig } from '../../schema/run-config.ts';
import { decode } from '../../schema/tokenizer.ts';
import { runConfig } from '../../trainer/config.ts';
import type { Row } from '../../trainer/data.ts';
import { dispose, mapTree } from '../../trainer/engine/compile.ts';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { type Judgement, judgementOf, pairsOf } from '../../trainer/judgements.ts';
import { hiddenStates, type Parameters, statesBefore, tokenLogprobs } from '../../trainer/model.ts';
import { adamState, trainer } from '../../trainer/optimizer.ts';
import { ANSWERS, type Batch, batchOf, type Predictions, pack, predictionsOf, shapeFor } from '../../trainer/pack.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { answerLogprobsOf, perTokenOf, policyCalls, ppo } from '../../trainer/ppo.ts';
import { random } from '../../trainer/random.ts';
import { fitReward, PRIOR_TOKENS, type RewardModel, rewardCalls, scores } from '../../trainer/reward.ts';
import { mean, sequenceMean } from '../../trainer/rl.ts';
import { rowsOf, startSampler } from '../../trainer/rollout.ts';
import { RATER_DEFAULTS } from '../../trainer/seed/raters.ts';
import { questions, repeated, votesOn } from '../../trainer/seed/votes.ts';
import { gold, tickets } from '../../trainer/seed/world.ts';
import { UserError } from '../../trainer/user-error.ts';
import { readWeights, writePolicy } from '../../trainer/weights.ts';
import { peersPython } from './peers.ts';
import { svg } from './plot.ts';

const { values: options } = parseArgs({
  options: { seeds: { type: 'string', default: '1,2,3,4,5' }, plot: { type: 'string', default: '' } },
});
await setUpEngine();

const FOLDER = `${import.meta.dirname}/../../trainer/seed/policy`;
const MAX_TOKENS = 40;
const policy = readPolicy(FOLDER);
const model = policy.config;
const pad = model.pad_token_id;
const parent = readWeights(FOLDER, model);
const sampler = startSampler(model);
const shape = shapeFor(44 + MAX_TOKENS);
const config = runConfig({ maxAnswerTokens: MAX_TOKENS });
const PATHS: [string, Partial<PpoConfig>][] = [
  ['PPO', {}],
  ['PPO without KL control', { beta: 0, episodes: 3072, klLimit: 1e9 }],
];
const TRL_BETAS = [0.1, 0.2];
const calls = { policy: policyCalls(model, shape, PPO_DEFAULTS), reward: rewardCalls(model, shape, config.reward) };
const evaluation = tickets('evaluation', 31_337, 300);
const asked = evaluation.map(({ text }) => policy.encodePrompt([{ role: 'user', content: text }]));

interface Point {
  way: string;
  seed: number;
  kl: number;
  gold: number;
  reward: number;
}

async function draw(parameters: Parameters, prompts: number[][], seed: number): Promise<Row[]> {
  const seeds = prompts.map((_, i) => (seed * 1_000_003 + i) >>> 0);
  const sampled = await sampler.sample(parameters, prompts, seeds, { maxTokens: MAX_TOKENS, temperature: 1 });
  return rowsOf(prompts, sampled);
}
const goldOf = (rows: Row[], ticketOf = (i: number) => i): number[] =>
  rows.map(({ answer }, i) => gold(evaluation[ticketOf(i)]!, decode(policy.tokenizer, answer)).mean);

/** Direct preference optimisation: −log σ(β·(Δ log π − Δ log π_ref)) over the judgements' pairs. `after` is called after each epoch. */
async function dpo(
  judgements: Judgement[],
  seed: number,
  after: (weights: Parameters) => Promise<void>,
): Promise<void> {
  const [BETA, RATE, EPOCHS, PAIRS] = [0.1, 2e-4, 6, 16];
  type Part = {
    batch: Batch;
    predictions: Predictions;
    members: Tensor;
    signs: Tensor;
    reference: Tensor;
    weight: Tensor;
  };
  const loss = (weights: Parameters, { batch, predictions, members, signs, reference, weight }: Part) => {
    const before = statesBefore(hiddenStates(model, weights, batch), predictions); // (R W, D) → (N, D)
    const { logprobs } = tokenLogprobs(weights, before, predictions.target); // (N)
    const totals = tf.matMul(members, tf.reshape(logprobs, [-1, 1])); // (S, N) · (N, 1) → (S, 1)
    const margins = tf.matMul(signs, tf.sub(totals, reference)); // (pairs, S) · (S, 1) → (pairs, 1)
    return { loss: tf.sum(tf.mul(weight, tf.softplus(tf.mul(-BETA, margins)))) as Tensor };
  };
  const step = trainer('dpo', loss, { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 });
  const pairs = judgements.flatMap(({ rows, stages, ...rest }) =>
    pairsOf({ rows, stages, ...rest }).map(([better, worse]) => [rows[better]!, rows[worse]!] as [Row, Row]),
  );
  const rows = pairs.flat();
  const { columns } = perTokenOf(rows);
  const known = await answerLogprobsOf(model, calls.policy, parent, rows);
  const reference = rows.map(({ answer }, i) =>
    known.subarray(i * columns, i * columns + answer.length).reduce((a, b) => a + b, 0),
  );
  let weights = mapTree(parent, tf.clone) as Parameters;
  let adam = adamState(weights);
  const rng = random(seed, 'dpo');
  for (let epoch = 0; epoch < EPOCHS; epoch++) {
    const order = rng.shuffle(pairs.map((_, i) => i));
    for (let at = 0; at < order.length; at += PAIRS) {
      const chosen = order.slice(at, at + PAIRS);
      const bundles = chosen.map((i) => [2 * i, 2 * i + 1]);
      const parts = pack(rows, bundles, shape, pad).map((packed): Part => {
        const N = packed.tokens.length;
        const members = new Float32Array(ANSWERS * N);
        const signs = new Float32Array((ANSWERS / 2) * ANSWERS);
        const own = new Float32Array(ANSWERS);
        const weight = new Float32Array(ANSWERS / 2);
        let n = 0;
        packed.placed.forEach(({ row, length }, slot) => {
          members.fill(1, slot * N + n, slot * N + n + length);
          n += length;
          own[slot] = reference[row]!;
          signs[(slot >> 1) * ANSWERS + slot] = row % 2 === 0 ? 1 : -1;
          weight[slot >> 1] = 1 / chosen.length;
        });
        return {
          batch: batchOf(packed, shape),
          predictions: predictionsOf(packed, 1),
          members: tf.tensor2d(members, [ANSWERS, N]),
          signs: tf.tensor2d(signs, [ANSWERS / 2, ANSWERS]),
          reference: tf.tensor2d(own, [ANSWERS, 1]),
          weight: tf.tensor2d(weight, [ANSWERS / 2, 1]),
        };
      });
      ({ parameters: weights, adam } = step(weights, adam, RATE, parts));
      await new Promise(setImmediate);
    }
    await after(weights);
  }
  dispose(weights, adam);
}

/** TRL's PPO against the same reward model, from the same policy on the same prompts: its weights eight times on its way. */
async function trlPpo(
  rm: RewardModel,
  prompts: number[][],
  settings: PpoConfig,
  after: (weights: Parameters) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'plumb-frontier-'));
  try {
    writePolicy(join(folder, 'policy'), policy, parent, 'F32');
    writePolicy(join(folder, 'reward'), policy, rm.parameters, 'F32');
    const [weight, bias] = [rm.head.weight, rm.head.bias].map((tensor) => [...tensor.dataSync()]);
    writeFileSync(join(folder, 'head.json'), JSON.stringify({ weight, bias: bias![0], prior: PRIOR_TOKENS }));
    writeFileSync(join(folder, 'prompts.json'), JSON.stringify(prompts));
    const out = join(folder, 'out');
    const script = join(import.meta.dirname, 'peers', 'trl_frontier.py');
    const args = [script, folder, out, `${MAX_TOKENS}`, `${settings.seed}`, JSON.stringify(settings)];
    const env = { ...process.env, OMP_NUM_THREADS: '2', CUDA_VISIBLE_DEVICES: '', HF_HUB_OFFLINE: '1' };
    const { status } = spawnSync(peersPython(), args, { env, stdio: ['ignore', 'ignore', 'inherit'] });
    if (status !== 0) throw new UserError(`${script} ended with ${status}`);
    const steps = readdirSync(out).filter((name) => /^\d+$/.test(name));
    for (const step of steps.sort((a, b) => Number(a) - Number(b))) {
      const weights = readWeights(join(out, step), model);
      await after(weights);
      dispose(weights);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const points: Point[] = [];
const note = (point: Point) => {
  points.push(point);
  console.log(JSON.stringify(point));
};
for (const seed of options.seeds.split(',').map(Number)) {
  const rng = random(seed, 'raters 1');
  const judged = questions(tickets('judging', seed * 1000 + 1, 400), rng);
  const texts = (
    await draw(
      parent,
      repeated(judged).map(({ text }) => policy.encodePrompt([{ role: 'user', content: text }])),
      seed,
    )
  ).map(({ answer }) => decode(policy.tokenizer, answer));
  const votes = votesOn(judged, texts, RATER_DEFAULTS, rng, `${seed}`).filter(({ side }) => side === 'A');
  const judgements = votes.flatMap((vote) => judgementOf(policy, vote) ?? []);
  const prompts = votes.map((vote) => policy.encodePrompt(vote.prompt));
  const on = await draw(parent, [...prompts, ...prompts], seed + 7);
  const rm = await fitReward(model, calls.reward, parent, judgements, on, seed, 'reward', () => {});
  const rewardOf = (rows: Row[]) => scores(calls.reward, rm, rows, pad);
  const measured = async (way: string, weights: Parameters) => {
    const rows = await draw(weights, asked, seed + 99);
    const perToken = perTokenOf(rows);
    const [own, reference] = [
      await answerLogprobsOf(model, calls.policy, weights, rows),
      await answerLogprobsOf(model, calls.policy, parent, rows),
    ];
    const kl = sequenceMean(
      own.map((logprob, i) => logprob - reference[i]!),
      perToken,
    );
    note({ way, seed, kl, gold: mean(goldOf(rows)), reward: mean(await rewardOf(rows)) });
  };

  const MOST = 16;
  const all = await draw(
    parent,
    asked.flatMap((prompt) => Array.from({ length: MOST }, () => prompt)),
    seed + 500,
  );
  const [golds, rewards] = [goldOf(all, (i) => Math.floor(i / MOST)), await rewardOf(all)];
  for (const n of [1, 2, 4, 8, 16]) {
    const best = asked.map((_, t) => {
      const own = Array.from({ length: n }, (_, k) => t * MOST + k);
      return own.reduce((a, b) => (rewards[b]! > rewards[a]! ? b : a));
    });
    const kl = Math.log(n) - (n - 1) / n;
    note({
      way: 'best of n',
      seed,
      kl,
      gold: mean(best.map((i) => golds[i]!)),
      reward: mean(best.map((i) => rewards[i]!)),
    });
  }
  for (const [way, over] of PATHS) {
    const settings = { ...config.ppo, ...over, seed };
    const every = settings.episodes / settings.rollout / 8;
    const weights = await ppo(
      model,
      calls.policy,
      rewardOf,
      parent,
      prompts,
      sampler.sample,
      MAX_TOKENS,
      settings,
      () => {},
      null,
      async ({ actor, iteration }) => {
        if (iteration % every === 0) await measured(way, actor.parameters as Parameters);
      },
    );
    dispose(weights);
  }
  for (const beta of TRL_BETAS)
    await trlPpo(rm, prompts, { ...config.ppo, beta, seed }, (weights) => measured(`TRL's PPO, β ${beta}`, weights));
  await dpo(judgements, seed, (weights) => measured('DPO', weights));
  dispose(rm);
}
await sampler.close();
if (options.plot) writeFileSync(options.plot, plot(points));

/** Gold over KL, a line a seed and a colour a way; a line ends where it leaves the picture. */
function plot(points: Point[]): string {
  const most = Math.min(12, Math.max(...points.map(({ kl }) => kl)));
  const [least, greatest] = [0.2, 0.8];
  const colours: Record<string, string> = {
    PPO: '#0b7285',
    'PPO without KL control': '#c92a2a',
    "TRL's PPO, β 0.1": '#e8590c',
    "TRL's PPO, β 0.2": '#f08c00',
    DPO: '#5f3dc4',
    'best of n': '#868e96',
  };
  const lines = [...Map.groupBy(points, ({ way, seed }) => `${way} ${seed}`).values()].map((of) => {
    const outside = of.findIndex(({ kl, gold }) => kl > most || gold < least);
    const seen = outside < 0 ? of : of.slice(0, outside + 1);
    const { way } = of[0]!;
    return { name: way, colour: colours[way]!, points: seen.map(({ kl, gold }) => [kl, gold] as [number, number]) };
  });
  const x = {
    title: 'KL to the first policy, nats an answer (square root)',
    ticks: [0, 0.5, 1, 2, 4, 8, 12].filter((kl) => kl <= most),
    place: (kl: number) => Math.sqrt(Math.max(0, Math.min(kl, most)) / most),
  };
  const y = {
    title: 'gold',
    ticks: [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    place: (value: number) => (Math.max(value, least) - least) / (greatest - least),
  };
  return svg('Gold over KL to the first policy', [{ x, y, lines }]);
}
