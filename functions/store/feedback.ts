// Votes. A write is one batch: what it needs to know of the samples is asked in the statements that write, so that
// nothing lies between looking and writing; the rows read beside say which refusal it was.
import { and, eq, gte, isNull, lt, lte, type SQL, sql } from 'drizzle-orm';
import { newId } from '../../schema/ids.ts';
import { feedback, type revisions, runs, snapshots } from '../../schema/tables.ts';
import { type FeedbackQuery, facetOf, judged, type NewFeedback } from '../../schema/wire-feedback.ts';
import { sha256 } from '../crypto.ts';
import { ApiError, at } from '../error.ts';
import { anotherBody, before } from '../idempotency.ts';
import { type Database, database, listing, now, page, raw, seq, takeSeq } from './db.ts';
import { utc } from './samples.ts';

export type FeedbackRow = typeof feedback.$inferSelect;
type Used = Pick<typeof revisions.$inferSelect, 'op' | 'revision' | 'request' | 'feedback'> & {
  body: string;
  updated_at: string;
};

export interface Judge {
  /** Undefined: whoever the samples were drawn for. */
  rater: string | undefined;
  kind: FeedbackRow['rater_kind'];
  cohorts?: Record<string, string> | undefined;
  session: string;
}

interface Written {
  status: 200 | 201;
  vote: ReturnType<typeof wireVote>;
  replayed: boolean;
}

/** A row as it is sent: as it came, without the token. */
export function wireVote(
  row: FeedbackRow,
  as: Pick<FeedbackRow, 'body' | 'revision' | 'updated_at' | 'undone_at'> = row,
) {
  const { id, rater, rater_kind, policy, created_at } = row;
  const { body, revision, updated_at, undone_at } = as;
  const own = { object: 'feedback' as const, id, ...body, rater, rater_kind, revision, policy, created_at, updated_at };
  return undone_at ? { ...own, undone_at } : own;
}

const stored = (body: NewFeedback): Record<string, unknown> => {
  const { token: _, rater: __, ...rest } = body;
  return rest;
};

/** What a body says, whatever order it names equals in. */
const saidBy = (body: Record<string, unknown>): string =>
  JSON.stringify(body, (key, value) => {
    if (key === 'sample_ids') return value.toSorted();
    if (key === 'order') return value.map((group: string[]) => group.toSorted());
    return value;
  });

const targetOf = (body: NewFeedback) => sha256(judged(body).toSorted().join(' '));

/** Logs the vote that this batch has just written. */
const logging = (db: Database, op: SQL, time: string, idempotency: string | null, request: string | null, or?: SQL) =>
  raw(
    db,
    sql`INSERT INTO revisions (seq, feedback, revision, op, body, at, idempotency, request)
        SELECT ${seq()}, id, revision, ${op}, body, ${time}, ${idempotency}, ${request}
        FROM feedback WHERE seq = ${seq()} ${or ? sql`OR (${or})` : sql``}`,
  );

const parsed = (row: Record<string, unknown>): FeedbackRow =>
  ({ ...row, body: JSON.parse(row.body as string) }) as FeedbackRow;

