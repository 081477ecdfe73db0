// Datasets: what each standing vote says, as rows that TRL reads. Votes are paged through in the order in which they were
// first cast, so that a reader resumes after the last row it holds.
import { and, eq, gte, inArray, isNull, lt, lte, sql } from 'drizzle-orm';
import type { DatasetKind, DatasetRow } from '../../schema/dataset.ts';
import type { Message } from '../../schema/message.ts';
import { feedback, raters, snapshots } from '../../schema/tables.ts';
import type { DatasetQuery } from '../../schema/wire-feedback.ts';
import { database, raw } from './db.ts';
import type { FeedbackRow } from './feedback.ts';
import { type Asked, asMessages, utc } from './samples.ts';

/** Kinds of votes that a dataset is made of. */
const SOURCES: Record<DatasetKind, string[]> = {
  preference: ['choice', 'ranking'],
  unpaired: ['thumb', 'choice'],
  ranking: ['ranking'],
  correction: ['correction'],
  rating: ['rating'],
};

const PAGE = 100;

interface JudgedSample {
  id: string;
  text: string;
  finish_reason: string;
  prompt: string;
}
type Vote = FeedbackRow & { cohorts: string | null };

// biome-ignore lint/suspicious/noExplicitAny: the body of a vote, checked when it was stored
type Body = any;

const idsOf = (body: Body): string[] => body.sample_ids ?? [body.sample_id];

/** The judged samples by rank, best first; ties share a group. Empty where nothing was ordered. */
function groupsOf(body: Body): string[][] {
  if (body.kind === 'ranking') return body.order;
  if (body.winner === 'tie' || body.winner === 'both_bad') return [];
  return [[body.winner], body.sample_ids.filter((id: string) => id !== body.winner)];
}

function* pairs(groups: string[][]): Generator<[better: string, worse: string]> {
  for (const [i, group] of groups.entries())
    for (const better of group) for (const worse of groups.slice(i + 1).flat()) yield [better, worse];
}

/** The rows of one vote. Answers that were broken off, and pairs of equal text, are left out. */
function rowsOf(kind: DatasetKind, vote: Vote, samples: Map<string, JudgedSample>, standard: boolean): DatasetRow[] {
  const body = vote.body as Body;
  const usable = (id: string) => samples.get(id) && samples.get(id)!.finish_reason !== 'abort';
  const first = samples.get(idsOf(body)[0]!);
  if (!first) return [];
  const messages = asMessages(JSON.parse(first.prompt) as Asked);
  const prompt = standard ? plainText(messages) : messages;
  const said = (content: string): [Message] | string => (standard ? content : [{ role: 'assistant', content }]);
  const text = (id: string) => samples.get(id)!.text;
  const columns = (weight: number, ...suffix: string[]) => ({
    id: [vote.id, ...suffix].join(':'),
    rater: vote.rater,
    cohorts: vote.cohorts ?? '{}',
    policy: vote.policy,
    weight,
    created_at: vote.created_at,
  });

  if (kind === 'preference') {
    const usablePairs = [...pairs(groupsOf(body))].filter(([a, b]) => usable(a) && usable(b) && text(a) !== text(b));
    return usablePairs.map(([chosen, rejected]) => ({
      prompt,
      chosen: said(text(chosen)),
      rejected: said(text(rejected)),
      ...columns(1 / usablePairs.length, chosen, rejected),
    }));
  }
  if (kind === 'ranking') {
    const groups = groupsOf(body).map((group) => group.filter(usable));
    const judged = groups.flat();
    if (groups.filter((group) => group.length > 0).length < 2) return [];
    let better = 0;
    const ranks = groups.flatMap((group) => {
      const rank = better + 1;
      better += group.length;
      return group.map(() => rank);
    });
    return [{ prompt, completions: judged.map((id) => said(text(id))), ranks, ...columns(1) }];
  }
  if (kind === 'unpaired' && body.kind === 'choice') {
    const bad = body.winner === 'both_bad' ? idsOf(body).filter(usable) : [];
    return bad.map((id) => ({ prompt, completion: said(text(id)), label: false, ...columns(1 / bad.length, id) }));
  }
  if (!usable(body.sample_id)) return [];
  const own = text(body.sample_id);
  if (kind === 'unpaired') return [{ prompt, completion: said(own), label: body.value === 1, ...columns(1) }];
  if (kind === 'correction') return [{ prompt, chosen: said(body.text), rejected: said(own), ...columns(1) }];
  return [{ prompt, completion: said(own), aspect: body.aspect, value: body.value, ...columns(1) }];
}

