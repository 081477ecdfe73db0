// Our reward model beside TRL's RewardTrainer on real judgements: people's choices between two answers on harmlessness (Anthropic's hh-rlhf),
// SmolLM2-135M-Instruct below both, the same rows, epochs, batch, learning rate and LoRA; five folds by prompt.
//
//   node test/bench/hh.ts --out <folder> [--data <file>] [--folds 0,1,2,3,4] [--rows n]
//
// The data stay outside of the project: one {prompt, chosen, rejected} a line, gzipped. What a side gave on a fold is kept in the folder, so
// that they may be run one by one; the folds that both have are summed up at the end. Pairs of more than 512 tokens are left out on both sides.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { gunzipSync } from 'node:zlib';
import type { Message } from '../../schema/message.ts';
import { calibrationOf, type Preferred, preferredIn, scaleOf } from '../../trainer/calibration.ts';
import { runConfig } from '../../trainer/config.ts';
import { dispose } from '../../trainer/engine/compile.ts';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import { makeFolder } from '../../trainer/folder.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { readJudgements } from '../../trainer/judgements.ts';
import { toTerminal } from '../../trainer/metrics.ts';
import { precisionFor } from '../../trainer/model.ts';
import { drawingShape, fullestShape } from '../../trainer/pack.ts';
import { peakMemory } from '../../trainer/plan.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { random } from '../../trainer/random.ts';
import { fitReward, rewardCalls, scoresOf } from '../../trainer/reward.ts';
import { mean } from '../../trainer/rl.ts';
import { UserError } from '../../trainer/user-error.ts';
import { readWeights, writePolicy } from '../../trainer/weights.ts';
import { peersPython } from './peers.ts';

const FOLDS = 5;
const LONGEST = 512;
const SETTINGS = { epochs: 1, learningRate: 4e-4, rank: 16, batch: 16, seed: 1 };

const { values: options } = parseArgs({
  options: {
    data: { type: 'string', default: '../shared/data/hh-harmless.jsonl.gz' },
    out: { type: 'string' },
    folds: { type: 'string', default: '0,1,2,3,4' },
    rows: { type: 'string', default: '1500' },
  },
});
if (!options.out) throw new UserError('--out <folder>: where what each fold gave is kept');
if (!existsSync(options.data))
  throw new UserError(`there is no ${options.data}: --data <file>, rows {prompt, chosen, rejected}, gzipped`);
const out = options.out;
makeFolder(out);

interface Pair {
  prompt: Message[];
  chosen: Message[];
  rejected: Message[];
}
interface Side {
  /** Of each held-out pair, score of the chosen less that of the rejected. */
  margins: number[];
  seconds: number;
  peakBytes: number;
}
interface Fold {
  roots: string[];
  ours: Side;
  trl: Side;
}
const SIDES = { ours, trl: theirs };

const python = peersPython();
const base = await smollm2();
const policy = readPolicy(base);
const model = policy.config;
const length = (messages: Message[]) => policy.encodePrompt(messages).length;
const pairs = gunzipSync(readFileSync(options.data))
  .toString()
  .trim()
  .split('\n')
  .slice(0, Number(options.rows))
  .map((line) => JSON.parse(line) as Pair)
  .filter(
    ({ prompt, chosen, rejected }) =>
      Math.max(length([...prompt, ...chosen]), length([...prompt, ...rejected])) <= LONGEST,
  );
const rootOf = ({ prompt }: Pair) => prompt[0]!.content;
const roots = random(SETTINGS.seed, 'folds').shuffle([...new Set(pairs.map(rootOf))]);
const foldOf = new Map(roots.map((root, i) => [root, i % FOLDS]));
console.error(`${pairs.length} pairs of ${LONGEST} tokens at most, ${roots.length} conversations`);

const heldOf = (fold: number) => pairs.filter((pair) => foldOf.get(rootOf(pair)) === fold);
const resultOf = (fold: number, side: string) => join(out, `fold-${fold}-${side}.json`);

await setUpEngine();
for (const fold of options.folds.split(',').map(Number)) {
  const file = (name: string, rows: Pair[]) => {
    const path = join(out, `${name}-${fold}.jsonl`);
    writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return path;
  };
  const train = file(
    'train',
    pairs.filter((pair) => foldOf.get(rootOf(pair)) !== fold),
  );
  const test = file('test', heldOf(fold));
  for (const [name, side] of Object.entries(SIDES))
    if (!existsSync(resultOf(fold, name)))
      writeFileSync(resultOf(fold, name), JSON.stringify((await side(train, test)) satisfies Side));
}

summary(
  Array.from({ length: FOLDS }, (_, fold) => fold)
    .filter((fold) => Object.keys(SIDES).every((name) => existsSync(resultOf(fold, name))))
    .map((fold): Fold => {
      const side = (name: string) => JSON.parse(readFileSync(resultOf(fold, name), 'utf8')) as Side;
      return { roots: heldOf(fold).map(rootOf), ours: side('ours'), trl: side('trl') };
    }),
);

