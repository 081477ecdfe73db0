// A run as its trainer sees it. Each launch has its fence; what an earlier one still sends changes nothing. Leases go by
// the database's clock.
import { and, desc, eq, gt, inArray, sql } from 'drizzle-orm';
import { newId } from '../../schema/ids.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { ACTIVE, releases, runs, snapshots } from '../../schema/tables.ts';
import { Checkpoint, type Heartbeat, NOT_RELEASED, type Publish, type Release } from '../../schema/wire-runs.ts';
import { ApiError } from '../error.ts';
import { blobKey } from './blobs.ts';
import { database, dbIn, dbNow, now, raw, seq, takeSeq } from './db.ts';
import { type ReleaseRow, readManifest, shareOf, slotFor, wireRelease } from './policies.ts';
import { isActive, type RunRow, readRun } from './runs.ts';

export const gone = () =>
  new ApiError(410, 'the run has ended, or is another trainer’s now: stop, and write nothing more');
const mine = (run: string, fence: number) =>
  and(eq(runs.id, run), eq(runs.fence, fence), inArray(runs.status, [...ACTIVE]));

const STATUS: Record<string, RunRow['status']> = { evaluate: 'evaluating', publish: 'publishing' };

export async function beat(
  d1: D1Database,
  run: string,
  { fence, stage, step, steps, metrics }: Heartbeat,
  lease: number,
) {
  const db = database(d1);
  const status = STATUS[stage] ?? 'running';
  const [, , rows] = await db.batch([
    db
      .update(runs)
      .set({
        status,
        stage,
        step,
        steps,
        lease_until: dbIn(lease),
        started_at: sql`coalesce(started_at, ${dbNow})`,
        error: null,
      })
      .where(mine(run, fence)),
    raw(
      db,
      sql`INSERT OR REPLACE INTO run_metrics (run, name, step, value, at)
          SELECT ${run}, m.value ->> 'name', m.value ->> 'step', m.value ->> 'value', ${dbNow} FROM json_each(${JSON.stringify(metrics)}) m
          WHERE EXISTS (SELECT 1 FROM runs WHERE id = ${run} AND fence = ${fence} AND lease_until > ${dbNow})`,
    ),
    db
      .select({ status: runs.status, fence: runs.fence, lease_until: runs.lease_until })
      .from(runs)
      .where(eq(runs.id, run)),
  ]);
  const row = rows[0];
  if (row?.fence === fence && row.status === 'cancelled') return { lease_until: now(), cancel: true };
  if (row?.fence !== fence || !row.lease_until || row.status !== status) throw gone();
  return { lease_until: row.lease_until, cancel: false };
}

export async function saveCheckpoint(d1: D1Database, run: string, checkpoint: Checkpoint): Promise<void> {
  const rows = await database(d1)
    .update(runs)
    .set({ checkpoint })
    .where(mine(run, checkpoint.fence))
    .returning({ id: runs.id });
  if (rows.length === 0) throw gone();
}

/** Deletes a checkpoint's files, of those that the run itself brought, but what is still wanted. */
export async function sweep(
  bucket: R2Bucket,
  run: string,
  checkpoint: unknown,
  wanted: { sha256: string }[],
): Promise<void> {
  const { data } = Checkpoint.safeParse(checkpoint);
  for (const { sha256 } of data?.files ?? []) {
    if (wanted.some((file) => file.sha256 === sha256)) continue;
    const head = await bucket.head(blobKey(sha256));
    if (head?.customMetadata?.run === run) await bucket.delete(blobKey(sha256));
  }
}

/** Sweeps up after the last runs that have ended, however they did: what their policies are made of stays. */
export async function sweepEnded(d1: D1Database, bucket: R2Bucket): Promise<void> {
  const db = database(d1);
  const latest = await db.select().from(runs).where(gt(runs.seq, 0)).orderBy(desc(runs.seq)).limit(3);
  for (const run of latest) {
    if (!run.checkpoint || isActive(run)) continue;
    const manifest = run.policy ? await readManifest(bucket, run.policy) : undefined;
    await sweep(bucket, run.id, run.checkpoint, manifest && 'files' in manifest ? manifest.files : []);
    await db.update(runs).set({ checkpoint: sql`NULL` }).where(eq(runs.id, run.id));
  }
}

