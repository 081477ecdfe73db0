// Policies and their releases. A policy is blobs/sha256/<hex>, then policies/<id>/manifest.json, then its row: whoever
// finds a row finds all that it names.
import { and, eq, gt, isNull, sql } from 'drizzle-orm';
import { newId } from '../../schema/ids.ts';
import { AnyManifest, type Manifest } from '../../schema/manifest.ts';
import { policies, releases } from '../../schema/tables.ts';
import type { Release } from '../../schema/wire-runs.ts';
import { sha256 } from '../crypto.ts';
import { ApiError, at } from '../error.ts';
import type { Remember } from '../idempotency.ts';
import { putBlob } from './blobs.ts';
import { database, listing, now, type Paging, page, raw, seq, takeSeq } from './db.ts';
import { patiently } from './patient.ts';

const manifestKey = (id: string) => `policies/${id}/manifest.json`;
export type Channel = 'stable' | 'canary';
export type ReleaseRow = typeof releases.$inferSelect;

/** Of the sessions, where nobody says otherwise. */
const CANARY_SHARE = 0.1;
export const shareOf = (channel: Channel, share?: number) => (channel === 'stable' ? 1 : (share ?? CANARY_SHARE));

export const wireRelease = ({
  id,
  channel,
  policy,
  share,
  run,
  rollback_of,
  created_at,
}: Omit<ReleaseRow, 'slot'>): Release => ({
  object: 'release',
  id,
  channel,
  policy,
  share,
  run,
  rollback_of,
  created_at,
});

export async function putManifest(bucket: R2Bucket, manifest: AnyManifest): Promise<void> {
  // what is there stays: a policy is immutable
  const onlyIf = { etagDoesNotMatch: '*' };
  await patiently(() => bucket.put(manifestKey(manifest.id), JSON.stringify(manifest), { onlyIf }));
}

export async function readManifest(bucket: R2Bucket, id: string): Promise<AnyManifest | undefined> {
  const object = await bucket.get(manifestKey(id));
  return object ? AnyManifest.parse(await object.json()) : undefined;
}

/** Brings in a policy from outside: its files, its manifest, its row and, if wanted, its release. Safe to do again. */
export async function importPolicy(
  d1: D1Database,
  bucket: R2Bucket,
  manifest: AnyManifest,
  files: Record<string, Uint8Array>,
  release?: Channel,
): Promise<void> {
  for (const { name, sha256: expected, bytes } of 'files' in manifest ? manifest.files : []) {
    const data = files[name];
    // a copy: a Node Buffer is refused by R2, and may be a window of something larger
    const copy = data && new Uint8Array(data);
    if (!copy || copy.length !== bytes || (await sha256(copy)) !== expected)
      throw new Error(`${name} is not what the manifest says`);
    await putBlob(bucket, expected, copy); // though it may be there: so what was damaged is mended
  }
  await putManifest(bucket, manifest);
  const db = database(d1);
  await db.batch([
    takeSeq(db),
    db.insert(policies).values({ id: manifest.id, seq: seq(), manifest, created_at: now() }).onConflictDoNothing(),
    ...(release ? [releasing(d1, { channel: release, policy: manifest.id, share: shareOf(release) })] : []),
  ]);
}

/** Under which hash a file of a policy is stored. */
export function hashOf(manifest: Manifest, name: string): string {
  const file = manifest.files.find((candidate) => candidate.name === name);
  if (!file) throw new Error(`the policy has no ${name}`);
  return file.sha256;
}

/** Where what is released now will decode. */
export const slotFor = (policy: string) => sql<'a' | 'b'>`coalesce(
  (SELECT CASE WHEN policy = ${policy} THEN slot WHEN slot = 'a' THEN 'b' ELSE 'a' END
   FROM releases WHERE channel = 'stable' ORDER BY seq DESC LIMIT 1), 'a')`;

const releasing = (d1: D1Database, row: Pick<ReleaseRow, 'channel' | 'policy' | 'share'> & Partial<ReleaseRow>) =>
  database(d1)
    .insert(releases)
    .values({ id: newId('release'), created_at: now(), ...row, seq: seq(), slot: slotFor(row.policy) });

export async function listPolicies(d1: D1Database, paging: Paging) {
  const { where, orderBy, limit } = page(policies, policies, paging);
  return listing(await database(d1).select().from(policies).where(where).orderBy(orderBy).limit(limit), paging.limit);
}

export async function readPolicy(d1: D1Database, id: string) {
  return (await database(d1).select().from(policies).where(eq(policies.id, id)))[0];
}

export async function listReleases(d1: D1Database, paging: Paging, channel?: Channel) {
  const { where, orderBy, limit } = page(releases, releases, paging, channel && eq(releases.channel, channel));
  const rows = await database(d1).select().from(releases).where(where).orderBy(orderBy).limit(limit);
  return listing(rows, paging.limit);
}

