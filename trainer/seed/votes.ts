// Simulated raters' votes as a snapshot would hold them: what plumb sim and the tests train on.

import { newId } from '../../schema/ids.ts';
import type { Side, Vote } from '../../schema/snapshot.ts';
import type { Random } from '../random.ts';
import { judge, type RaterConfig, voteKinds } from './raters.ts';
import { type Ticket, tickets } from './world.ts';

interface Question {
  ticket: Ticket;
  kind: ReturnType<typeof voteKinds>[number];
}

/** People ask more than they judge: so many tickets of a round that nobody votes on. The gate asks them, too. */
export const unjudged = (judgements: number, seed: number, round: number): Ticket[] =>
  tickets('judging', seed * 1000 + 500 + round, Math.ceil(1.25 * judgements));

/** One vote to each ticket, of which each is about so many answers as its kind wants. */
export function questions(asked: Ticket[], rng: Random): Question[] {
  const kinds = voteKinds(asked.length, rng);
  return asked.map((ticket, i) => ({ ticket, kind: kinds[i]! }));
}

/** The tickets with each as often as its vote needs answers, in the order that `votesOn` expects the answers. */
export const repeated = (asked: Question[]): Ticket[] =>
  asked.flatMap(({ ticket, kind }) => Array.from({ length: kind.answers }, () => ticket));

/** A conversation's side, by the shares of a real snapshot. */
export const sideOf = (draw: number): Side => (draw < 0.5 ? 'A' : draw < 0.8 ? 'B' : 'C');

export function votesOn(asked: Question[], answers: string[], raters: RaterConfig, rng: Random, root: string): Vote[] {
  let at = 0;
  return asked.map(({ ticket, kind: { kind, answers: count } }, i): Vote => {
    const own = answers.slice(at, at + count);
    at += count;
    const side = sideOf(rng());
    const { order, up, cohort } = judge(rng, ticket, own, raters);
    const samples = own.map((text) => ({ id: newId('sample'), text, policy: 'simulated' }));
    const common = {
      seq: i + 1,
      feedback: newId('feedback'),
      side,
      root: `${root} ${i}`,
      rater: `rater ${i % 20}`,
      rater_kind: 'asserted' as const,
      cohorts: { outlook: cohort },
      created_at: new Date(0).toISOString(),
      prompt: [{ role: 'user' as const, content: ticket.text }],
      samples,
    };
    if (kind === 'thumb') return { ...common, kind, value: up ? 1 : -1 };
    if (kind === 'choice') return { ...common, kind, winner: samples[order[0]!]!.id };
    return { ...common, kind, order: order.map((index) => [samples[index]!.id]) };
  });
}
