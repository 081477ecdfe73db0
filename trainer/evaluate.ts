// Stage 5, the gate: is the new policy better than its parent, by a judge that never saw what it was trained on?
//
//   plumb train evaluate --data judgements.jsonl --prompts prompts.jsonl --base <parent> --candidate <folder>
//
// Both served images answer the same prompts of sides B and C at equal seeds; a judge fitted on B from the root policy compares.
// Promotion needs all of: the win rate's lower bound above one half; a judge that is right more often than not about C, by its
// lower bound; answers whose length and repetition have not run away; KL to parent and root within limits.

import { packEdge } from '../schema/edge.ts';
import type { ModelConfig } from '../schema/manifest.ts';
import type { Row } from './data.ts';
import type { Judgement } from './judgements.ts';
import type { Parameters } from './model.ts';
import { answerLogprobsOf, type PolicyCalls, perTokenOf } from './ppo.ts';
import { random } from './random.ts';
import { accuracy, type RewardCalls, type RewardModel, scores } from './reward.ts';
import { mean, sequenceMean } from './rl.ts';
import type { Sampled, startSampler } from './rollout.ts';
import { toHuggingFace } from './weights.ts';

export interface GateConfig {
  comparisons: number;
  klToParent: number;
  klToRoot: number;
  /** Mean answer length over the parent's, both ways. */
  lengthRatio: number;
  /** How much the share of answers that repeat themselves may grow. */
  repetitionGrowth: number;
  seed: number;
}
export const GATE_DEFAULTS: Omit<GateConfig, 'seed'> = {
  comparisons: 400,
  klToParent: 4,
  klToRoot: 8,
  lengthRatio: 1.4,
  repetitionGrowth: 0.05,
};

export interface Reason {
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
  judge: RewardModel,
  judged: Judgement[],
  prompts: number[][],
  sampler: ReturnType<typeof startSampler>,
  maxTokens: number,
  config: GateConfig,
): Promise<GateReport> {
  const pad = model.pad_token_id;
  const rng = random(config.seed, 'gate');

  // The judge on side C, which neither it nor the policy has seen; resampled by conversation.
  const judging = accuracy(calls.reward, judge, judged, pad);
  const judgeBound = judging.pairs > 0 ? lowerBound(judging.right, rng) : 0;

  // One answer each to every prompt, several where the prompts are few.
  const times = Math.max(1, Math.ceil(config.comparisons / Math.max(1, prompts.length)));
  const asked = prompts.flatMap((prompt) => Array.from({ length: times }, () => prompt));
  const seeds = asked.map((_, i) => (Math.imul(config.seed + 7, 0x27d4eb2f) + Math.imul(i + 1, 0x9e3779b1)) >>> 0);
  const options = { maxTokens, temperature: 1 };
  const answers = async (parameters: Parameters): Promise<Row[]> => {
    const image = packEdge(model, toHuggingFace(model, parameters));
    const sampled: Sampled[] = await sampler.sampleImage(image, asked, seeds, options);
    return sampled.map(({ ids }, i) => ({ prompt: asked[i]!, answer: ids }));
  };
  const old = await answers(parent);
  const fresh = await answers(candidate);
  const oldScores = scores(calls.reward, judge, old, pad);
  const freshScores = scores(calls.reward, judge, fresh, pad);
  const wins = freshScores.map((score, i) => (score > oldScores[i]! ? 1 : score === oldScores[i]! ? 0.5 : 0));
  const byPrompt = prompts.map((_, p) => mean(wins.slice(p * times, (p + 1) * times)));
  const winBound = byPrompt.length > 0 ? lowerBound(byPrompt, rng) : 0;

  const perToken = perTokenOf(fresh);
  const own = answerLogprobsOf(model, calls.policy, candidate, fresh);
  const kl = (other: Parameters) => {
    const theirs = answerLogprobsOf(model, calls.policy, other, fresh);
    return sequenceMean(
      own.map((logprob, i) => logprob - theirs[i]!),
      perToken,
    );
  };
  const klParent = kl(parent);
  const klRoot = kl(root);
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
        judging.pairs === 0
          ? 'not enough evidence: no comparison on side C to check the judge by'
          : `the judge is right about ${percent(mean(judging.right))} of ${judging.pairs} held-out judgements, at least ${percent(judgeBound)}${judgeBound > 0.5 ? '' : ': not enough evidence'}`,
    },
    {
      check: 'win rate',
      value: winBound,
      limit: 0.5,
      passed: winBound > 0.5,
      words: `it wins ${percent(mean(wins))} of ${wins.length} comparisons with its parent, at least ${percent(winBound)}`,
    },
    {
      check: 'length',
      value: length,
      limit: config.lengthRatio,
      passed: length < config.lengthRatio && length > 1 / config.lengthRatio,
      words: `its answers are ${length.toFixed(2)} times as long as its parent's`,
    },
    {
      check: 'repetition',
      value: repetition,
      limit: config.repetitionGrowth,
      passed: repetition <= config.repetitionGrowth,
      words: `the share of answers that repeat themselves changed by ${percent(repetition)}`,
    },
    {
      check: 'KL to parent',
      value: klParent,
      limit: config.klToParent,
      passed: klParent <= config.klToParent,
      words: `it is ${klParent.toFixed(2)} nats an answer from its parent`,
    },
    {
      check: 'KL to root',
      value: klRoot,
      limit: config.klToRoot,
      passed: klRoot <= config.klToRoot,
      words: `it is ${klRoot.toFixed(2)} nats an answer from the first policy of its line`,
    },
  ];
  return {
    verdict: reasons.every((reason) => reason.passed) ? 'promote' : 'reject',
    reasons,
    metrics: {
      'gate/win_rate': mean(wins),
      'gate/win_rate_low': winBound,
      'gate/judge_accuracy': judging.pairs > 0 ? mean(judging.right) : 0,
      'gate/judge_accuracy_low': judgeBound,
      'gate/length_ratio': length,
      'gate/repetition_growth': repetition,
      'gate/kl_parent': klParent,
      'gate/kl_root': klRoot,
    },
  };
}

/** Whether four tokens in a row come twice. */
function repeatsItself({ answer }: Row): number {
  const fours = answer.slice(3).map((_, i) => answer.slice(i, i + 4).join());
  return new Set(fours).size < fours.length ? 1 : 0;
}

/** The 2.5 % quantile of the mean under the bootstrap: the lower end of a 95 % interval. */
function lowerBound(values: number[], rng: ReturnType<typeof random>, rounds = 2000): number {
  const means = Array.from({ length: rounds }, () => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += values[rng.int(0, values.length)]!;
    return sum / values.length;
  }).sort((a, b) => a - b);
  return means[Math.floor(0.025 * rounds)]!;
}
