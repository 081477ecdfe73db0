// Several reward models of the same judgements: where they disagree, the score is a guess, and a policy that is optimised against one of them
// finds just those guesses (Coste et al. 2024, "Reward model ensembles help mitigate overoptimization"). Members differ in the head they begin
// with, the order of their steps, and the conversations they see: each draws them anew, with replacement (Breiman 1996). All weights are a
// member's own, or with LoRA its adapters. Each is brought to mean 0 and variance 1 on the same answers (reward.ts) before they are compared: a
// head's offset and scale are chance.

import type { Row } from './data.ts';
import type { Judgement } from './judgements.ts';
import { type Random, random } from './random.ts';
import { type RewardCalls, type Scorer, scores } from './reward.ts';
import { mean, variance } from './rl.ts';

/** What a member is fitted to: the first one to everything, so that with one member nothing is left to chance. */
export const memberSees = (judgements: Judgement[], member: number, seed: number): Judgement[] =>
  member === 0 ? judgements : bootstrapped(judgements, random(seed, `member ${member}`));
export const memberSeed = (seed: number, member: number): number => seed + member * 7919;
export const memberStage = (member: number): string => (member === 0 ? 'reward' : `reward ${member + 1}`);

/** As many conversations, drawn with replacement; each with all that was said of it. */
export function bootstrapped(judgements: Judgement[], rng: Random): Judgement[] {
  const byRoot = Map.groupBy(judgements, ({ root }) => root);
  const conversations = [...byRoot.values()];
  return conversations.flatMap(() => rng.pick(conversations));
}

/** @returns by member, then by answer */
export async function scoresByMember(
  calls: RewardCalls,
  members: Scorer[],
  rows: Row[],
  pad: number,
): Promise<number[][]> {
  const scored: number[][] = [];
  for (const member of members) scored.push(await scores(calls, member, rows, pad));
  return scored;
}

/**
 * Each answer's mean score, less so many times its spread, the members' standard deviation: a lower bound of what it is worth.
 * @param scores by member, then by answer
 */
export const cautious = (scores: number[][], penalty: number): number[] =>
  scores[0]!.map((_, answer) => {
    const own = scores.map((member) => member[answer]!);
    return mean(own) - penalty * Math.sqrt(variance(own));
  });
