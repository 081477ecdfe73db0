// plumb sim: the loop on files, without HTTP. Simulated raters judge the seed policy's answers, a run learns from them, and the
// next round starts from what came out. Shows whether there is something to learn in the little world, and whether it is learnt.
//
//   plumb sim --rounds 2 --seeds 1,2,3 [--mode gold|random|inverted] [--bias] [--lr 4e-4] [--no-gate] [--json]

import { parseArgs } from 'node:util';
import type { Side } from '../../schema/snapshot.ts';
import { decode } from '../../schema/tokenizer.ts';
import { RUN_DEFAULTS, type RunConfig } from '../config.ts';
import { compilations, dispose, mapTree } from '../engine/compile.ts';
import { tf } from '../engine/tf.ts';
import { type Judgement, judgementOf } from '../judgements.ts';
import { toTerminal } from '../metrics.ts';
import type { Parameters } from '../model.ts';
import { shapeFor } from '../pack.ts';
import { readPolicy } from '../policy.ts';
import { answerLogprobsOf, perTokenOf } from '../ppo.ts';
import { random } from '../random.ts';
import { sequenceMean } from '../rl.ts';
import { startSampler } from '../rollout.ts';
import { runStages, stageCalls } from '../run.ts';
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
const overrides = JSON.parse(options.config) as Record<string, Record<string, number>>;
const baseConfig: RunConfig = {
  ...RUN_DEFAULTS,
  maxAnswerTokens: MAX_TOKENS,
  reward: { ...RUN_DEFAULTS.reward, ...overrides.reward },
  ppo: { ...RUN_DEFAULTS.ppo, ...overrides.ppo },
  gate: { ...RUN_DEFAULTS.gate, ...overrides.gate },
};
const raters: RaterConfig = {
  ...RATER_DEFAULTS,
  mode: options.mode as RaterConfig['mode'],
  bias: options.bias ? BIASED_SHARE : 0,
};

const policy = readPolicy(options.policy);
const model = policy.config;
const root = readWeights(options.policy, model);
const sampler = startSampler(model);
const calls = stageCalls(model, shapeFor(44 + MAX_TOKENS), baseConfig);
const evaluationTickets = tickets('evaluation', EVALUATION_SEED, Number(options.tickets));
const promptOf = (ticket: Ticket) => policy.encodePrompt([{ role: 'user', content: ticket.text }]);
const report = options.quiet ? () => {} : toTerminal();

/** Answers as token ids and as text. */
async function answer(parameters: Parameters, asked: Ticket[], seed: number) {
  const seeds = asked.map((_, i) => seed * 1_000_000 + i);
  const prompts = asked.map(promptOf);
  const sampled = await sampler.sample(parameters, prompts, seeds, { maxTokens: MAX_TOKENS, temperature: 1 });
  const rows = sampled.map(({ ids }, i) => ({ prompt: prompts[i]!, answer: ids }));
  return { rows, texts: sampled.map(({ ids }) => decode(policy.tokenizer, ids)) };
}

/** One round's votes, by side. */
async function judgeRound(parameters: Parameters, seed: number, round: number) {
  const rng = random(seed, `raters ${round}`);
  const asked = questions(tickets('judging', seed * 1000 + round, Number(options.judgements)), rng);
  const { texts } = await answer(parameters, repeated(asked), seed * 100 + round);
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

for (const seed of options.seeds.split(',').map(Number)) {
  const began = performance.now();
  const config = { ...baseConfig, seed };
  let parent = mapTree(root, tf.clone);
  const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
  const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
  const first = measure(evaluationTickets, (await answer(parent, evaluationTickets, seed)).texts);
  const rounds = [];
  console.log(`seed ${seed}  before   ${figure(first)}`);
  for (let round = 1; round <= Number(options.rounds); round++) {
    const started = performance.now();
    const fresh = await judgeRound(parent, seed, round);
    for (const side of ['A', 'B', 'C'] as const) {
      judgements[side].push(...fresh.judgements[side]);
      prompts[side].push(...fresh.prompts[side]);
    }
    const result = await runStages(
      { model, root, parent, judgements, prompts },
      { ...config, seed: seed * 10 + round },
      calls,
      sampler,
      MAX_TOKENS,
      report,
    );
    const promoted = result.candidate !== null && (options['no-gate'] || result.gate.verdict === 'promote');
    let kl = 0;
    if (result.candidate) {
      const { rows, texts } = await answer(result.candidate, evaluationTickets, seed + 50 * round);
      const own = answerLogprobsOf(model, calls.policy, result.candidate, rows);
      const theirs = answerLogprobsOf(model, calls.policy, parent, rows);
      kl = sequenceMean(
        own.map((x, i) => x - theirs[i]!),
        perTokenOf(rows),
      );
      const measured = measure(evaluationTickets, texts);
      rounds.push({ ...measured, each: undefined, kl, verdict: result.gate.verdict });
      console.log(
        `seed ${seed}  round ${round}  ${figure(measured)}  KL ${kl.toFixed(2)}  ${result.gate.verdict}  ${((performance.now() - started) / 1000).toFixed(0)} s`,
      );
    }
    for (const reason of result.gate.reasons)
      console.log(`    ${reason.passed ? 'passed' : 'FAILED'}  ${reason.check}: ${reason.words}`);
    if (promoted) {
      dispose(parent);
      parent = result.candidate!;
    } else if (result.candidate) dispose(result.candidate);
  }
  dispose(parent);
  const seconds = (performance.now() - began) / 1000;
  if (options.json)
    console.log(JSON.stringify({ seed, mode: raters.mode, before: { ...first, each: undefined }, rounds, seconds }));
  else console.log(`seed ${seed}  ${seconds.toFixed(0)} s; tensors ${tf.memory().numTensors}`);
}
if (!options.quiet)
  for (const { name, seconds } of compilations) console.log(`compiled ${name} in ${seconds.toFixed(1)} s`);
await sampler.close();