/** Whether the batch has made this release: what comes after its insertion hangs on it. */
const released = (id: string) => sql`EXISTS (SELECT 1 FROM releases WHERE id = ${id})`;
const audited = (
  db: ReturnType<typeof database>,
  by: string,
  action: string,
  { id, created_at }: Pick<ReleaseRow, 'id' | 'created_at'>,
) =>
  raw(
    db,
    sql`INSERT INTO audit (at, "key", action, subject) SELECT ${created_at}, ${by}, ${action}, ${id} WHERE ${released(id)}`,
  );
const json = 'application/json';

export async function makeRelease(
  d1: D1Database,
  by: string,
  { channel, policy, share }: { channel: Channel; policy: string; share?: number | undefined },
  remember: Remember,
): Promise<Release> {
  const known = await readPolicy(d1, policy);
  if (!known) throw at(422, 'policy', `${policy} is not known`);
  if (known.withdrawn_at) throw at(422, 'policy', 'was withdrawn');
  const row = {
    id: newId('release'),
    seq: 0,
    channel,
    policy,
    share: shareOf(channel, share),
    run: null,
    fence: null,
    rollback_of: null,
    created_at: now(),
  };
  const release = wireRelease(row);
  const db = database(d1);
  const values = sql`SELECT ${row.id}, ${seq()}, ${channel}, ${policy}, ${row.share}, ${slotFor(policy)}, ${row.created_at}
                     FROM policies WHERE id = ${policy} AND withdrawn_at IS NULL`;
  const results = await db.batch([
    takeSeq(db),
    raw(db, sql`INSERT INTO releases (id, seq, channel, policy, share, slot, created_at) ${values}`),
    audited(db, by, 'release', row),
    db.select({ id: releases.id }).from(releases).where(eq(releases.id, row.id)),
    ...remember(201, json, JSON.stringify(release), released(row.id)),
  ]);
  if ((results[3] as unknown[]).length === 0) throw at(422, 'policy', 'was withdrawn');
  return release;
}

/** Releases what was stable before and was not itself withdrawn, and withdraws what is now. */
export async function rollBack(d1: D1Database, by: string, channel: Channel, remember: Remember): Promise<Release> {
  const db = database(d1);
  const [current] = await db
    .select()
    .from(releases)
    .where(and(eq(releases.channel, channel), gt(releases.seq, 0)))
    .orderBy(sql`seq DESC`)
    .limit(1);
  const [before] = current
    ? await db
        .select({ policy: releases.policy })
        .from(releases)
        .innerJoin(policies, eq(policies.id, releases.policy))
        .where(
          and(
            eq(releases.channel, 'stable'),
            sql`${releases.policy} <> ${current.policy}`,
            isNull(policies.withdrawn_at),
          ),
        )
        .orderBy(sql`${releases.seq} DESC`)
        .limit(1)
    : [];
  if (!current || !before) throw new ApiError(409, 'there is nothing left to go back to');
  const stable = sql`(SELECT policy FROM releases WHERE channel = 'stable' ORDER BY seq DESC LIMIT 1)`;
  const row: Omit<ReleaseRow, 'slot'> = {
    id: newId('release'),
    seq: 0,
    channel,
    policy: before.policy,
    share: current.share,
    run: null,
    fence: null,
    rollback_of: current.policy,
    created_at: now(),
  };
  const release = wireRelease(row);
  // another release, or another rollback, may have come between: then nothing is done
  const still = sql`(SELECT id FROM releases WHERE channel = ${channel} ORDER BY seq DESC LIMIT 1) = ${current.id}
    AND (${channel} = 'stable' OR ${stable} <> ${current.policy})
    AND EXISTS (SELECT 1 FROM policies WHERE id = ${before.policy} AND withdrawn_at IS NULL)`;
  const results = await db.batch([
    takeSeq(db),
    raw(
      db,
      sql`INSERT INTO releases (id, seq, channel, policy, share, slot, rollback_of, created_at)
          SELECT ${row.id}, ${seq()}, ${channel}, ${row.policy}, ${row.share}, ${slotFor(row.policy)}, ${current.policy}, ${row.created_at} WHERE ${still}`,
    ),
    raw(
      db,
      sql`UPDATE policies SET withdrawn_at = ${row.created_at} WHERE id = ${current.policy}
          AND EXISTS (SELECT 1 FROM releases WHERE id = ${row.id})`,
    ),
    audited(db, by, 'rollback', row),
    db.select({ id: releases.id }).from(releases).where(eq(releases.id, row.id)),
    ...remember(201, json, JSON.stringify(release), released(row.id)),
  ]);
  if ((results[4] as unknown[]).length === 0)
    throw new ApiError(409, 'another release came between, or what the canary serves is stable: roll stable back');
  return release;
}
