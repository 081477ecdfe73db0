// People's judgements as the reward model's likelihoods see them: answers to one prompt, the stages of a choice among them, thumbs,
// ratings and outcomes. Read from a snapshot's votes or from files in TRL's shapes.

import { z } from 'zod';
import type { Vote } from '../schema/snapshot.ts';
import {
  answerRow,
  openingOf,
  promptOf,
  type Row,
  readLines,
  requireRoom,
  TextOrMessages,
  withPrompt,
} from './data.ts';
import { ASPECTS, OUTCOMES } from './likelihood.ts';
import type { Policy } from './policy.ts';
import { mean, variance } from './rl.ts';
import { UserError } from './user-error.ts';

/** Out of the answers `remaining` (indices into rows), those of `chosen` were taken together, as equals. */
interface Stage {
  remaining: number[];
  chosen: number[];
  weight: number;
}
/** What a judgement says. Its weights sum to 1, unless a file's row says what it weighs. */
interface Said {
  stages: Stage[];
  thumbs: { row: number; up: boolean; weight: number }[];
  ratings: { row: number; aspect: string; value: number; weight: number }[];
  outcomes: { row: number; name: string; value: boolean | number; weight: number }[];
}
/** One act of judging. */
export interface Judgement extends Said {
  id: string;
  /** What keeps evidence apart: rows of one conversation stand together in every split. */
  root: string;
  kind: 'thumb' | 'choice' | 'ranking' | 'rating' | 'correction' | 'outcome';
  /** Who judged; null where it is not known. */
  rater: string | null;
  cohorts: Record<string, string>;
  rows: Row[];
  texts: string[];
}

const NOTHING: Said = { stages: [], thumbs: [], ratings: [], outcomes: [] };
const partsOf = ({ stages, thumbs, ratings, outcomes }: Said): { weight: number }[] => [
  ...stages,
  ...thumbs,
  ...ratings,
  ...outcomes,
];
export const weightOf = (said: Said): number => partsOf(said).reduce((sum, { weight }) => sum + weight, 0);
/** The same, weighing so many times as much. */
export const weighed = <T extends Said>(said: T, by: number): T => {
  const times = <P extends { weight: number }>(parts: P[]): P[] =>
    parts.map((part) => ({ ...part, weight: part.weight * by }));
  const { stages, thumbs, ratings, outcomes } = said;
  return {
    ...said,
    stages: times(stages),
    thumbs: times(thumbs),
    ratings: times(ratings),
    outcomes: times(outcomes),
  };
};

/**
 * The stages of groups from best to worst: each group is taken, as equals, from what remains. The last is a stage only where it is
 * several equals, for what remains alone is taken for certain.
 */
export function stagesOf(groups: number[][]): Stage[] {
  return groups
    .map((chosen, index) => ({ remaining: groups.slice(index).flat(), chosen, weight: 1 }))
    .filter(({ remaining }) => remaining.length > 1);
}

/** A vote's judgement, or null where it says nothing of which answer is better (equal texts). */
export function judgementOf(policy: Policy, vote: Vote): Judgement | null {
  const place = new Map(vote.samples.map((sample, index) => [sample.id, index]));
  const texts = vote.samples.map((sample) => sample.text);
  const all = texts.map((_, index) => index);
  let said: Partial<Said>;
  switch (vote.kind) {
    case 'thumb':
      said = { thumbs: [{ row: 0, up: vote.value === 1, weight: 1 }] };
      break;
    case 'choice':
      if (vote.winner === 'tie') said = { stages: stagesOf([all]) };
      else if (vote.winner === 'both_bad')
        said = { stages: stagesOf([all]), thumbs: all.map((row) => ({ row, up: false, weight: 1 })) };
      else said = { stages: [{ remaining: all, chosen: [place.get(vote.winner)!], weight: 1 }] }; // the others stay unordered
      break;
    case 'ranking':
      said = { stages: stagesOf(vote.order.map((group) => group.map((id) => place.get(id)!))) };
      break;
    case 'correction':
      texts.push(vote.text);
      said = { stages: [{ remaining: [0, 1], chosen: [1], weight: 1 }] };
      break;
    case 'rating':
      said = { ratings: [{ row: 0, aspect: vote.aspect, value: vote.value, weight: 1 }] };
      break;
    case 'outcome':
      said = { outcomes: [{ row: 0, name: vote.name, value: vote.value, weight: 1 }] };
      break;
  }
  return shared({
    id: vote.feedback,
    root: vote.root,
    kind: vote.kind,
    rater: vote.rater,
    cohorts: vote.cohorts,
    rows: texts.map((text) => answerRow(policy, vote.prompt, text)),
    texts,
    ...NOTHING,
    ...said,
  });
}

/** Drops choices between equal texts and shares the judgement's weight of 1 among what is left; null if nothing is. */
function shared(judgement: Judgement): Judgement | null {
  const stages = judgement.stages.filter(
    ({ remaining }) => new Set(remaining.map((row) => judgement.texts[row])).size > 1,
  );
  const left = { ...judgement, stages };
  const total = weightOf(left);
  return total === 0 ? null : weighed(left, 1 / total);
}

