// People's judgements as the reward model's likelihood sees them: answers to one prompt, the stages of a Plackett–Luce
// choice among them, and thumbs. Read from a snapshot's votes or from files in TRL's shapes.

import { z } from 'zod';
import { Message } from '../schema/message.ts';
import type { Vote } from '../schema/snapshot.ts';
import { answerRow, type Row, readLines, requireRoom } from './data.ts';
import type { Policy } from './policy.ts';
import { UserError } from './user-error.ts';

/** Out of the answers `remaining` (indices into rows), `chosen` was taken first. */
interface Stage {
  remaining: number[];
  chosen: number;
  weight: number;
}
/** One act of judging; its weights, stages and thumbs together, sum to 1. */
export interface Judgement {
  id: string;
  /** What keeps evidence apart: rows of one conversation stand together in every split. */
  root: string;
  rows: Row[];
  texts: string[];
  stages: Stage[];
  thumbs: { row: number; up: boolean; weight: number }[];
}

/**
 * The Plackett–Luce stages of groups from best to worst. Within a group of equals every order counts alike, so that a tie of
 * two is half a win each way; for more than three equals the rotations of one order stand for all of them.
 */
export function stagesOf(groups: number[][]): Stage[] {
  const stages: Stage[] = [];
  for (const [index, group] of groups.entries()) {
    const worse = groups.slice(index + 1).flat();
    const orders =
      group.length <= 3 ? permutations(group) : group.map((_, i) => [...group.slice(i), ...group.slice(0, i)]);
    for (const order of orders) {
      order.forEach((chosen, place) => {
        const remaining = [...order.slice(place), ...worse];
        if (remaining.length > 1) stages.push({ remaining, chosen, weight: 1 / orders.length });
      });
    }
  }
  return stages;
}

function permutations(items: number[]): number[][] {
  if (items.length <= 1) return [items];
  return items.flatMap((item, i) =>
    permutations([...items.slice(0, i), ...items.slice(i + 1)]).map((rest) => [item, ...rest]),
  );
}

/** A vote's judgement, or null where it says nothing of which answer is better (equal texts, kinds without a likelihood yet). */
export function judgementOf(policy: Policy, vote: Vote): Judgement | null {
  const place = new Map(vote.samples.map((sample, index) => [sample.id, index]));
  const texts = vote.samples.map((sample) => sample.text);
  let stages: Stage[] = [];
  let thumbs: Judgement['thumbs'] = [];
  switch (vote.kind) {
    case 'thumb':
      thumbs = [{ row: 0, up: vote.value === 1, weight: 1 }];
      break;
    case 'choice': {
      const all = texts.map((_, index) => index);
      if (vote.winner === 'tie') stages = stagesOf([all]);
      else if (vote.winner === 'both_bad') {
        stages = stagesOf([all]);
        thumbs = all.map((row) => ({ row, up: false, weight: 1 }));
      } else {
        const winner = place.get(vote.winner)!;
        stages = [{ remaining: all, chosen: winner, weight: 1 }]; // the others stay unordered
      }
      break;
    }
    case 'ranking':
      stages = stagesOf(vote.order.map((group) => group.map((id) => place.get(id)!)));
      break;
    case 'correction':
      texts.push(vote.text);
      stages = [{ remaining: [0, 1], chosen: 1, weight: 1 }];
      break;
    case 'rating':
      return null;
  }
  return shared({
    id: vote.feedback,
    root: vote.root,
    rows: texts.map((text) => answerRow(policy, vote.prompt, text)),
    texts,
    stages,
    thumbs,
  });
}

/** Drops choices between equal texts and shares the judgement's weight of 1 among what is left; null if nothing is. */
function shared(judgement: Judgement): Judgement | null {
  const stages = judgement.stages.filter(
    ({ remaining }) => new Set(remaining.map((row) => judgement.texts[row])).size > 1,
  );
  const total = [...stages, ...judgement.thumbs].reduce((sum, part) => sum + part.weight, 0);
  if (total === 0) return null;
  const scale = <T extends { weight: number }>(part: T): T => ({ ...part, weight: part.weight / total });
  return { ...judgement, stages: stages.map(scale), thumbs: judgement.thumbs.map(scale) };
}

