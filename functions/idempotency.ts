// Idempotency-Key: the first request claims its key as it is let in, does its work and keeps its answer in the same batch as the work;
// the same again within 24 hours is given that answer. Feedback has its own, on the rows of its revisions.
import { and, eq, isNull, type SQL, sql } from 'drizzle-orm';
import { requests } from '../schema/tables.ts';
import { sha256 } from './crypto.ts';
import { ApiError } from './error.ts';
import { database, now, raw, type Statement } from './store/db.ts';

const KEPT = 24 * 3600;
/** A claim whose Worker died is free again after this. */
const ABANDONED = 300;

/** Statements that keep an answer, for the batch that does the work; with `provided`, only if that holds in it by then. */
export type Remember = (status: number, type: string, response: string, provided?: SQL) => Statement[];

export const anotherBody = () => new ApiError(422, 'this Idempotency-Key was used with another body');
const replayed = (status: number, type: string, response: string) =>
  new Response(response, { status, headers: { 'Content-Type': type, 'Idempotent-Replayed': 'true' } });

export const before = (seconds: number) => new Date(Date.now() - seconds * 1000).toISOString();

/** What a key is kept under: bound to who asks, and what for. */
export const boundKey = (...parts: string[]) => sha256(parts.join('\n'));

/** A claim to be made: its statements go into the batch that also reads who asks. */
export interface Claim {
  statements: Statement[];
  /** From the statements' results, whether the claim was made now: then it must be kept or released. */
  isMade(results: unknown[][]): boolean;
  /** What was answered before. Throws an ApiError where that was to another body, or is still under way. */
  replay(results: unknown[][]): Response | undefined;
  remember: Remember;
  release(): Promise<unknown>;
}

/**
 * Nobody whose key is not known claims anything.
 * @param callerHash of the key that asks
 * @param what the claim is for, besides
 * @param body SHA-256 of the body
 */
export async function claiming(d1: D1Database, callerHash: string, what: string[], body: string): Promise<Claim> {
  const db = database(d1);
  const key = await boundKey(callerHash, ...what);
  const time = now();
  return {
    statements: [
      raw<{ key: string }>(
        db,
        sql`INSERT INTO requests ("key", body, created_at)
            SELECT ${key}, ${body}, ${time} WHERE EXISTS (SELECT 1 FROM keys WHERE hash = ${callerHash} AND revoked_at IS NULL)
            ON CONFLICT ("key") DO UPDATE SET body = ${body}, status = NULL, type = NULL, response = NULL, created_at = ${time}
            WHERE created_at <= ${before(KEPT)} OR (status IS NULL AND created_at <= ${before(ABANDONED)})
            RETURNING "key"`,
      ),
      db.select().from(requests).where(eq(requests.key, key)),
    ],
    isMade: ([made]) => made!.length > 0,
    replay([, rows]) {
      const first = (rows as (typeof requests.$inferSelect)[])[0];
      if (!first) return undefined;
      if (first.body !== body) throw anotherBody();
      if (first.status === null)
        throw new ApiError(409, 'the first request with this Idempotency-Key is under way', {
          headers: { 'Retry-After': '1' },
        });
      return replayed(first.status, first.type!, first.response!);
    },
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
