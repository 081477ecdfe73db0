// Stage 5, evaluation, the gate: is the new policy better than its parent, by a judge that never saw what it was trained on?
//
//   plumb train evaluate --data judgements.jsonl --prompts prompts.jsonl --base <parent> --candidate <folder>
//
// Both served images answer the same prompts of sides B and C at equal seeds; a judge fitted on B from the root policy compares.
// Promotion needs all of: the win rate's lower bound above one half; a judge that is right more often than not about C, by its
// lower bound; answers whose length and repetition have not run away; KL to parent and root within limits; an image that says what
// was trained, as well as the parent's does.

import { packEdge } from '../schema/edge.ts';
import type { ModelConfig } from '../schema/manifest.ts';
import type { GateConfig } from '../schema/run-config.ts';
import type { Row } from './data.ts';
import type { Judgement } from './judgements.ts';
import type { Parameters } from './model.ts';
import { answerLogprobsOf, type PolicyCalls, perTokenOf } from './ppo.ts';
import { random } from './random.ts';
import { accuracy, type RewardCalls, rightShare, type Scorer, scores, type Tally, wins } from './reward.ts';
import { mean, type PerToken, sequenceMean } from './rl.ts';
import { drawnLogprobs, rowsOf, type Sampled, type startSampler } from './rollout.ts';
import { toHuggingFace } from './weights.ts';

interface Reason {
  check: string;
  value: number;
  limit: number;
  passed: boolean;
  words: string;
}
export interface GateReport {
  verdict: 'promote' | 'reject';
  reasons: Reason[];
  metrics: Record<string, number>;
}

interface Contestants {
  root: Parameters;
  parent: Parameters;
  candidate: Parameters;
}