const common = {
  prompt: TextOrMessages,
  /** An export's weight keeps a vote of many pairs from counting as many votes; other files have none. */
  weight: z.number().positive().optional(),
  rater: z.string().min(1).nullable().optional(),
};
const name = z.string().min(1).max(64);
const JudgementForms = z.union(
  [
    z.looseObject({ ...common, chosen: TextOrMessages, rejected: TextOrMessages }),
    z.looseObject({
      ...common,
      completions: z.array(TextOrMessages).min(2).max(8),
      ranks: z.array(z.int().positive()),
    }),
    z.looseObject({ ...common, completion: TextOrMessages, label: z.boolean() }),
    z.looseObject({ ...common, completion: TextOrMessages, aspect: name, value: z.int().min(1).max(5) }),
    z.looseObject({ ...common, completion: TextOrMessages, name, outcome: z.union([z.boolean(), z.number()]) }),
  ],
  'expected {prompt, chosen, rejected}, {prompt, completions, ranks}, {prompt, completion, label}, {prompt, completion, aspect, value 1–5} or {prompt, completion, name, outcome}',
);
const JudgementLine = z.preprocess(withPrompt, JudgementForms);
/** The cohorts of an export's row, which are JSON text there. */
function cohortsOf(cohorts: unknown): Record<string, string> {
  if (cohorts === undefined) return {};
  try {
    return z.record(z.string(), z.string()).parse(typeof cohorts === 'string' ? JSON.parse(cohorts) : cohorts);
  } catch {
    throw new UserError('cohorts: expected an object of strings, or its JSON text');
  }
}

/** Judgements of a file: TRL's preference and unpaired preference rows, rankings and ratings as Plumb exports them, and outcomes. */
export function readJudgements(policy: Policy, path: string): Judgement[] {
  const text = (value: unknown) => {
    const said = value as z.infer<typeof TextOrMessages>;
    if (typeof said === 'string') return said;
    const [answer] = said;
    if (said.length > 1 || answer!.role !== 'assistant')
      throw new UserError(
        `an answer of ${said.length} messages (${said.map(({ role }) => role).join(', ')}): expected one, the assistant's; what was said before it belongs to the prompt`,
      );
    return answer!.content;
  };
  type Line = z.infer<typeof JudgementLine>;
  const made = readLines<Line, Judgement | null>(path, JudgementLine, (line, at) => {
    const messages = promptOf(line.prompt as z.infer<typeof TextOrMessages>);
    let kind: Judgement['kind'];
    let texts: string[] = 'completion' in line ? [text(line.completion)] : [];
    let said: Partial<Said>;
    if ('chosen' in line) {
      kind = 'choice';
      texts = [text(line.chosen), text(line.rejected)];
      said = { stages: [{ remaining: [0, 1], chosen: [0], weight: 1 }] };
    } else if ('ranks' in line) {
      const ranks = line.ranks as number[];
      kind = 'ranking';
      texts = (line.completions as unknown[]).map(text);
      if (ranks.length !== texts.length) throw new UserError(`${texts.length} completions but ${ranks.length} ranks`);
      const order = [...new Set(ranks)].sort((a, b) => a - b);
      said = { stages: stagesOf(order.map((rank) => ranks.flatMap((r, row) => (r === rank ? [row] : [])))) };
    } else if ('label' in line) {
      kind = 'thumb';
      said = { thumbs: [{ row: 0, up: line.label as boolean, weight: 1 }] };
    } else if ('aspect' in line) {
      kind = 'rating';
      said = { ratings: [{ row: 0, aspect: line.aspect as string, value: line.value as number, weight: 1 }] };
    } else {
      kind = 'outcome';
      said = { outcomes: [{ row: 0, name: line.name as string, value: line.outcome as boolean | number, weight: 1 }] };
    }
    const judgement = shared({
      id: `line ${at}`,
      root: openingOf(messages),
      kind,
      rater: (line.rater as string | null | undefined) ?? null,
      cohorts: cohortsOf(line.cohorts),
      rows: texts.map((answer) => answerRow(policy, messages, answer)),
      texts,
      ...NOTHING,
      ...said,
    });
    if (!judgement) return null;
    requireRoom(policy, judgement.rows[0]!.prompt);
    return weighed(judgement, (line.weight as number | undefined) ?? 1);
  }).filter((judgement) => judgement !== null);
  if (made.length === 0) throw new UserError(`${path}: no line says that one answer is better than another`);
  subjectsOf(made); // too many aspects or names are said before anything starts
  return made;
}

/** Whom and what the judgements of a fit are about: their places among its likelihoods' tensors. */
export interface Subjects {
  aspects: string[];
  /** Of numbers, what they are brought within, and mean and deviation of those. */
  outcomes: { name: string; isNumber: boolean; least: number; most: number; mean: number; deviation: number }[];
  /** Those who gave thumbs, from 1 on: 0 stands for all who are not known. */
  raters: Map<string, number>;
  /** Of all that is said together. */
  weight: number;
}