export async function vote(
  d1: D1Database,
  body: NewFeedback,
  judge: Judge,
  idempotency?: { key: string; body: string },
): Promise<Written> {
  const db = database(d1);
  const ids = judged(body);
  const json = JSON.stringify(stored(body));
  const said = saidBy(stored(body));
  const target = await targetOf(body);
  const facet = facetOf(body);
  const time = now();
  const used = idempotency
    ? sql`EXISTS (SELECT 1 FROM revisions WHERE idempotency = ${idempotency.key} AND at > ${before(86_400)})`
    : sql`0`;
  const these = sql`id IN (SELECT value FROM json_each(${JSON.stringify(ids)}))`;
  const rater = judge.rater ? sql`${judge.rater}` : sql`(SELECT min("user") FROM samples WHERE ${these})`;
  const unchanged = sql`(text = ${body.kind === 'correction' ? body.text : null})`;

  const [, , first, , , , seen, , votes] = await db.batch([
    takeSeq(db),
    raw(
      db,
      sql`INSERT INTO feedback (id, seq, created_seq, rater, rater_kind, kind, facet, target, body, said, policy, session, revision, created_at, updated_at)
          SELECT ${newId('feedback')}, ${seq()}, ${seq()}, ${rater}, ${judge.kind}, ${body.kind}, ${facet}, ${target}, ${json}, ${said},
                 (SELECT policy FROM samples WHERE id = ${ids[0]}), ${judge.session}, 1, ${time}, ${time}
          WHERE NOT ${used} AND (
            SELECT count(*) = ${ids.length} AND count(DISTINCT prompt) = 1 AND coalesce(sum(${unchanged}), 0) = 0
               AND (${judge.rater ? 1 : 0} OR (count("user") = count(*) AND count(DISTINCT "user") = 1))
            FROM samples WHERE ${these})
          ON CONFLICT (rater, kind, facet, target) DO UPDATE
          SET seq = excluded.seq, rater_kind = excluded.rater_kind, body = excluded.body, said = excluded.said,
              session = CASE excluded.session WHEN '' THEN session ELSE excluded.session END,
              revision = revision + 1, updated_at = excluded.updated_at, undone_at = NULL
          WHERE said <> excluded.said OR undone_at IS NOT NULL`,
    ),
    // the use of this key before now, if there was one
    raw<Record<string, unknown>>(
      db,
      sql`SELECT r.op, r.revision, r.body, r.request, r.feedback, CASE r.op WHEN 'repeat' THEN
            (SELECT at FROM revisions WHERE feedback = r.feedback AND seq < r.seq AND op <> 'repeat' ORDER BY seq DESC LIMIT 1)
            ELSE r.at END AS updated_at FROM revisions r
          WHERE r.idempotency = ${idempotency?.key ?? ''} AND r.at > ${before(86_400)} ORDER BY r.seq LIMIT 1`,
    ),
    logging(
      db,
      sql`CASE WHEN seq < ${seq()} THEN 'repeat' WHEN revision = 1 THEN 'create' ELSE 'change' END`,
      time,
      idempotency?.key ?? null,
      idempotency?.body ?? null,
      sql`${idempotency ? 1 : 0} AND rater = ${rater} AND kind = ${body.kind} AND facet = ${facet} AND target = ${target}
          AND said = ${said} AND undone_at IS NULL AND NOT ${used}`,
    ),
    raw(
      db,
      sql`INSERT OR IGNORE INTO feedback_samples (sample, feedback)
          SELECT j.value, f.id FROM feedback f, json_each(${JSON.stringify(ids)}) j WHERE f.seq = ${seq()}`,
    ),
    raw(
      db,
      sql`INSERT INTO raters (id, kind, cohorts, created_at)
          SELECT rater, rater_kind, ${JSON.stringify(judge.cohorts ?? {})}, ${time} FROM feedback WHERE seq = ${seq()}
          ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, cohorts = excluded.cohorts WHERE ${judge.cohorts ? 1 : 0}`,
    ),
    raw<{ id: string; prompt: string; user: string | null; same: number | null }>(
      db,
      sql`SELECT id, prompt, "user", ${unchanged} AS same FROM samples WHERE ${these}`,
    ),
    // a page that says again what stands may take it back
    raw(
      db,
      sql`UPDATE feedback SET session = ${judge.session}
          WHERE rater = ${rater} AND kind = ${body.kind} AND facet = ${facet} AND target = ${target}
            AND said = ${said} AND undone_at IS NULL AND ${judge.session} <> '' AND NOT ${used}`,
    ),
    raw<Record<string, unknown>>(
      db,
      sql`SELECT *, ${seq()} AS latest FROM feedback WHERE rater = ${rater} AND kind = ${body.kind} AND facet = ${facet} AND target = ${target}`,
    ),
  ]);

  const past = first[0] as unknown as Used | undefined;
  if (past) {
    if (past.request !== idempotency?.body) throw anotherBody();
    const row = await readVote(d1, past.feedback);
    const as = { body: JSON.parse(past.body), revision: past.revision, updated_at: past.updated_at, undone_at: null };
    return { status: past.op === 'create' ? 201 : 200, vote: wireVote(row!, as), replayed: true };
  }
  const row = votes[0];
  const known = new Set(seen.map((sample) => sample.id));
  const missing = ids.findIndex((id) => !known.has(id));
  if (missing >= 0) throw at(422, 'sample_ids' in body ? `sample_ids[${missing}]` : 'sample_id', 'is not a sample');
  if (new Set(seen.map((sample) => sample.prompt)).size > 1) throw at(422, 'sample_ids', 'answer different prompts');
  if (seen.some((sample) => sample.same)) throw at(422, 'text', 'is equal to its original');
  const users = new Set(seen.map((sample) => sample.user));
  if (!row || (!judge.rater && users.size > 1))
    throw at(422, 'rater', 'is needed: the samples name no user, or several');
  return { status: row.latest === row.created_seq ? 201 : 200, vote: wireVote(parsed(row)), replayed: false };
}

