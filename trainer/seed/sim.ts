// plumb sim: the loop on files, without HTTP. Simulated raters judge the seed policy's answers, a run learns from them, and the
// next round starts from what came out. Shows whether there is something to learn in the little world, and whether it is learnt.
//
//   plumb sim --rounds 2 --seeds 1,2,3 [--mode gold|random|inverted] [--bias] [--config json] [--no-gate] [--json]

import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import type { Side } from '../../schema/snapshot.ts';
import { decode } from '../../schema/tokenizer.ts';
import { runConfig } from '../config.ts';
import { compilations, dispose, mapTree } from '../engine/compile.ts';
import { tf } from '../engine/tf.ts';
import { type Judgement, judgementOf } from '../judgements.ts';
import { toTerminal } from '../metrics.ts';
import type { Parameters } from '../model.ts';
import { shapeFor } from '../pack.ts';
import { readPolicy } from '../policy.ts';
import { random } from '../random.ts';
import { startSampler } from '../rollout.ts';
import { runStages, stageCalls } from '../run.ts';
import { UserError } from '../user-error.ts';
import { readWeights } from '../weights.ts';
import { measure } from './measure.ts';
import { BIASED_SHARE, RATER_DEFAULTS, type RaterConfig } from './raters.ts';
import { questions, repeated, votesOn } from './votes.ts';
import { type Ticket, tickets } from './world.ts';

/** Where answers are cut; the longest ticket has 44 tokens. */
const MAX_TOKENS = 40;
const EVALUATION_SEED = 31_337;

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '2' },
    seeds: { type: 'string', default: '1' },
    judgements: { type: 'string', default: '400' },
    tickets: { type: 'string', default: '1000' },
    mode: { type: 'string', default: 'gold' },
    bias: { type: 'boolean', default: false },
    'no-gate': { type: 'boolean', default: false },
    config: { type: 'string', default: '{}' },
    policy: { type: 'string', default: `${import.meta.dirname}/policy` },
    json: { type: 'boolean', default: false },
    quiet: { type: 'boolean', default: false },
  },
});
const wrong = (option: string, wanted: string): never => {
  throw new UserError(`--${option} must be ${wanted}`);
};
const count = (option: 'rounds' | 'judgements' | 'tickets'): number => {
  const value = Number(options[option]);
  return Number.isInteger(value) && value > 0 ? value : wrong(option, 'a whole number above 0');
};
const [rounds, judged, measured] = [count('rounds'), count('judgements'), count('tickets')];
const seeds = options.seeds.split(',').map(Number);
if (!seeds.every(Number.isSafeInteger)) wrong('seeds', 'whole numbers with commas between');
const Mode = z.enum(['gold', 'random', 'inverted']);
const mode = Mode.safeParse(options.mode).data ?? wrong('mode', `one of ${Mode.options.join(', ')}`);
let overrides: object = {};
try {
  overrides = JSON.parse(options.config);
} catch {
  wrong('config', 'JSON, such as \'{"ppo": {"learningRate": 0}}\'');
}
const baseConfig = runConfig({ ...overrides, maxAnswerTokens: MAX_TOKENS });
const raters: RaterConfig = { ...RATER_DEFAULTS, mode, bias: options.bias ? BIASED_SHARE : 0 };

const policy = readPolicy(options.policy);
const model = policy.config;
const root = readWeights(options.policy, model);
const sampler = startSampler(model);
const calls = stageCalls(model, shapeFor(44 + MAX_TOKENS), baseConfig);
const evaluationTickets = tickets('evaluation', EVALUATION_SEED, measured);
const promptOf = (ticket: Ticket) => policy.encodePrompt([{ role: 'user', content: ticket.text }]);
const report = options.quiet ? () => {} : toTerminal();

async function answersTo(parameters: Parameters, asked: Ticket[], seed: number): Promise<string[]> {
  const seeds = asked.map((_, i) => seed * 1_000_000 + i);
  const prompts = asked.map(promptOf);
  const sampled = await sampler.sample(parameters, prompts, seeds, { maxTokens: MAX_TOKENS, temperature: 1 });
  return sampled.map(({ ids }) => decode(policy.tokenizer, ids));
}

/** One round's votes, by side. */
async function judgeRound(parameters: Parameters, seed: number, round: number) {
  const rng = random(seed, `raters ${round}`);
  const asked = questions(tickets('judging', seed * 1000 + round, judged), rng);
  const texts = await answersTo(parameters, repeated(asked), seed * 100 + round);
  const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
  const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
  for (const vote of votesOn(asked, texts, raters, rng, `${seed} ${round}`)) {
    prompts[vote.side].push(policy.encodePrompt(vote.prompt));
    const judgement = judgementOf(policy, vote);
    if (judgement) judgements[vote.side].push(judgement);
  }
  return { judgements, prompts };
}

