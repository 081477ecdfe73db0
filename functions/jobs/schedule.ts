// What the cron does: starts a run when enough was judged, builds its snapshot, has its trainer launched, and launched
// again when it was lost. Each tick does what it finds to do; a tick that dies is made up for by the next.
import { and, eq, sql } from 'drizzle-orm';
import { runs } from '../../schema/tables.ts';
import { type Env, type Settings, settings } from '../env.ts';
import { ApiError } from '../error.ts';
import { forgetOldAnswers } from '../idempotency.ts';
import { database, dbIn, dbNow } from '../store/db.ts';
import { sweepEnded } from '../store/jobs.ts';
import { forget, lookup } from '../store/keys.ts';
import { forgetOldRates } from '../store/rates.ts';
import { activeRun, createRun, lastSnapshotEnd, newJudgements, type RunRow } from '../store/runs.ts';
import { jobToken } from '../token.ts';
import { launch } from './launch/local.ts';
import { buildSnapshot } from './snapshot.ts';

/** A tick stays well below the 30 s of CPU that a cron has. */
const TICK_MS = 20_000;
/** The first launch and three more. */
const LAUNCHES = 4;

export async function tick(env: Env): Promise<void> {
  const set = settings(env);
  await forgetOldAnswers(env.DB);
  await forgetOldRates(env.DB);
  await sweepEnded(env.DB, env.BUCKET);
  const run = (await activeRun(env.DB)) ?? (await startRun(env, set));
  if (!run) return;
  const due = run.status === 'queued' ? run : await lost(env.DB, set, run);
  if (!due || (await groundless(env.DB, due))) return;
  if (!(await buildSnapshot(env, due.snapshot, Date.now() + TICK_MS))) return;
  await start(env, set, due);
}

/** Queues a run when there is enough new feedback, or any that has waited for long. */
async function startRun(env: Env, set: Settings): Promise<RunRow | undefined> {
  const { count, since } = await newJudgements(env.DB, await lastSnapshotEnd(env.DB), set.PLUMB_MIN_FEEDBACK);
  const waited = since && Date.parse(since) < Date.now() - set.PLUMB_MAX_WAIT * 1000;
  if (count < set.PLUMB_MIN_FEEDBACK && !waited) return undefined;
  forget(env.DB);
  const { channels } = await lookup(env.DB, undefined, true);
  if (!channels.stable) return undefined;
  const reason = waited ? 'judgements have waited' : `${count} new judgements`;
  try {
    await createRun(env.DB, { stages: null, config: set.PLUMB_RUN_CONFIG, reason }, channels.stable.policy, () => []);
  } catch (error) {
    // 409: somebody was faster; 422: what serves cannot be trained
    if (!(error instanceof ApiError && [409, 422].includes(error.status))) throw error;
  }
  return activeRun(env.DB);
}

/** Ends a queued run whose base was withdrawn meanwhile: nothing is to be trained from it. */
async function groundless(d1: D1Database, run: RunRow): Promise<boolean> {
  const ended = await database(d1)
    .update(runs)
    .set({ status: 'failed', ended_at: dbNow, error: 'its base was withdrawn before it was launched' })
    .where(
      and(
        eq(runs.id, run.id),
        eq(runs.fence, run.fence),
        eq(runs.status, 'queued'),
        sql`EXISTS (SELECT 1 FROM policies WHERE policies.id = ${run.base_policy} AND policies.withdrawn_at IS NOT NULL)`,
      ),
    )
    .returning({ id: runs.id });
  return ended.length > 0;
}

/** A run whose trainer hasn't beaten since its launch, or has lost its lease, is queued again under the next fence. */
export async function lost(d1: D1Database, set: Settings, run: RunRow): Promise<RunRow | undefined> {
  const silent = sql`((lease_until IS NOT NULL AND lease_until <= ${dbNow})
    OR (lease_until IS NULL AND launched_at <= ${dbIn(-set.PLUMB_LAUNCH_PATIENCE)}))`;
  const again = run.fence < LAUNCHES;
  const change = again
    ? { status: 'queued' as const, fence: run.fence + 1, lease_until: null, launched_at: null }
    : {
        status: 'failed' as const,
        ended_at: dbNow,
        lease_until: null,
        error: `its trainer was lost ${LAUNCHES} times`,
      };
  const [row] = await database(d1)
    .update(runs)
    .set(change)
    .where(and(eq(runs.id, run.id), eq(runs.fence, run.fence), eq(runs.status, run.status), silent))
    .returning();
  return again ? row : undefined;
}

/** Launches a queued run. Where the launcher cannot be reached it stays queued, until patience ends. */
async function start(env: Env, set: Settings, run: RunRow): Promise<void> {
  const db = database(env.DB);
  const at = and(eq(runs.id, run.id), eq(runs.fence, run.fence));
  const [taken] = await db
    .update(runs)
    .set({ status: 'launched', launched_at: sql`coalesce(launched_at, ${dbNow})` })
    .where(and(at, eq(runs.status, 'queued')))
    .returning();
  if (!taken) return;
  try {
    if (!set.PLUMB_URL) throw new Error('the trainer cannot be told where to find us (PLUMB_URL)');
    await launch(set, { run: run.id, fence: run.fence, url: set.PLUMB_URL, token: await jobToken(set, run.id) });
    await db
      .update(runs)
      .set({ launched_at: dbNow, error: null })
      .where(and(at, eq(runs.status, 'launched')));
  } catch (thrown) {
    const error = `launch failed: ${thrown instanceof Error ? thrown.message : 'unknown'}`;
    const patient = sql`launched_at > ${dbIn(-set.PLUMB_LAUNCH_PATIENCE)}`;
    await db
      .update(runs)
      .set({
        error,
        status: sql`CASE WHEN ${patient} THEN 'queued' ELSE 'failed' END`,
        ended_at: sql`CASE WHEN ${patient} THEN NULL ELSE ${dbNow} END`,
      })
      .where(and(at, eq(runs.status, 'launched')));
  }
}