async function ours(train: string, test: string): Promise<Side> {
  const [fitted, held] = [train, test].map((path) => readJudgements(policy, path)) as [
    ReturnType<typeof readJudgements>,
    ReturnType<typeof readJudgements>,
  ];
  const weights = readWeights(base, model);
  const judged = [...fitted, ...held].map(({ rows }) => rows);
  const { longest } = drawingShape(model.max_position_embeddings, judged, [], 1);
  const config = runConfig({
    lora: { rank: SETTINGS.rank, on: ['attention', 'mlp'] },
    reward: { epochs: SETTINGS.epochs, learningRate: SETTINGS.learningRate, judgements: SETTINGS.batch },
  });
  const calls = rewardCalls(model, fullestShape(longest, judged, SETTINGS.batch), config.reward, config.lora);
  const began = performance.now();
  const on = fitted.slice(0, 50).flatMap(({ rows }) => rows);
  const rm = await fitReward(
    model,
    calls,
    weights,
    fitted,
    on,
    SETTINGS.seed,
    'reward',
    toTerminal(process.stderr, []),
  );
  const seconds = (performance.now() - began) / 1000;
  const scored = await scoresOf(calls, rm, held, model.pad_token_id);
  const margins = preferredIn(held, scored, scaleOf(rm)).map(({ margin }) => margin);
  dispose(rm, weights);
  return { margins, seconds, peakBytes: peakMemory() };
}

/** TRL's RewardTrainer, in a process of its own. */
function theirs(train: string, test: string): Side {
  const folder = join(out, 'base');
  if (!existsSync(join(folder, 'model.safetensors'))) {
    const weights = readWeights(base, model);
    writePolicy(folder, policy, weights, 'F32');
    dispose(weights);
  }
  const { epochs, learningRate, rank, batch, seed } = SETTINGS;
  const script = join(import.meta.dirname, 'peers', 'trl_hh.py');
  const numbers = [epochs, learningRate, rank, batch, seed, LONGEST].map(String);
  const args = [script, folder, train, test, ...numbers, precisionFor(model)];
  const env = { ...process.env, OMP_NUM_THREADS: '2', CUDA_VISIBLE_DEVICES: '', HF_HUB_OFFLINE: '1' };
  const { status, stdout } = spawnSync(python, args, { env, stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 2 ** 26 });
  if (status !== 0) throw new UserError(`${script} ended with ${status}`);
  return JSON.parse(stdout.toString().trim().split('\n').at(-1)!) as Side;
}

function summary(folds: Fold[]): void {
  const sides = (['ours', 'trl'] as const).map((name) => {
    const preferred = folds.map((fold) =>
      fold[name].margins.map(
        (margin, i): Preferred => ({
          margin,
          weight: 1,
          kind: 'choice',
          rater: null,
          cohorts: {},
          answers: `${i}`,
          better: '',
        }),
      ),
    );
    // A fold's temperature comes from the others: no probability knows the pairs that it is held against.
    const tempered = preferred.flatMap((own, i) => {
      const others = preferred.flatMap((fold, j) => (j === i && folds.length > 1 ? [] : fold));
      const { temperature } = calibrationOf(others);
      return own.map((pair) => ({ ...pair, margin: pair.margin / temperature }));
    });
    const { accuracy, asFitted } = calibrationOf(tempered);
    return {
      name,
      right: tempered.map(({ margin }) => (margin > 0 ? 1 : margin < 0 ? 0 : 0.5)),
      accuracy,
      ...asFitted,
      seconds: mean(folds.map((fold) => fold[name].seconds)),
      peak: Math.max(...folds.map((fold) => fold[name].peakBytes)),
    };
  });
  console.log(
    `${folds.length} of ${FOLDS} folds, ${sides[0]!.right.length} held-out pairs, products in ${precisionFor(model)}`,
  );
  for (const { name, accuracy, logLoss, brier, ece, seconds, peak } of sides)
    console.log(
      `${name.padEnd(6)} right ${(100 * accuracy).toFixed(2)} %  log loss ${logLoss.toFixed(4)}  Brier ${brier.toFixed(4)}  ECE ${ece.toFixed(4)}  ${seconds.toFixed(0)} s a fold  ${(peak / 1e9).toFixed(1)} GB`,
    );
  const conversations = Map.groupBy(
    folds.flatMap((fold) => fold.roots).map((root, i) => ({ root, apart: sides[0]!.right[i]! - sides[1]!.right[i]! })),
    ({ root }) => root,
  );
  const apart = [...conversations.values()].map((of) => of.map((pair) => pair.apart));
  const rng = random(1, 'bootstrap');
  const means = Array.from({ length: 10_000 }, () => mean(apart.flatMap(() => rng.pick(apart)))).sort((a, b) => a - b);
  const points = (x: number) => `${(100 * x).toFixed(2)}`;
  console.log(
    `ours − TRL: ${points(mean(apart.flat()))} points, 95 % from ${points(means[250]!)} to ${points(means[9750]!)} (goal: above −2)`,
  );
}