export async function failRun(d1: D1Database, run: string, fence: number, error: string): Promise<void> {
  const rows = await database(d1)
    .update(runs)
    .set({ status: 'failed', error, ended_at: dbNow, lease_until: null })
    .where(mine(run, fence))
    .returning({ id: runs.id });
  if (rows.length === 0) throw gone();
}

/** Ends a run with its verdict: policy, release and the run's end, all or nothing, and only under its fence and lease. */
export async function endRun(
  d1: D1Database,
  run: RunRow,
  { fence, manifest, report, verdict }: Publish,
): Promise<Release | null> {
  const db = database(d1);
  const held = sql`EXISTS (SELECT 1 FROM runs WHERE id = ${run.id} AND fence = ${fence} AND lease_until > ${dbNow}
                           AND status IN (SELECT value FROM json_each(${JSON.stringify(ACTIVE)})))`;
  const channel = verdict === 'canary' ? 'canary' : 'stable';
  const release = { id: newId('release'), share: shareOf(channel) };
  const stillStable = sql`(SELECT policy FROM releases WHERE channel = 'stable' ORDER BY seq DESC LIMIT 1) = ${run.base_policy}
    AND EXISTS (SELECT 1 FROM policies WHERE id = ${run.base_policy} AND withdrawn_at IS NULL)`;
  const [, , , ended, released] = await db.batch([
    takeSeq(db),
    raw(
      db,
      sql`INSERT INTO policies (id, seq, manifest, created_at)
          SELECT ${manifest?.id ?? ''}, ${seq()}, ${JSON.stringify(manifest ?? {})}, ${dbNow} WHERE ${manifest ? 1 : 0} AND ${held}`,
    ),
    raw(
      db,
      sql`INSERT INTO releases (id, seq, channel, policy, share, slot, run, fence, created_at)
          SELECT ${release.id}, ${seq()}, ${channel}, ${manifest?.id ?? ''}, ${release.share}, ${slotFor(manifest?.id ?? '')}, ${run.id}, ${fence}, ${dbNow}
          WHERE ${verdict === 'reject' ? 0 : 1} AND ${held} AND ${stillStable}`,
    ),
    raw<{ id: string }>(
      db,
      sql`UPDATE runs SET status = ${verdict === 'reject' ? 'rejected' : 'published'}, verdict = ${verdict}, policy = ${manifest?.id ?? null},
            report = ${JSON.stringify(report)}, ended_at = ${dbNow}, lease_until = NULL,
            error = CASE WHEN ${verdict === 'reject' ? 1 : 0} OR EXISTS (SELECT 1 FROM releases WHERE id = ${release.id}) THEN NULL
                    ELSE ${NOT_RELEASED} END
          WHERE id = ${run.id} AND ${held} RETURNING id`,
    ),
    db.select().from(releases).where(eq(releases.id, release.id)),
  ]);
  if (ended.length === 0)
    throw new ApiError(409, 'stale fence: the lease is lost, or the run is another trainer’s now');
  return released[0] ? wireRelease(released[0]) : null;
}

/** The answer to a publication that was made already: its own, asked again because the answer was lost. */
export async function endedBefore(
  d1: D1Database,
  run: RunRow,
  { fence, manifest, verdict }: Publish,
): Promise<{ release: Release | null } | undefined> {
  if (run.fence !== fence || run.verdict !== verdict || run.policy !== (manifest?.id ?? null)) return undefined;
  const [row] = await database(d1)
    .select()
    .from(releases)
    .where(and(eq(releases.run, run.id), gt(releases.seq, 0)));
  return { release: row ? wireRelease(row satisfies ReleaseRow) : null };
}

export async function readSnapshot(d1: D1Database, id: string) {
  return (await database(d1).select().from(snapshots).where(eq(snapshots.id, id)))[0];
}

/** The run, if it is active. */
export async function activeJob(d1: D1Database, id: string): Promise<RunRow> {
  const found = await readRun(d1, id);
  if (!found || !isActive(found.row)) throw gone();
  return found.row;
}

/** What the manifest of a run's policy must say. */
export function checkManifest(run: RunRow, base: Manifest, manifest: Manifest): string | undefined {
  if (manifest.run !== run.id) return 'names another run';
  if (manifest.parent !== run.base_policy) return 'names another parent';
  if (manifest.snapshot !== run.snapshot) return 'names another snapshot';
  if (manifest.root !== base.root) return 'names another root';
  for (const name of ['edge.bin', 'tokenizer.json', 'model.safetensors'])
    if (!manifest.files.some((file) => file.name === name)) return `lists no ${name}`;
  return undefined;
}
