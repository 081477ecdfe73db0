// Gold over evaluation tickets: what the demo and plumb sim print.

import { type Gold, gold, type Ticket } from './world.ts';

export interface Measured {
  gold: { mean: number; low: number; high: number };
  relevance: number;
  coherence: number;
  ethics: number;
  /** Words an answer. */
  length: number;
  /** Mean gold of dialect A minus that of dialect B. */
  gap: number;
  /** Mean gold over tickets in wordings never seen in training. */
  unseen: number;
  each: number[];
}

/** One answer a ticket → means with a 95 % interval. */
export function measure(asked: Ticket[], answers: string[]): Measured {
  const scores: Gold[] = asked.map((ticket, i) => gold(ticket, answers[i]!));
  const each = scores.map((score) => score.mean);
  const half = 1.96 * Math.sqrt(variance(each) / each.length);
  const of = (keep: (ticket: Ticket) => boolean) => mean(each.filter((_, i) => keep(asked[i]!)));
  return {
    gold: { mean: mean(each), low: mean(each) - half, high: mean(each) + half },
    relevance: mean(scores.map((score) => score.relevance)),
    coherence: mean(scores.map((score) => score.coherence)),
    ethics: mean(scores.map((score) => score.ethics)),
    length: mean(answers.map((answer) => answer.split(/\s+/).filter(Boolean).length)),
    gap: of((ticket) => ticket.dialect === 'A') - of((ticket) => ticket.dialect === 'B'),
    unseen: of((ticket) => ticket.heldOut),
    each,
  };
}

export const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
export const variance = (values: number[]): number => {
  const m = mean(values);
  return values.reduce((sum, x) => sum + (x - m) ** 2, 0) / (values.length - 1);
};
