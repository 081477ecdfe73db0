// Gold over evaluation questions: what the demo and plumb sim print.

import { type Gold, gold, type Ticket } from './world.ts';

export interface Measured {
  gold: { mean: number; low: number; high: number };
  /** Means of what gold is made of, and of what else is looked at, by name. */
  figures: Record<string, number>;
  /** Words an answer. */
  length: number;
  each: number[];
}

/** As JSON has it: the figures beside the rest, and not each answer's gold. */
export const flat = ({ figures, each: _, ...rest }: Measured): object => ({ ...rest, ...figures });

/** Of answers and the gold of each → means, that of gold with a 95 % interval. */
export function measured(each: number[], answers: string[], figures: Record<string, number>): Measured {
  return {
    gold: interval(each),
    figures,
    length: mean(answers.map((answer) => answer.split(/\s+/).filter(Boolean).length)),
    each,
  };
}

/** Of answers drawn anew to the same questions: a question's gold is the mean of its draws', so that the interval knows the questions as the sample. */
export function pooled(draws: Measured[]): Measured {
  const [first] = draws as [Measured];
  const each = first.each.map((_, i) => mean(draws.map((draw) => draw.each[i]!)));
  const names = Object.keys(first.figures);
  const figures = Object.fromEntries(names.map((name) => [name, mean(draws.map((draw) => draw.figures[name]!))]));
  return { gold: interval(each), figures, length: mean(draws.map(({ length }) => length)), each };
}

/** Means of the aspects that gold is the mean of. */
export function aspects<G extends { mean: number }>(scores: G[]): Record<Exclude<keyof G, 'mean'>, number> {
  const names = Object.keys(scores[0] ?? {}).filter((name) => name !== 'mean') as (keyof G)[];
  return Object.fromEntries(names.map((name) => [name, mean(scores.map((score) => score[name] as number))])) as never;
}

/** One answer a ticket. `gap` is the mean gold of dialect A minus that of dialect B; `unseen_words` that over tickets in wordings never seen in training. */
export function measure(
  asked: Ticket[],
  answers: string[],
): Measured & { figures: Record<Exclude<keyof Gold, 'mean'> | 'gap' | 'unseen_words', number> } {
  const scores: Gold[] = asked.map((ticket, i) => gold(ticket, answers[i]!));
  const each = scores.map((score) => score.mean);
  const of = (keep: (ticket: Ticket) => boolean) => mean(each.filter((_, i) => keep(asked[i]!)));
  const figures = {
    ...aspects(scores),
    unseen_words: of((ticket) => ticket.heldOut),
    gap: of((ticket) => ticket.dialect === 'A') - of((ticket) => ticket.dialect === 'B'),
  };
  return { ...measured(each, answers, figures), figures };
}

/** A mean and its 95 % interval. */
function interval(each: number[]): Measured['gold'] {
  const half = 1.96 * Math.sqrt(variance(each) / each.length);
  return { mean: mean(each), low: mean(each) - half, high: mean(each) + half };
}

export const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
export const variance = (values: number[]): number => {
  const m = mean(values);
  return values.reduce((sum, x) => sum + (x - m) ** 2, 0) / (values.length - 1);
};