/** One message is its text; of several each begins with who says it. */
const plainText = (messages: Message[]) =>
  messages.length === 1
    ? messages[0]!.content
    : messages.map(({ role, content }) => `${role}: ${content}`).join('\n\n');

/** A weight is written with a decimal point: a reader takes `1` for a whole number, and the column for one of them. */
function line({ weight, ...row }: DatasetRow): string {
  return `${JSON.stringify(row).slice(0, -1)},"weight":${Number.isInteger(weight) ? `${weight}.0` : weight}}\n`;
}

/** The lines of a dataset. */
export async function* dataset(d1: D1Database, kind: DatasetKind, query: DatasetQuery): AsyncGenerator<string> {
  const { after, policy, since, until, snapshot, shape } = query;
  const db = database(d1);
  const last = after?.slice(0, 'fb_'.length + 26);
  // from the vote of the last row on, for it may have more rows; where that vote is gone, after its place
  let from = last
    ? sql`coalesce((SELECT created_seq FROM feedback WHERE id = ${last}), (SELECT created_seq + 1 FROM feedback WHERE id < ${last} ORDER BY id DESC LIMIT 1), 0)`
    : sql`0`;
  for (;;) {
    const votes = await db
      .select({ vote: feedback, cohorts: raters.cohorts })
      .from(feedback)
      .leftJoin(raters, eq(raters.id, feedback.rater))
      .where(
        and(
          gte(feedback.created_seq, from),
          inArray(feedback.kind, SOURCES[kind]),
          isNull(feedback.undone_at),
          policy ? eq(feedback.policy, policy) : undefined,
          since ? gte(feedback.created_at, utc(since)) : undefined,
          until ? lt(feedback.created_at, utc(until)) : undefined,
          snapshot
            ? lte(
                feedback.created_seq,
                sql`coalesce((SELECT ${snapshots.to_seq} FROM ${snapshots} WHERE ${snapshots.id} = ${snapshot}), 0)`,
              )
            : undefined,
        ),
      )
      .orderBy(feedback.created_seq)
      .limit(PAGE);
    if (votes.length === 0) return;
    const ids = votes.flatMap(({ vote }) => idsOf(vote.body));
    const [samples] = await db.batch([
      raw<JudgedSample>(
        db,
        sql`SELECT s.id, s.text, s.finish_reason, p.body AS prompt FROM samples s JOIN prompts p ON p.hash = s.prompt
            WHERE s.id IN (SELECT value FROM json_each(${JSON.stringify(ids)}))`,
      ),
    ]);
    const byId = new Map(samples.map((sample) => [sample.id, sample]));
    for (const { vote, cohorts } of votes) {
      const rows = rowsOf(kind, { ...vote, cohorts: JSON.stringify(cohorts ?? {}) }, byId, shape === 'standard');
      // a vote that was changed since has not the row any more: it was read
      const read = vote.id === last ? rows.findIndex((row) => row.id === after) : -1;
      const rest = vote.id !== last ? rows : read < 0 ? [] : rows.slice(read + 1);
      for (const row of rest) yield line(row);
    }
    if (votes.length < PAGE) return;
    from = sql`${votes.at(-1)!.vote.created_seq + 1}`;
  }
}
