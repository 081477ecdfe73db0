// Idempotency-Key: the first request claims its key, does its work and keeps its answer in the same batch as the work;
// the same again within 24 hours is given that answer. Feedback has its own, on the rows of its revisions.
import { and, eq, isNull, type SQL, sql } from 'drizzle-orm';
import { requests } from '../schema/tables.ts';
import { sha256 } from './crypto.ts';
import { ApiError } from './error.ts';
import { database, now, type Statement } from './store/db.ts';

const KEPT = 24 * 3600;
/** A claim whose Worker died is free again after this. */
const ABANDONED = 300;

/** Statements that keep an answer, for the batch that does the work; with `provided`, only if that holds in it by then. */
export type Remember = (status: number, type: string, response: string, provided?: SQL) => Statement[];

type Claim = { replay: Response } | { remember: Remember; release(): Promise<unknown> };

export const anotherBody = () => new ApiError(422, 'this Idempotency-Key was used with another body');
const replayed = (status: number, type: string, response: string) =>
  new Response(response, { status, headers: { 'Content-Type': type, 'Idempotent-Replayed': 'true' } });

export const before = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString();

/** What a key is kept under: bound to who asks, and what for. */
export const boundKey = (...parts: string[]) => sha256(parts.join('\n'));

export async function claim(d1: D1Database, bound: string[], body: string): Promise<Claim> {
  const db = database(d1);
  const key = await boundKey(...bound);
  const [claimed, rows] = await db.batch([
    db
      .insert(requests)
      .values({ key, body, created_at: now() })
      .onConflictDoUpdate({
        target: requests.key,
        set: { body, status: null, type: null, response: null, created_at: now() },
        setWhere: sql`created_at <= ${before(KEPT)} OR (status IS NULL AND created_at <= ${before(ABANDONED)})`,
      })
      .returning({ key: requests.key }),
    db.select().from(requests).where(eq(requests.key, key)),
  ]);
  if (claimed.length === 0) {
    const first = rows[0]!;
    if (first.body !== body) throw anotherBody();
    if (first.status === null)
      throw new ApiError(409, 'the first request with this Idempotency-Key is under way', {
        headers: { 'Retry-After': '1' },
      });
    return { replay: replayed(first.status, first.type!, first.response!) };
  }
  return {
    remember: (status, type, response, provided) => [
      db
        .update(requests)
        .set({ status, type, response })
        .where(and(eq(requests.key, key), provided)),
    ],
    release: () => db.delete(requests).where(and(eq(requests.key, key), isNull(requests.status))),
  };
}

/** For the cron: answers are kept a day. */
export const forgetOldAnswers = (d1: D1Database) =>
  database(d1)
    .delete(requests)
    .where(sql`${requests.created_at} <= ${before(KEPT)}`);
