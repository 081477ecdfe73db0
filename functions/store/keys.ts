// Keys: kept as SHA-256, shown once. What a request needs of the database before it does anything, its key and what the
// channels serve, is read in one round trip and held for a moment: a key for ten seconds, a release for one.
import { eq, isNull, sql } from 'drizzle-orm';
import { newId } from '../../schema/ids.ts';
import { audit, keys, policies, releases } from '../../schema/tables.ts';
import { SCOPES } from '../../schema/wire.ts';
import { base64url, sha256 } from '../crypto.ts';
import { database, listing, now, type Paging, page, raw, type Statement, seq, takeSeq } from './db.ts';

export type KeyRow = Omit<typeof keys.$inferSelect, 'seq'>;
type KeyKind = KeyRow['kind'];

/** What a kind of key may do where nothing narrower is asked; the routes add what a kind may never do. */
const FULL: Record<KeyKind, string[]> = { sk: [...SCOPES], pk: ['completions', 'feedback'], ek: ['feedback'] };

/** A new key in plain text and its row, which `insertKey` or any other client of the database stores. */
export async function makeKey(
  kind: KeyKind,
  scopes?: string[],
  origins: string[] = [],
  name = '',
): Promise<{ plain: string; row: KeyRow }> {
  const plain = `${kind}_${base64url(crypto.getRandomValues(new Uint8Array(24)))}`;
  const row = {
    id: newId('key'),
    hash: await sha256(plain),
    kind,
    name,
    scopes: scopes ?? FULL[kind],
    origins,
    created_at: now(),
    revoked_at: null,
  };
  return { plain, row };
}

const audited = (d1: D1Database, by: string, action: string, subject: string) =>
  database(d1).insert(audit).values({ at: now(), key: by, action, subject });

export async function insertKey(d1: D1Database, row: KeyRow, by = 'setup'): Promise<void> {
  const db = database(d1);
  await db.batch([takeSeq(db), db.insert(keys).values({ ...row, seq: seq() }), audited(d1, by, 'key.create', row.id)]);
}

/** False where there is no such key; a second time changes nothing. */
export async function revokeKey(d1: D1Database, id: string, by: string): Promise<boolean> {
  const db = database(d1);
  const time = now();
  const [, , rows] = await db.batch([
    db
      .update(keys)
      .set({ revoked_at: time })
      .where(sql`${keys.id} = ${id} AND ${isNull(keys.revoked_at)}`),
    raw(
      db,
      sql`INSERT INTO audit (at, "key", action, subject) SELECT ${time}, ${by}, 'key.revoke', ${id}
          WHERE EXISTS (SELECT 1 FROM keys WHERE id = ${id} AND revoked_at = ${time})`,
    ),
    db.select({ id: keys.id }).from(keys).where(eq(keys.id, id)),
  ]);
  return rows.length > 0;
}

/** Whether a plain key is known and not revoked. */
export async function isValid(d1: D1Database, plain: string): Promise<boolean> {
  const rows = await database(d1)
    .select({ revoked: keys.revoked_at })
    .from(keys)
    .where(eq(keys.hash, await sha256(plain)));
  return rows.length > 0 && !rows[0]!.revoked;
}

export async function listKeys(d1: D1Database, paging: Paging) {
  const { where, orderBy, limit } = page(keys, keys, paging);
  return listing(await database(d1).select().from(keys).where(where).orderBy(orderBy).limit(limit), paging.limit);
}

// The moment's memory of this isolate

interface Serving {
  policy: string;
  share: number;
}
export type Slot = 'a' | 'b';
/** What the channels serve, and in which slot stable does where it is a large policy. */
export type Channels = { stable?: Serving; canary?: Serving; slot?: Slot };

const KEY_TTL = 10_000;
const CHANNELS_TTL = 1000;
interface Held {
  keys: Map<string, { row: KeyRow; at: number }>;
  channels?: { value: Channels; at: number };
}
const memory = new WeakMap<D1Database, Held>();
const heldFor = (d1: D1Database): Held => {
  const held = memory.get(d1) ?? { keys: new Map() };
  memory.set(d1, held);
  return held;
};

/** What each channel serves: its latest release, unless that policy was withdrawn. */
const channelQuery = (d1: D1Database, channel: 'stable' | 'canary') =>
  database(d1)
    .select({
      policy: releases.policy,
      share: releases.share,
      slot: releases.slot,
      withdrawn: policies.withdrawn_at,
    })
    .from(releases)
    .innerJoin(policies, eq(policies.id, releases.policy))
    .where(eq(releases.channel, channel))
    .orderBy(sql`${releases.seq} DESC`)
    .limit(1);

/**
 * The key of this hash and the channels, read anew (in one batch) where what is held is too old.
 * @param also statements for the same round trip; their results come back in `rest`
 */
export async function lookup(
  d1: D1Database,
  hash: string | undefined,
  wantChannels: boolean,
  also: Statement[] = [],
): Promise<{ key?: KeyRow; channels: Channels; rest: unknown[][] }> {
  const held = heldFor(d1);
  const time = Date.now();
  const knownKey = hash ? held.keys.get(hash) : undefined;
  const needKey = hash !== undefined && !(knownKey && time - knownKey.at < KEY_TTL);
  const needChannels = wantChannels && !(held.channels && time - held.channels.at < CHANNELS_TTL);

  const db = database(d1);
  const keyRead = db
    .select()
    .from(keys)
    .where(eq(keys.hash, hash ?? ''));
  const statements: Statement[] = [
    ...(needKey ? [keyRead] : []),
    ...(needChannels ? [channelQuery(d1, 'stable'), channelQuery(d1, 'canary')] : []),
    ...also,
  ];
  let rest: unknown[][] = [];
  let row = needKey ? undefined : knownKey?.row;
  if (statements.length > 0) {
    const results = (await db.batch(statements as [Statement, ...Statement[]])) as unknown[][];
    if (needKey) {
      row = (results.shift() as KeyRow[])[0];
      if (held.keys.size >= 1000) held.keys.delete(held.keys.keys().next().value!);
      if (row) held.keys.set(hash, { row, at: time });
      else held.keys.delete(hash);
    }
    if (needChannels) {
      const value: Channels = {};
      for (const channel of ['stable', 'canary'] as const) {
        const row = (results.shift() as { policy: string; share: number; slot: Slot; withdrawn: string | null }[])[0];
        if (channel === 'stable' && row) value.slot = row.slot;
        if (row && !row.withdrawn) value[channel] = { policy: row.policy, share: row.share };
      }
      held.channels = { value, at: time };
    }
    rest = results;
  }
  return {
    ...(row && !row.revoked_at ? { key: row } : {}),
    channels: held.channels?.value ?? {},
    rest,
  };
}

/** A release, a rollback or a revocation made here is seen here at once. */
export const forget = (d1: D1Database) => memory.delete(d1);
