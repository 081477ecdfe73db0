// The rounds of sim.ts, seed after seed: raters judge, a run learns, and the next round starts from what came out.

import type { RunConfig } from '../../schema/run-config.ts';
import type { Side } from '../../schema/snapshot.ts';
import { decode } from '../../schema/tokenizer.ts';
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
import { readWeights } from '../weights.ts';
import { flat, measure } from './measure.ts';
import type { RaterConfig } from './raters.ts';
import { questions, repeated, sideOf, unjudged, votesOn } from './votes.ts';
import { type Ticket, tickets } from './world.ts';

/** Of the longest ticket. */
const TICKET_TOKENS = 44;
const EVALUATION_SEED = 31_337;

/** Seeds that were served better answers in the end, with intervals that do not touch, and worse ones; and what was promoted. */
export interface Totals {
  rose: number;
  fell: number;
  candidatesRose: number;
  promotions: number;
  runs: number;
}

export interface Simulation {
  seeds: number[];
  rounds: number;
  judgements: number;
  /** Of the evaluation. */
  tickets: number;
  raters: RaterConfig;
  /** Whether what the gate rejects is served none the less. */
  ungated: boolean;
  config: RunConfig;
  /** A folder. */
  policy: string;
  json: boolean;
  quiet: boolean;
}

const figure = ({ gold, figures, length }: ReturnType<typeof measure>) =>
  `gold ${gold.mean.toFixed(3)} ±${(gold.high - gold.mean).toFixed(3)}  relevance ${figures.relevance.toFixed(2)} coherence ${figures.coherence.toFixed(2)} ethics ${figures.ethics.toFixed(2)}  words ${length.toFixed(1)}  gap ${figures.gap.toFixed(3)}  unseen ${figures.unseen_words.toFixed(3)}`;

/** Runs the seeds one after the other, and says how each goes. */
export async function simulate(s: Simulation): Promise<Totals> {
  const policy = readPolicy(s.policy);
  const model = policy.config;
  const root = readWeights(s.policy, model);
  const sampler = startSampler(model);
  const calls = stageCalls(model, shapeFor(TICKET_TOKENS + s.config.maxAnswerTokens), s.config);
  const evaluationTickets = tickets('evaluation', EVALUATION_SEED, s.tickets);
  const report = s.quiet ? () => {} : toTerminal(process.stderr, compilations);

  async function answersTo(parameters: Parameters, asked: Ticket[], seed: number): Promise<string[]> {
    const seeds = asked.map((_, i) => seed * 1_000_000 + i);
    const prompts = asked.map(({ text }) => policy.encodePrompt([{ role: 'user', content: text }]));
    const sampled = await sampler.sample(parameters, prompts, seeds, {
      maxTokens: s.config.maxAnswerTokens,
      temperature: 1,
    });
    return sampled.map(({ ids }) => decode(policy.tokenizer, ids));
  }

  /** One round's votes and questions, by side. */
  async function judgeRound(parameters: Parameters, seed: number, round: number) {
    const rng = random(seed, `raters ${round}`);
    const asked = questions(tickets('judging', seed * 1000 + round, s.judgements), rng);
    const texts = await answersTo(parameters, repeated(asked), seed * 100 + round);
    const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
    const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
    for (const vote of votesOn(asked, texts, s.raters, rng, `${seed} ${round}`)) {
      prompts[vote.side].push(policy.encodePrompt(vote.prompt));
      const judgement = judgementOf(policy, vote);
      if (judgement) judgements[vote.side].push(judgement);
    }
    for (const { text } of unjudged(s.judgements, seed, round))
      prompts[sideOf(rng())].push(policy.encodePrompt([{ role: 'user', content: text }]));
    return { judgements, prompts };
  }

  const totals: Totals = { rose: 0, fell: 0, candidatesRose: 0, promotions: 0, runs: 0 };
  for (const seed of s.seeds) {
    const began = performance.now();
    let parent = mapTree(root, tf.clone);
    const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
    const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
    const first = measure(evaluationTickets, await answersTo(parent, evaluationTickets, seed));
    let served = first;
    const results: object[] = [];
    console.log(`seed ${seed}  before   ${figure(first)}`);
    for (let round = 1; round <= s.rounds; round++) {
      const started = performance.now();
      const fresh = await judgeRound(parent, seed, round);
      for (const side of ['A', 'B', 'C'] as const) {
        judgements[side].push(...fresh.judgements[side]);
        prompts[side].push(...fresh.prompts[side]);
      }
      const config = { ...s.config, seed: seed * 10 + round };
      const input = { model, root, parent, judgements, prompts };
      const { candidate, gate } = await runStages(input, config, calls, sampler, config.maxAnswerTokens, report);
      totals.runs++;
      if (candidate) {
        const after = measure(evaluationTickets, await answersTo(candidate, evaluationTickets, seed + 50 * round));
        const kl = gate.metrics['gate/kl_parent']!;
        results.push({ ...flat(after), kl, verdict: gate.verdict });
        console.log(
          `seed ${seed}  round ${round}  ${figure(after)}  KL ${kl.toFixed(2)}  ${gate.verdict}  ${((performance.now() - started) / 1000).toFixed(0)} s`,
        );
        if (after.gold.low > served.gold.high) totals.candidatesRose++;
        if (gate.verdict === 'promote') totals.promotions++;
        if (s.ungated || gate.verdict === 'promote') {
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
    if (s.json)
      console.log(JSON.stringify({ seed, mode: s.raters.mode, before: flat(first), rounds: results, seconds }));
    else console.log(`seed ${seed}  ${seconds.toFixed(0)} s`);
  }
  await sampler.close();
  return totals;
}