/** Runs every check, whatever the first ones say: the report shows them all. */
export async function evaluate(
  model: ModelConfig,
  calls: { policy: PolicyCalls; reward: RewardCalls },
  { root, parent, candidate }: Contestants,
  judge: Scorer,
  judged: Judgement[],
  prompts: number[][],
  sampler: ReturnType<typeof startSampler>,
  maxTokens: number,
  config: GateConfig,
): Promise<GateReport> {
  const pad = model.pad_token_id;
  const rng = random(config.seed, 'gate');

  // The judge on side C, which neither it nor the policy has seen; resampled by conversation.
  const judging = await accuracy(calls.reward, judge, judged, pad);
  const judgeRight = judging.length > 0 ? rightShare(judging) : 0;
  const judgeBound = judging.length > 0 ? lowerBound(judging, rng) : 0;

  // One answer each to as many prompts as are wanted, several where B and C have fewer: the bound is by prompt, so that they don't count double.
  const chosen = rng.shuffle([...prompts]).slice(0, config.comparisons);
  const times = Math.ceil(config.comparisons / Math.max(1, chosen.length));
  const asked = chosen.flatMap((prompt) => Array.from({ length: times }, () => prompt));
  const seeds = asked.map((_, i) => (Math.imul(config.seed + 7, 0x27d4eb2f) + Math.imul(i + 1, 0x9e3779b1)) >>> 0);
  const options = { maxTokens, temperature: 1 };
  const answers = (parameters: Parameters): Promise<Sampled[]> =>
    sampler.sampleImage(packEdge(model, toHuggingFace(model, parameters)), asked, seeds, options);
  const oldDrawn = await answers(parent);
  const freshDrawn = await answers(candidate);
  const old = rowsOf(asked, oldDrawn);
  const fresh = rowsOf(asked, freshDrawn);
  const oldScores = await scores(calls.reward, judge, old, pad);
  const freshScores = await scores(calls.reward, judge, fresh, pad);
  const won = freshScores.map((score, i) => wins(score, oldScores[i]!));
  const ofPrompt = (p: number) => won.slice(p * times, (p + 1) * times).reduce((a, b) => a + b, 0);
  const contests = chosen.map((_, p): Tally => ({ right: ofPrompt(p), of: times }));
  const winRate = contests.length > 0 ? rightShare(contests) : 0;
  const winBound = contests.length > 0 ? lowerBound(contests, rng) : 0;

  const perToken = perTokenOf(fresh);
  const own = await answerLogprobsOf(model, calls.policy, candidate, fresh);
  /** By how many nats an answer's tokens are likelier to one than to another. */
  const nats = (to: Float32Array, than: Float32Array, answers: PerToken) =>
    sequenceMean(
      to.map((logprob, i) => logprob - than[i]!),
      answers,
    );
  const kl = async (other: Parameters) =>
    nats(own, await answerLogprobsOf(model, calls.policy, other, fresh), perToken);
  // What packing lost, in nats an answer: it loses something of every policy, so the parent's image is the measure.
  const lost = (drawn: Sampled[], trained: Float32Array, answers: PerToken) =>
    nats(drawnLogprobs(drawn, answers.columns), trained, answers);
  const imageLost = lost(freshDrawn, own, perToken);
  const parentLost = lost(oldDrawn, await answerLogprobsOf(model, calls.policy, parent, old), perTokenOf(old));
  const klImage = imageLost - parentLost;

  const klParent = await kl(parent);
  const klRoot = root === parent ? klParent : await kl(root);
  const length = mean(fresh.map((row) => row.answer.length)) / mean(old.map((row) => row.answer.length));
  const repetition = mean(fresh.map(repeatsItself)) - mean(old.map(repeatsItself));

  const percent = (x: number) => `${(100 * x).toFixed(1)} %`;
  const reasons: Reason[] = [
    {
      check: 'judge',
      value: judgeBound,
      limit: 0.5,
      passed: judgeBound > 0.5,
      words:
        judging.length === 0
          ? 'not enough evidence: no held-out comparison to check the judge by'
          : `the judge is right about ${percent(judgeRight)} of the pairs in ${judging.length} held-out conversations, at least ${percent(judgeBound)}${judgeBound > 0.5 ? '' : ': not enough evidence'}`,
    },
    {
      check: 'win rate',
      value: winBound,
      limit: 0.5,
      passed: winBound > 0.5,
      words: `it wins ${percent(winRate)} of ${won.length} comparisons with its parent on ${chosen.length} prompts, at least ${percent(winBound)}; it needs to be above ${percent(0.5)}`,
    },
    {
      check: 'length',
      value: length,
      limit: config.lengthRatio,
      passed: length < config.lengthRatio && length > 1 / config.lengthRatio,
      words: `its answers are ${length.toFixed(2)} times as long as its parent's; it may be ${(1 / config.lengthRatio).toFixed(2)} to ${config.lengthRatio.toFixed(2)}`,
    },
    {
      check: 'repetition',
      value: repetition,
      limit: config.repetitionGrowth,
      passed: repetition <= config.repetitionGrowth,
      words: `the share of answers that repeat themselves ${repetition < 0 ? 'fell' : 'rose'} by ${percent(Math.abs(repetition))}; it may rise by ${percent(config.repetitionGrowth)}`,
    },
    {
      check: 'image',
      value: klImage,
      limit: config.klOfImage,
      passed: klImage <= config.klOfImage,
      words: `its image is ${imageLost.toFixed(2)} nats an answer from what was trained, its parent's ${parentLost.toFixed(2)}; it may be ${config.klOfImage} farther`,
    },
    {
      check: 'KL to parent',
      value: klParent,
      limit: config.klToParent,
      passed: klParent <= config.klToParent,
      words: `it is ${klParent.toFixed(2)} nats an answer from its parent; it may be ${config.klToParent}`,
    },
    {
      check: 'KL to root',
      value: klRoot,
      limit: config.klToRoot,
      passed: klRoot <= config.klToRoot,
      words: `it is ${klRoot.toFixed(2)} nats an answer from the first policy of its line; it may be ${config.klToRoot}`,
    },
  ];
  return {
    verdict: reasons.every((reason) => reason.passed) ? 'promote' : 'reject',
    reasons,
    metrics: {
      'gate/win_rate': winRate,
      'gate/win_rate_low': winBound,
      'gate/judge_accuracy': judgeRight,
      'gate/judge_accuracy_low': judgeBound,
      'gate/length_ratio': length,
      'gate/repetition_growth': repetition,
      'gate/kl_image': imageLost,
      'gate/kl_image_parent': parentLost,
      'gate/kl_parent': klParent,
      'gate/kl_root': klRoot,
    },
  };
}

/** Whether four tokens in a row come twice. */
export function repeatsItself({ answer }: Row): number {
  const fours = answer.slice(3).map((_, i) => answer.slice(i, i + 4).join());
  return new Set(fours).size < fours.length ? 1 : 0;
}

/** The 95 % lower confidence bound of a share: its 5 % quantile under the bootstrap by conversation. */
function lowerBound(tallies: Tally[], rng: ReturnType<typeof random>, rounds = 2000): number {
  const shares = Array.from({ length: rounds }, () =>
    rightShare(tallies.map(() => tallies[rng.int(0, tallies.length)]!)),
  ).sort((a, b) => a - b);
  return shares[Math.floor(0.05 * rounds)]!;
}
