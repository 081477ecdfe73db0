// Samples and the prompts they answer.
import { and, eq, gte, isNull, lt, type SQL, sql } from 'drizzle-orm';
import type { Message } from '../../schema/message.ts';
import { feedback, feedbackSamples, prompts, samples } from '../../schema/tables.ts';
import { hex, hmac, sha256 } from '../crypto.ts';
import type { Settings } from '../env.ts';
import { type Database, database, listing, type Paging, page, type Statement, seq, takeSeq } from './db.ts';

export type Asked = { messages: Message[] } | { prompt: string };
type SampleRow = typeof samples.$inferSelect;
type NewSample = Omit<SampleRow, 'seq' | 'prompt'>;

/** A bare prompt is what a user said. */
export const asMessages = (asked: Asked): Message[] =>
  'messages' in asked ? asked.messages : [{ role: 'user', content: asked.prompt }];

/** A conversation's root is its system message and what the user said first; its side follows for ever. */
async function promptRow(set: Settings, asked: Asked) {
  const messages = asMessages(asked);
  const first = (role: Message['role']) => messages.find((message) => message.role === role)?.content ?? '';
  const root = await hmac(set.PLUMB_SIDE_KEY, JSON.stringify([first('system'), first('user')]));
  const share = new DataView(root.buffer).getUint32(0) / 2 ** 32;
  const body =
    'messages' in asked
      ? { messages: asked.messages.map(({ role, content }) => ({ role, content })) }
      : { prompt: asked.prompt };
  const side = share < 0.5 ? 'A' : share < 0.8 ? 'B' : 'C';
  return { hash: await sha256(JSON.stringify(body)), body, root: hex(root.subarray(0, 16)), side } as const;
}

/** The statements that store what was answered; one a sample, for D1 binds a hundred values a statement. */
export async function storing(
  db: Database,
  set: Settings,
  asked: Asked,
  rows: NewSample[],
): Promise<[Statement, ...Statement[]]> {
  const prompt = await promptRow(set, asked);
  return [
    takeSeq(db, rows.length),
    db
      .insert(prompts)
      .values({ ...prompt, seq: seq() })
      .onConflictDoNothing(),
    ...rows.map((row, i) => db.insert(samples).values({ ...row, prompt: prompt.hash, seq: seq(rows.length - 1 - i) })),
  ];
}

const wire = ({ samples: row, prompts: prompt }: { samples: SampleRow; prompts: typeof prompts.$inferSelect }) => {
  const { seq: _, prompt: __, ...rest } = row;
  return { object: 'sample' as const, ...prompt.body, ...rest };
};

interface SampleFilter {
  policy?: string | undefined;
  since?: string | undefined;
  until?: string | undefined;
}

/** The times of a filter as they are stored: in UTC, to the millisecond. */
export const utc = (time: string) => new Date(time).toISOString();

export async function listSamples(d1: D1Database, paging: Paging, { policy, since, until }: SampleFilter) {
  const filters: (SQL | undefined)[] = [
    policy ? eq(samples.policy, policy) : undefined,
    since ? gte(samples.created_at, utc(since)) : undefined,
    until ? lt(samples.created_at, utc(until)) : undefined,
  ];
  const { where, orderBy, limit } = page(samples, samples, paging, and(...filters));
  const rows = await database(d1)
    .select()
    .from(samples)
    .innerJoin(prompts, eq(prompts.hash, samples.prompt))
    .where(where)
    .orderBy(orderBy)
    .limit(limit);
  return listing(rows.map(wire), paging.limit);
}

export async function readSample(d1: D1Database, id: string) {
  const db = database(d1);
  const [rows, votes] = await Promise.all([
    db.select().from(samples).innerJoin(prompts, eq(prompts.hash, samples.prompt)).where(eq(samples.id, id)),
    db
      .select({ vote: feedback })
      .from(feedbackSamples)
      .innerJoin(feedback, eq(feedback.id, feedbackSamples.feedback))
      .where(and(eq(feedbackSamples.sample, id), isNull(feedback.undone_at)))
      .orderBy(sql`${feedback.created_seq}`)
      .limit(1000),
  ]);
  return rows[0] ? { sample: wire(rows[0]), votes: votes.map(({ vote }) => vote) } : undefined;
}