const Text = z.union([z.string(), z.array(Message).min(1)], 'expected a string or messages');
/** An export's weight keeps a vote of many pairs from counting as many votes; other files have none. */
const common = { prompt: Text, weight: z.number().positive().optional() };
const JudgementLine = z.union(
  [
    z.looseObject({ ...common, chosen: Text, rejected: Text }),
    z.looseObject({ ...common, completions: z.array(Text).min(2).max(8), ranks: z.array(z.int().positive()) }),
    z.looseObject({ ...common, completion: Text, label: z.boolean() }),
  ],
  'expected {prompt, chosen, rejected}, {prompt, completions, ranks} or {prompt, completion, label}',
);

/** Judgements of a file: TRL's preference and unpaired preference rows, and rankings as Plumb exports them. */
export function readJudgements(policy: Policy, path: string): Judgement[] {
  const text = (value: z.infer<typeof Text>) =>
    typeof value === 'string' ? value : value.map((message) => message.content).join('\n');
  type Line = z.infer<typeof JudgementLine>;
  const made = readLines<Line, Judgement | null>(path, JudgementLine, (line, at) => {
    const prompt = line.prompt as z.infer<typeof Text>;
    const messages: Message[] = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt;
    let texts: string[];
    let stages: Stage[] = [];
    let thumbs: Judgement['thumbs'] = [];
    if ('chosen' in line) {
      texts = [text(line.chosen as never), text(line.rejected as never)];
      stages = [{ remaining: [0, 1], chosen: 0, weight: 1 }];
    } else if ('ranks' in line) {
      const ranks = line.ranks as number[];
      texts = (line.completions as z.infer<typeof Text>[]).map(text);
      if (ranks.length !== texts.length) throw new UserError(`${texts.length} completions but ${ranks.length} ranks`);
      const order = [...new Set(ranks)].sort((a, b) => a - b);
      stages = stagesOf(order.map((rank) => ranks.flatMap((r, row) => (r === rank ? [row] : []))));
    } else {
      texts = [text(line.completion as never)];
      thumbs = [{ row: 0, up: line.label as boolean, weight: 1 }];
    }
    const judgement = shared({
      id: `line ${at}`,
      root: JSON.stringify(messages),
      rows: texts.map((answer) => answerRow(policy, messages, answer)),
      texts,
      stages,
      thumbs,
    });
    if (!judgement) return null;
    requireRoom(policy, judgement.rows[0]!.prompt);
    const weight = (line.weight as number | undefined) ?? 1;
    const weighed = <T extends { weight: number }>(part: T): T => ({ ...part, weight: part.weight * weight });
    return { ...judgement, stages: judgement.stages.map(weighed), thumbs: judgement.thumbs.map(weighed) };
  }).filter((judgement) => judgement !== null);
  if (made.length === 0) throw new UserError(`${path}: no line says that one answer is better than another`);
  return made;
}

/** The pairs of a judgement that one answer won, [better, worse]; ties give none. For measuring accuracy. */
export function pairsOf(judgement: Judgement): [number, number][] {
  const wins = new Map<string, number>();
  for (const { remaining, chosen, weight } of judgement.stages) {
    for (const other of remaining)
      if (other !== chosen) wins.set(`${chosen},${other}`, (wins.get(`${chosen},${other}`) ?? 0) + weight);
  }
  return [...wins].flatMap(([key, weight]) => {
    const [better, worse] = key.split(',').map(Number) as [number, number];
    return weight > (wins.get(`${worse},${better}`) ?? 0) + 1e-9 ? [[better, worse] as [number, number]] : [];
  });
}
