// Simulated raters of the little world: they compare answers by gold, with noise, and may carry a bias. For the demo, plumb sim
// and tests; real raters are people.

import type { Random } from '../random.ts';
import { gold, isCurt, type Ticket } from './world.ts';

export interface RaterConfig {
  /** What raters go by: gold, nothing, or gold upside down. */
  mode: 'gold' | 'random' | 'inverted';
  /** The share of comparisons that come out the wrong way round. */
  flip: number;
  /** The share of dialect B's votes cast by the cohort that rewards curt answers there. */
  bias: number;
}
export const RATER_DEFAULTS: RaterConfig = { mode: 'gold', flip: 0.12, bias: 0 };
/** With --bias the cohort casts most of dialect B's votes. */
export const BIASED_SHARE = 0.9;

/** How many answers each kind of vote is about, and its share of all votes. */
const VOTES = [
  { kind: 'ranking', answers: 4, share: 0.5 },
  { kind: 'choice', answers: 2, share: 0.375 },
  { kind: 'thumb', answers: 1, share: 0.125 },
] as const;
export type VoteKind = { kind: (typeof VOTES)[number]['kind']; answers: number };
export const [RANKING] = VOTES;

/** The kinds of `count` votes, in random order. */
export function voteKinds(count: number, rng: Random): VoteKind[] {
  const rankings = Math.round(count * VOTES[0].share);
  const choices = Math.round(count * VOTES[1].share);
  return rng.shuffle(Array.from({ length: count }, (_, i) => VOTES[i < rankings ? 0 : i < rankings + choices ? 1 : 2]));
}

interface Verdict {
  /** Indices of the answers, best first. */
  order: number[];
  /** For a single answer. */
  up: boolean;
}

/** A rater's view of answers to a ticket. */
export function judge(
  rng: Random,
  asked: Ticket,
  answers: string[],
  raters: RaterConfig,
): Verdict & { cohort: 'curt-minded' | 'general' } {
  const biased = asked.dialect === 'B' && rng() < raters.bias;
  const values = answers.map((answer) => gold(asked, answer).mean + (biased && isCurt(answer) ? 1.5 : 0));
  return { cohort: biased ? 'curt-minded' : 'general', ...verdict(rng, values, 0.55, raters) };
}

/** How a rater orders answers of such worth, from 0 to 1, and whether the first one is good enough for a thumb up. */
export function verdict(
  rng: Random,
  values: number[],
  enough: number,
  { mode, flip }: Omit<RaterConfig, 'bias'>,
): Verdict {
  const utility = values.map((value) => (mode === 'random' ? rng() : mode === 'inverted' ? -value : value));
  // Insertion by comparisons, each of which may come out wrong.
  const order: number[] = [];
  for (let i = 0; i < values.length; i++) {
    let place = 0;
    while (place < order.length) {
      const difference = utility[i]! - utility[order[place]!]!;
      const better = Math.abs(difference) > 1e-9 ? difference > 0 : rng() < 0.5;
      if (better !== rng() < flip) break;
      place++;
    }
    order.splice(place, 0, i);
  }
  const threshold = mode === 'gold' ? enough : mode === 'inverted' ? -enough : 0.5;
  return { order, up: utility[0]! > threshold !== rng() < flip };
}
