// Runs as people see them: made, listed, cancelled. One is active at a time; the database sees to that.
import { and, desc, eq, gt, inArray, isNull, sql } from 'drizzle-orm';
import { newId } from '../../schema/ids.ts';
import { ACTIVE, feedback, releases, runMetrics, runs, snapshots } from '../../schema/tables.ts';
import { LEARNT_FROM } from '../../schema/wire-feedback.ts';
import type { Run } from '../../schema/wire-runs.ts';
import { ApiError } from '../error.ts';
import {
  type Database,
  database,
  dbIn,
  listing,
  now,
  type Paging,
  page,
  raw,
  type Statement,
  seq,
  takeSeq,
} from './db.ts';
import { readPolicy } from './policies.ts';

export type RunRow = typeof runs.$inferSelect;
type Released = { id: string; channel: 'stable' | 'canary' } | null;

export const isActive = (row: Pick<RunRow, 'status'>) => (ACTIVE as readonly string[]).includes(row.status);

function wireRun(row: RunRow, release: Released): Run {
  return {
    object: 'run',
    id: row.id,
    status: row.status,
    ...(row.verdict ? { verdict: row.verdict } : {}),
    release,
    stage: row.stage,
    step: row.step,
    steps: row.steps,
    reason: row.reason,
    snapshot: row.snapshot,
    base_policy: row.base_policy,
    ...(row.policy ? { policy: row.policy } : {}),
    ...(row.report ? { report: row.report } : {}),
    ...(row.error ? { error: row.error } : {}),
    created_at: row.created_at,
    started_at: row.started_at,
    ended_at: row.ended_at,
  };
}

const withRelease = (db: Database) =>
  db
    .select({ run: runs, release: { id: releases.id, channel: releases.channel } })
    .from(runs)
    .leftJoin(releases, eq(releases.run, runs.id));

export async function readRun(d1: D1Database, id: string): Promise<{ row: RunRow; wire: Run } | undefined> {
  const [found] = await withRelease(database(d1)).where(eq(runs.id, id));
  return found && { row: found.run, wire: wireRun(found.run, found.release) };
}

export async function listRuns(d1: D1Database, paging: Paging, status?: RunRow['status']) {
  const { where, orderBy, limit } = page(runs, runs, paging, status && eq(runs.status, status));
  const rows = await withRelease(database(d1)).where(where).orderBy(orderBy).limit(limit);
  return listing(
    rows.map(({ run, release }) => wireRun(run, release)),
    paging.limit,
  );
}

export async function activeRun(d1: D1Database): Promise<RunRow | undefined> {
  return (
    await database(d1)
      .select()
      .from(runs)
      .where(inArray(runs.status, [...ACTIVE]))
      .limit(1)
  )[0];
}

/** A vote on an answer that was broken off, from which nothing is learnt. */
const ofBrokenOff = sql`EXISTS (SELECT 1 FROM samples s WHERE s.finish_reason = 'abort' AND s.id IN (SELECT value FROM json_each(
  coalesce(${feedback.body} ->> '$.sample_ids', json_array(${feedback.body} ->> '$.sample_id')))))`;

/** How many judgements stand that were written after `after`, counted no further than `most`; and since when. */
export async function newJudgements(
  d1: D1Database,
  after: number,
  most: number,
): Promise<{ count: number; since: string | null }> {
  const db = database(d1);
  const rows = await db
    .select({ at: feedback.updated_at })
    .from(feedback)
    .where(
      and(
        gt(feedback.seq, after),
        isNull(feedback.undone_at),
        inArray(feedback.kind, [...LEARNT_FROM]),
        sql`NOT ${ofBrokenOff}`,
      ),
    )
    .orderBy(feedback.seq)
    .limit(most);
  return { count: rows.length, since: rows[0]?.at ?? null };
}

/** The judgements of a run that failed, for want of an engine perhaps, are new again after an hour, so that it is tried again. */
const RETRY_SECONDS = 3600;