/** No number that anyone observes is beyond this, and its square is still one. */
const LARGEST = 1e15;
/**
 * Ten times the range of their middle half beyond it, as Tukey's fences are one and a half times: within these are all that are of a kind, and
 * not the one slip of a comma that would leave nothing of the others.
 */
function fences(values: number[]): [least: number, most: number] {
  const sorted = values.map((value) => within({ least: -LARGEST, most: LARGEST }, value)).sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))]!;
  const range = at(0.75) - at(0.25);
  if (range === 0) return [-LARGEST, LARGEST]; // of numbers that are mostly alike nobody knows which others are slips
  return [at(0.25) - 10 * range, at(0.75) + 10 * range];
}
export const within = ({ least, most }: { least: number; most: number }, value: boolean | number): number =>
  Math.min(most, Math.max(least, Number(value)));

/** By order of first appearance. More than eight aspects or outcomes, or an outcome of two types, is a UserError. */
export function subjectsOf(judgements: Judgement[]): Subjects {
  const aspects = [...new Set(judgements.flatMap(({ ratings }) => ratings.map(({ aspect }) => aspect)))];
  if (aspects.length > ASPECTS)
    throw new UserError(`ratings on ${aspects.length} aspects (${aspects.join(', ')}): ${ASPECTS} at most`);
  const observed = new Map<string, (boolean | number)[]>();
  for (const { outcomes } of judgements)
    for (const { name, value } of outcomes) {
      if (!observed.has(name)) observed.set(name, []);
      observed.get(name)!.push(value);
    }
  if (observed.size > OUTCOMES)
    throw new UserError(`outcomes of ${observed.size} names (${[...observed.keys()].join(', ')}): ${OUTCOMES} at most`);
  const outcomes = [...observed].map(([name, values]) => {
    const isNumber = typeof values[0] === 'number';
    if (values.some((value) => (typeof value === 'number') !== isNumber))
      throw new UserError(`outcome ${name} is a number here and true or false there: give it one type`);
    const [least, most] = fences(values.map(Number));
    const numbers = values.map((value) => within({ least, most }, value));
    return { name, isNumber, least, most, mean: mean(numbers), deviation: Math.sqrt(variance(numbers)) || 1 };
  });
  const raters = new Map<string, number>();
  for (const { rater, thumbs } of judgements)
    if (rater !== null && thumbs.length > 0 && !raters.has(rater)) raters.set(rater, raters.size + 1);
  return { aspects, outcomes, raters, weight: judgements.reduce((sum, judgement) => sum + weightOf(judgement), 0) };
}

/** The distinct prompts that were judged, in the order in which they first come. */
export const judgedPrompts = (judgements: Judgement[]): number[][] => [
  ...new Map(judgements.map(({ rows }) => [rows[0]!.prompt.join(), rows[0]!.prompt])).values(),
];

/** A mix of aspects that nothing is rated by would be no mix. */
export function requireRated(mix: Record<string, number>, judgements: Judgement[]): void {
  const { aspects } = subjectsOf(judgements);
  const unknown = Object.keys(mix).find((aspect) => !aspects.includes(aspect));
  if (unknown !== undefined)
    throw new UserError(
      `the mix names ${unknown}: ${aspects.length > 0 ? `rated are ${aspects.join(', ')}` : 'nothing is rated by aspect'}`,
    );
}

/**
 * Which judgements a fit has places for: all but ratings and outcomes under names beyond the eight most used ones, and an outcome's values of
 * the type that fewer have. Names come from whoever may judge, and nobody's choice of names shall end a run.
 */
export function placed(judgements: Judgement[]): (judgement: Judgement) => boolean {
  const most = (names: string[], count: number): Set<string> => {
    const uses = new Map<string, number>();
    for (const name of names) uses.set(name, (uses.get(name) ?? 0) + 1);
    const byUse = [...uses].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
    return new Set(byUse.slice(0, count).map(([name]) => name));
  };
  const typed = (name: string, value: unknown) => `${typeof value} ${name}`;
  const outcomes = judgements.flatMap((judgement) => judgement.outcomes);
  const aspects = most(
    judgements.flatMap(({ ratings }) => ratings.map(({ aspect }) => aspect)),
    ASPECTS,
  );
  const types = new Set(
    [...new Set(outcomes.map(({ name }) => name))].flatMap((name) => [
      ...most(
        outcomes.filter((outcome) => outcome.name === name).map(({ value }) => typed(name, value)),
        1,
      ),
    ]),
  );
  const kept = most(
    outcomes.filter(({ name, value }) => types.has(typed(name, value))).map(({ name }) => name),
    OUTCOMES,
  );
  return ({ ratings, outcomes }) =>
    ratings.every(({ aspect }) => aspects.has(aspect)) &&
    outcomes.every(({ name, value }) => kept.has(name) && types.has(typed(name, value)));
}

/** The pairs of a judgement that one answer won, [better, worse]; ties give none. For measuring accuracy. */
export const pairsOf = ({ stages }: Judgement): [number, number][] =>
  stages.flatMap(({ remaining, chosen }) =>
    remaining
      .filter((row) => !chosen.includes(row))
      .flatMap((worse) => chosen.map((better): [number, number] => [better, worse])),
  );
