// The snapshot builder: from the revisions up to a fixed seq, part by part, each a JSONL blob in R2. After every part the
// cursor moves, so that a build goes on where another tick of the cron left it.
import { and, eq, sql } from 'drizzle-orm';
import type { PromptRow, SnapshotRow } from '../../schema/snapshot.ts';
import { type Part, prompts, snapshots } from '../../schema/tables.ts';
import { JUDGEMENTS } from '../../schema/wire-feedback.ts';
import { sha256 } from '../crypto.ts';
import type { Env } from '../env.ts';
import { putBlob } from '../store/blobs.ts';
import { type Database, database, raw } from '../store/db.ts';
import { type Asked, asMessages } from '../store/samples.ts';

type Snapshot = typeof snapshots.$inferSelect;

/** A part is closed at the first of these; a page is what one query reads. */
const PART_ROWS = 2000;
const PART_BYTES = 4 * 2 ** 20;
const PAGE = 100;

interface Revision {
  seq: number;
  op: string;
  body: string;
  id: string;
  kind: string;
  rater: string;
  rater_kind: 'asserted' | 'verified' | 'anonymous';
  cohorts: string;
  created_at: string;
}
interface Judged {
  id: string;
  text: string;
  policy: string;
  finish_reason: string;
  prompt: string;
  root: string;
  side: 'A' | 'B' | 'C';
}

/** The votes written in (after, to], each as it was last at `to`. */
const revisionsIn = (db: Database, after: number, to: number) =>
  raw<Revision>(
    db,
    sql`SELECT r.seq, r.op, r.body, f.id, f.kind, f.rater, f.rater_kind, f.created_at, coalesce(t.cohorts, '{}') AS cohorts
        FROM revisions r JOIN feedback f ON f.id = r.feedback LEFT JOIN raters t ON t.id = f.rater
        WHERE r.seq > ${after} AND r.seq <= ${to} AND r.op <> 'repeat' AND f.kind IN (SELECT value FROM json_each(${JSON.stringify(JUDGEMENTS)}))
          AND NOT EXISTS (SELECT 1 FROM revisions n WHERE n.feedback = r.feedback AND n.seq > r.seq AND n.seq <= ${to} AND n.op <> 'repeat')
        ORDER BY r.seq LIMIT ${PAGE}`,
  );

const samplesOf = (db: Database, ids: string[]) =>
  raw<Judged>(
    db,
    sql`SELECT s.id, s.text, s.policy, s.finish_reason, p.body AS prompt, p.root, p.side
        FROM samples s JOIN prompts p ON p.hash = s.prompt WHERE s.id IN (SELECT value FROM json_each(${JSON.stringify(ids)}))`,
  );

type Body = Record<string, unknown> & { sample_id?: string; sample_ids?: string[] };
const idsOf = (body: Body): string[] => body.sample_ids ?? [body.sample_id!];

/** Its own fields of a kind of vote. */
const FIELDS: Record<string, string[]> = {
  thumb: ['value'],
  choice: ['winner'],
  ranking: ['order'],
  rating: ['aspect', 'value'],
  correction: ['text'],
  outcome: ['name', 'value'],
};

/** A vote on an answer that was broken off is left out, as one whose samples are gone is: nobody judged the whole. */
function snapshotRow(revision: Revision, body: Body, samples: Map<string, Judged>): SnapshotRow {
  const judged = idsOf(body).map((id) => samples.get(id));
  const whole = judged.every((sample) => sample && sample.finish_reason !== 'abort');
  if (revision.op === 'undo' || !whole) return { seq: revision.seq, feedback: revision.id, kind: 'gone' };
  const { prompt, root, side } = judged[0]!;
  return {
    seq: revision.seq,
    feedback: revision.id,
    kind: revision.kind,
    ...Object.fromEntries(FIELDS[revision.kind]!.map((name) => [name, body[name]])),
    side,
    root,
    rater: revision.rater,
    rater_kind: revision.rater_kind,
    cohorts: JSON.parse(revision.cohorts),
    created_at: revision.created_at,
    prompt: asMessages(JSON.parse(prompt) as Asked),
    samples: judged.map((sample) => ({ id: sample!.id, text: sample!.text, policy: sample!.policy })),
  } as SnapshotRow;
}

interface Page {
  rows: (SnapshotRow | PromptRow)[];
  cursor: number;
}

async function votePage(d1: D1Database, after: number, to: number): Promise<Page> {
  const db = database(d1);
  const [revisions] = await db.batch([revisionsIn(db, after, to)]);
  const bodies = revisions.map(({ body }) => JSON.parse(body) as Body);
  const [samples] = await db.batch([samplesOf(db, bodies.flatMap(idsOf))]);
  const byId = new Map(samples.map((sample) => [sample.id, sample]));
  return {
    rows: revisions.map((revision, i) => snapshotRow(revision, bodies[i]!, byId)),
    cursor: revisions.length < PAGE ? to : revisions.at(-1)!.seq,
  };
}

async function promptPage(d1: D1Database, after: number, to: number): Promise<Page> {
  const found = await database(d1)
    .select()
    .from(prompts)
    .where(and(sql`seq > ${after}`, sql`seq <= ${to}`))
    .orderBy(prompts.seq)
    .limit(PAGE);
  return {
    rows: found.map(({ seq, hash, root, side, body }) => ({ seq, hash, root, side, prompt: asMessages(body) })),
    cursor: found.length < PAGE ? to : found.at(-1)!.seq,
  };
}

/** One part: pages until it is full or all is read. */
async function writePart(bucket: R2Bucket, next: (after: number) => Promise<Page>, from: number, to: number) {
  let text = '';
  let rows = 0;
  let cursor = from;
  while (cursor < to && rows < PART_ROWS && text.length < PART_BYTES) {
    const page = await next(cursor);
    for (const row of page.rows) text += `${JSON.stringify(row)}\n`;
    rows += page.rows.length;
    cursor = page.cursor;
  }
  if (rows === 0) return { cursor };
  const bytes = new TextEncoder().encode(text);
  const part: Part = { sha256: await sha256(bytes), bytes: bytes.length, rows };
  await putBlob(bucket, part.sha256, bytes);
  return { cursor, part };
}

/** Builds until the snapshot is done or time is up; true when it is done. */
export async function buildSnapshot(env: Env, id: string, deadline: number): Promise<boolean> {
  const db = database(env.DB);
  for (;;) {
    const [snapshot] = (await db.select().from(snapshots).where(eq(snapshots.id, id))) as [Snapshot];
    const { to_seq: to, votes_cursor, prompts_cursor } = snapshot;
    if (votes_cursor >= to && prompts_cursor >= to) return true;
    if (Date.now() > deadline) return false;

    // another tick may be at it too: only one moves the cursor
    if (votes_cursor < to) {
      const { cursor, part } = await writePart(env.BUCKET, (after) => votePage(env.DB, after, to), votes_cursor, to);
      await db
        .update(snapshots)
        .set({ votes_cursor: cursor, parts: part ? [...snapshot.parts, part] : snapshot.parts })
        .where(and(eq(snapshots.id, id), eq(snapshots.votes_cursor, votes_cursor)));
    } else {
      const { cursor, part } = await writePart(
        env.BUCKET,
        (after) => promptPage(env.DB, after, to),
        prompts_cursor,
        to,
      );
      await db
        .update(snapshots)
        .set({ prompts_cursor: cursor, prompts: part ? [...snapshot.prompts, part] : snapshot.prompts })
        .where(and(eq(snapshots.id, id), eq(snapshots.prompts_cursor, prompts_cursor)));
    }
  }
}