/** Up to where the last run's snapshot went, whatever became of the run; those that failed a while ago do not count. */
export async function lastSnapshotEnd(d1: D1Database): Promise<number> {
  const [last] = await database(d1)
    .select({ to: snapshots.to_seq })
    .from(runs)
    .innerJoin(snapshots, eq(snapshots.id, runs.snapshot))
    .where(sql`${runs.seq} > 0 AND NOT (${runs.status} = 'failed' AND ${runs.ended_at} <= ${dbIn(-RETRY_SECONDS)})`)
    .orderBy(desc(runs.seq))
    .limit(1);
  return last?.to ?? 0;
}

interface NewRun {
  stages: string[] | null;
  config: Record<string, unknown>;
  reason: string;
}

const inTheWay = (id: string) => new ApiError(409, 'another run is active', { extra: { run: id } });

/** Queues a run on what is stable now and on all that was judged up to now. */
export async function createRun(
  d1: D1Database,
  { stages, config, reason }: NewRun,
  base: string,
  remember: (status: number, type: string, response: string) => Statement[],
): Promise<Run> {
  const active = await activeRun(d1);
  if (active) throw inTheWay(active.id);
  const from = await readPolicy(d1, base);
  if (from && 'upstream' in from.manifest)
    throw new ApiError(422, 'what is stable decodes at an upstream server: there are no weights here to train');
  const row: RunRow = {
    id: newId('run'),
    seq: 0,
    status: 'queued',
    stages,
    config,
    reason,
    snapshot: newId('snapshot'),
    base_policy: base,
    fence: 1,
    launched_at: null,
    lease_until: null,
    stage: null,
    step: null,
    steps: null,
    checkpoint: null,
    verdict: null,
    policy: null,
    report: null,
    error: null,
    created_at: now(),
    started_at: null,
    ended_at: null,
  };
  const run = wireRun(row, null);
  const db = database(d1);
  const before = sql`SELECT * FROM snapshots WHERE to_seq >= 0 ORDER BY to_seq DESC LIMIT 1`;
  try {
    await db.batch([
      takeSeq(db),
      db.insert(runs).values({ ...row, checkpoint: sql`NULL`, seq: seq() }),
      raw(
        db,
        sql`INSERT INTO snapshots (id, to_seq, votes_cursor, prompts_cursor, parts, prompts, created_at)
            SELECT ${row.snapshot}, ${seq()}, coalesce(b.votes_cursor, 0), coalesce(b.prompts_cursor, 0),
                   coalesce(b.parts, '[]'), coalesce(b.prompts, '[]'), ${row.created_at}
            FROM (SELECT 1) LEFT JOIN (${before}) b`,
      ),
      ...remember(202, 'application/json', JSON.stringify(run)),
    ]);
  } catch (error) {
    const other = await activeRun(d1); // both looked before either wrote
    if (other) throw inTheWay(other.id);
    throw error;
  }
  return run;
}

/** Undefined where there is no such run. Its trainer is told by its next heartbeat. */
export async function cancelRun(d1: D1Database, id: string): Promise<Run | undefined> {
  const db = database(d1);
  await db
    .update(runs)
    .set({ status: 'cancelled', ended_at: now(), lease_until: null })
    .where(and(eq(runs.id, id), inArray(runs.status, [...ACTIVE])));
  const found = await readRun(d1, id);
  if (found && found.row.status !== 'cancelled')
    throw new ApiError(409, `the run has ended: it is ${found.row.status}`);
  return found?.wire;
}

export async function listMetrics(d1: D1Database, run: string, after: number, limit: number) {
  const { id, step, name, value, at } = runMetrics;
  const rows = await database(d1)
    .select({ id, step, name, value, at })
    .from(runMetrics)
    .where(and(eq(runMetrics.run, run), gt(id, after)))
    .orderBy(id)
    .limit(limit + 1);
  return listing(rows, limit);
}