const figure = (m: ReturnType<typeof measure>) =>
  `gold ${m.gold.mean.toFixed(3)} ±${(m.gold.high - m.gold.mean).toFixed(3)}  relevance ${m.relevance.toFixed(2)} coherence ${m.coherence.toFixed(2)} ethics ${m.ethics.toFixed(2)}  words ${m.length.toFixed(1)}  gap ${m.gap.toFixed(3)}  unseen ${m.unseen.toFixed(3)}`;

/** Seeds that were served better answers in the end, with intervals that do not touch, and worse ones; and what was promoted. */
interface Totals {
  rose: number;
  fell: number;
  candidatesRose: number;
  promotions: number;
  runs: number;
}

async function simulate(): Promise<Totals> {
  const totals: Totals = { rose: 0, fell: 0, candidatesRose: 0, promotions: 0, runs: 0 };
  for (const seed of seeds) {
    const began = performance.now();
    let parent = mapTree(root, tf.clone);
    const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
    const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
    const first = measure(evaluationTickets, await answersTo(parent, evaluationTickets, seed));
    let served = first;
    const results: object[] = [];
    console.log(`seed ${seed}  before   ${figure(first)}`);
    for (let round = 1; round <= rounds; round++) {
      const started = performance.now();
      const fresh = await judgeRound(parent, seed, round);
      for (const side of ['A', 'B', 'C'] as const) {
        judgements[side].push(...fresh.judgements[side]);
        prompts[side].push(...fresh.prompts[side]);
      }
      const config = { ...baseConfig, seed: seed * 10 + round };
      const input = { model, root, parent, judgements, prompts };
      const { candidate, gate } = await runStages(input, config, calls, sampler, MAX_TOKENS, report);
      totals.runs++;
      if (candidate) {
        const after = measure(evaluationTickets, await answersTo(candidate, evaluationTickets, seed + 50 * round));
        const kl = gate.metrics['gate/kl_parent']!;
        results.push({ ...after, each: undefined, kl, verdict: gate.verdict });
        console.log(
          `seed ${seed}  round ${round}  ${figure(after)}  KL ${kl.toFixed(2)}  ${gate.verdict}  ${((performance.now() - started) / 1000).toFixed(0)} s`,
        );
        if (after.gold.low > served.gold.high) totals.candidatesRose++;
        if (gate.verdict === 'promote') totals.promotions++;
        if (options['no-gate'] || gate.verdict === 'promote') {
          dispose(parent);
          parent = candidate;
          served = after;
        } else dispose(candidate);
      }
      for (const reason of gate.reasons)
        console.log(`    ${reason.passed ? 'passed' : 'FAILED'}  ${reason.check}: ${reason.words}`);
    }
    dispose(parent);
    if (served.gold.low > first.gold.high) totals.rose++;
    if (served.gold.high < first.gold.low) totals.fell++;
    const seconds = (performance.now() - began) / 1000;
    if (options.json)
      console.log(JSON.stringify({ seed, mode, before: { ...first, each: undefined }, rounds: results, seconds }));
    else console.log(`seed ${seed}  ${seconds.toFixed(0)} s`);
  }
  if (!options.quiet)
    for (const { name, seconds } of compilations) console.log(`compiled ${name} in ${seconds.toFixed(1)} s`);
  return totals;
}

/** Several seeds at once, each by one thread: together they do more than one after the other by all (LOG.md). */
async function onEveryCore(): Promise<Totals> {
  const cores = Math.min(availableParallelism(), seeds.length);
  const parts = await Promise.all(
    Array.from({ length: cores }, (_, core) => {
      const share = seeds.filter((_, i) => i % cores === core).join();
      const child = fork(process.argv[1]!, ['sim', ...process.argv.slice(2), '--seeds', share], {
        env: { ...process.env, TF_NUM_INTRAOP_THREADS: '1' },
      });
      return new Promise<Totals>((resolve, reject) => {
        child.on('message', (totals) => resolve(totals as Totals));
        child.on('exit', () => reject(new UserError(`the simulation of seeds ${share} broke off`)));
      });
    }),
  );
  const sum = (name: keyof Totals) => parts.reduce((total, part) => total + part[name], 0);
  return {
    rose: sum('rose'),
    fell: sum('fell'),
    candidatesRose: sum('candidatesRose'),
    promotions: sum('promotions'),
    runs: sum('runs'),
  };
}

// A child of onEveryCore's tells its parent, and ends with it.
process.on('disconnect', () => process.exit(1));
const totals = process.send || seeds.length === 1 ? await simulate() : await onEveryCore();
await sampler.close();
if (process.send) process.send(totals, () => process.exit());
else if (!options.json)
  console.log(
    `${mode} raters, ${seeds.length} seeds: gold of what is served rose in ${totals.rose} and fell in ${totals.fell} (95 % intervals apart); ` +
      `${totals.runs} candidates: ${totals.promotions} promoted, ${totals.candidatesRose} better than their parent by gold`,
  );