async function readVote(d1: D1Database, id: string): Promise<FeedbackRow | undefined> {
  return (await database(d1).select().from(feedback).where(eq(feedback.id, id)))[0];
}

/** A secret key may change any vote; a page those of its own session (`session` given). */
const owned = (id: string, session: string | undefined) =>
  session === undefined ? sql`id = ${id}` : sql`id = ${id} AND session = ${session}`;

/** Whether there is such a vote that the caller may change. */
export async function isVote(d1: D1Database, id: string, session: string | undefined): Promise<boolean> {
  const found = await database(d1).select({ id: feedback.id }).from(feedback).where(owned(id, session));
  return found.length > 0;
}

/** Another value of the same vote. Undefined where there is none that the caller may change. */
export async function changeVote(d1: D1Database, id: string, body: NewFeedback, session: string | undefined) {
  const db = database(d1);
  const time = now();
  const json = JSON.stringify(stored(body));
  const said = saidBy(stored(body));
  const same = sql`kind = ${body.kind} AND facet = ${facetOf(body)} AND target = ${await targetOf(body)}`;
  const original =
    body.kind === 'correction'
      ? sql`EXISTS (SELECT 1 FROM samples WHERE id = ${body.sample_id} AND text = ${body.text})`
      : sql`0`;
  const [, , , rows] = await db.batch([
    takeSeq(db),
    raw(
      db,
      sql`UPDATE feedback SET seq = ${seq()}, body = ${json}, said = ${said}, revision = revision + 1, updated_at = ${time}, undone_at = NULL
          WHERE ${owned(id, session)} AND ${same} AND (said <> ${said} OR undone_at IS NOT NULL) AND NOT ${original}`,
    ),
    logging(db, sql`'change'`, time, null, null),
    raw<Record<string, unknown>>(
      db,
      sql`SELECT *, (${same}) AS same, (${original}) AS original FROM feedback WHERE ${owned(id, session)}`,
    ),
  ]);
  const row = rows[0];
  if (!row) return undefined;
  if (!row.same) throw new ApiError(422, 'a change keeps the kind, the samples and what was rated');
  if (row.original) throw at(422, 'text', 'is equal to its original');
  return wireVote(parsed(row));
}

/** False where there is no vote that the caller may undo; a second time changes nothing. */
export async function undoVote(d1: D1Database, id: string, session: string | undefined): Promise<boolean> {
  const db = database(d1);
  const time = now();
  const [, , , rows] = await db.batch([
    takeSeq(db),
    raw(
      db,
      sql`UPDATE feedback SET seq = ${seq()}, undone_at = ${time}, updated_at = ${time}
          WHERE ${owned(id, session)} AND undone_at IS NULL`,
    ),
    logging(db, sql`'undo'`, time, null, null),
    raw<{ id: string }>(db, sql`SELECT id FROM feedback WHERE ${owned(id, session)}`),
  ]);
  return rows.length > 0;
}

export async function listVotes(d1: D1Database, query: FeedbackQuery) {
  const db = database(d1);
  const { kind, policy, rater, run, since, until, undone } = query;
  const filters = [
    kind ? eq(feedback.kind, kind) : undefined,
    policy ? eq(feedback.policy, policy) : undefined,
    rater ? eq(feedback.rater, rater) : undefined,
    // what the run could learn from: the votes that its snapshot holds
    run
      ? lte(
          feedback.created_seq,
          sql`coalesce((SELECT ${snapshots.to_seq} FROM ${runs} JOIN ${snapshots} ON ${snapshots.id} = ${runs.snapshot} WHERE ${runs.id} = ${run}), 0)`,
        )
      : undefined,
    since ? gte(feedback.created_at, utc(since)) : undefined,
    until ? lt(feedback.created_at, utc(until)) : undefined,
    undone === 'true' ? undefined : isNull(feedback.undone_at),
  ];
  const columns = { id: feedback.id, seq: feedback.created_seq };
  const { where, orderBy, limit } = page(feedback, columns, query, and(...filters));
  const rows = await db.select().from(feedback).where(where).orderBy(orderBy).limit(limit);
  return listing(
    rows.map((row) => wireVote(row)),
    query.limit,
  );
}
