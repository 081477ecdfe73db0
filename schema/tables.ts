// The tables (D1). Times are RFC 3339 text in UTC, so that they compare as text; objects are JSON text.
// `seq` is one sequence for the whole database, taken inside the batch that writes: its order is the order of commits,
// which ULIDs made by several isolates are not. Lists, snapshots and exports go by it.
import { sql } from 'drizzle-orm';
import { index, integer, primaryKey, real, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core';
import type { AnyManifest } from './manifest.ts';
import type { Message } from './message.ts';

export const sequence = sqliteTable('sequence', { name: text().primaryKey(), value: integer().notNull() });

export const policies = sqliteTable(
  'policies',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    manifest: text({ mode: 'json' }).$type<AnyManifest>().notNull(),
    created_at: text().notNull(),
    /** Rolled back: never again served by channel, used as base or promoted. */
    withdrawn_at: text(),
  },
  (t) => [uniqueIndex('policies_seq').on(t.seq)],
);

/** What was asked, once, by the hash of its text. */
export const prompts = sqliteTable(
  'prompts',
  {
    hash: text().primaryKey(),
    seq: integer().notNull(),
    body: text({ mode: 'json' }).$type<{ messages: Message[] } | { prompt: string }>().notNull(),
    /** Keyed hash of the conversation's root, and the side that it decides. */
    root: text().notNull(),
    side: text({ enum: ['A', 'B', 'C'] }).notNull(),
  },
  (t) => [index('prompts_seq').on(t.seq)],
);

export const samples = sqliteTable(
  'samples',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    prompt: text().notNull(),
    /** The policy that served, or the name of the model that answered elsewhere. */
    policy: text().notNull(),
    text: text().notNull(),
    finish_reason: text({ enum: ['stop', 'length', 'abort', 'external'] }).notNull(),
    completion_tokens: integer().notNull(),
    /** The rater who is the session, and the same again where `user` named a person. */
    session: text().notNull(),
    user: text(),
    params: text({ mode: 'json' }).$type<Record<string, unknown>>().notNull(),
    metadata: text({ mode: 'json' }).$type<Record<string, string>>().notNull(),
    created_at: text().notNull(),
  },
  (t) => [uniqueIndex('samples_seq').on(t.seq), index('samples_policy').on(t.policy, t.seq)],
);

/** A vote as it stands. No column of its unique index can be NULL: NULLs are distinct there. */
export const feedback = sqliteTable(
  'feedback',
  {
    id: text().primaryKey(),
    /** Of the last write; `created_seq` is of the first, by which lists go. */
    seq: integer().notNull(),
    created_seq: integer().notNull(),
    rater: text().notNull(),
    rater_kind: text({ enum: ['asserted', 'verified', 'anonymous'] }).notNull(),
    kind: text().notNull(),
    facet: text().notNull(),
    target: text().notNull(),
    body: text({ mode: 'json' }).$type<Record<string, unknown>>().notNull(),
    /** The body with equals in one order: two that say the same are equal here. */
    said: text().notNull().default(''),
    policy: text().notNull(),
    /** Session of the token it came with: whoever holds that session may change it. '' without a token. */
    session: text().notNull(),
    revision: integer().notNull(),
    created_at: text().notNull(),
    updated_at: text().notNull(),
    undone_at: text(),
  },
  (t) => [
    uniqueIndex('one_vote').on(t.rater, t.kind, t.facet, t.target),
    uniqueIndex('feedback_seq').on(t.seq),
    uniqueIndex('feedback_created').on(t.created_seq),
    index('feedback_kind').on(t.kind, t.created_seq),
    index('feedback_policy').on(t.policy, t.created_seq),
    index('feedback_rater').on(t.rater, t.created_seq),
  ],
);

/** Every write of a vote, with the Idempotency-Key that it came with. A `repeat` changed nothing but used up its key. */
export const revisions = sqliteTable(
  'revisions',
  {
    seq: integer().primaryKey(),
    feedback: text().notNull(),
    revision: integer().notNull(),
    op: text({ enum: ['create', 'change', 'undo', 'repeat'] }).notNull(),
    body: text({ mode: 'json' }).$type<Record<string, unknown>>().notNull(),
    at: text().notNull(),
    idempotency: text(),
    request: text(),
  },
  (t) => [
    index('revisions_feedback').on(t.feedback, t.seq),
    index('revisions_idempotency').on(t.idempotency).where(sql`idempotency IS NOT NULL`),
  ],
);

export const feedbackSamples = sqliteTable(
  'feedback_samples',
  { sample: text().notNull(), feedback: text().notNull() },
  (t) => [primaryKey({ columns: [t.sample, t.feedback] })],
);

/** `id` is made from HMAC(pepper, the id by which the host knows the person), which is kept nowhere. */
export const raters = sqliteTable('raters', {
  id: text().primaryKey(),
  kind: text({ enum: ['asserted', 'verified', 'anonymous'] }).notNull(),
  cohorts: text({ mode: 'json' }).$type<Record<string, string>>().notNull(),
  created_at: text().notNull(),
});

export const tasks = sqliteTable(
  'tasks',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    kind: text({ enum: ['choice', 'ranking', 'rating', 'correction'] }).notNull(),
    prompt: text().notNull(),
    samples: text({ mode: 'json' }).$type<string[]>().notNull(),
    aspects: text({ mode: 'json' }).$type<string[]>().notNull(),
    raters: integer().notNull(),
    priority: real().notNull(),
    created_at: text().notNull(),
    done_at: text(),
  },
  (t) => [uniqueIndex('tasks_seq').on(t.seq)],
);

export const ACTIVE = ['queued', 'launched', 'running', 'evaluating', 'publishing'] as const;
export const RUN_STATUS = [...ACTIVE, 'published', 'rejected', 'failed', 'cancelled'] as const;

export const runs = sqliteTable(
  'runs',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    status: text({ enum: RUN_STATUS }).notNull(),
    stages: text({ mode: 'json' }).$type<string[]>(),
    config: text({ mode: 'json' }).$type<Record<string, unknown>>().notNull(),
    reason: text().notNull(),
    snapshot: text().notNull(),
    base_policy: text().notNull(),
    /** Each launch has its number; what an earlier one still sends is refused. */
    fence: integer().notNull(),
    launched_at: text(),
    lease_until: text(),
    stage: text(),
    step: integer(),
    steps: integer(),
    checkpoint: text({ mode: 'json' }).$type<unknown>(),
    verdict: text({ enum: ['promote', 'canary', 'reject'] }),
    policy: text(),
    report: text({ mode: 'json' }).$type<Record<string, unknown>>(),
    error: text(),
    created_at: text().notNull(),
    started_at: text(),
    ended_at: text(),
  },
  (t) => [
    uniqueIndex('runs_seq').on(t.seq),
    index('runs_status').on(t.status, t.seq),
    uniqueIndex('one_active_run')
      .on(sql`(status IS NOT NULL)`)
      .where(sql`status IN ('queued', 'launched', 'running', 'evaluating', 'publishing')`),
  ],
);

/** A metric sent again for its step takes a new id, so that whoever follows by id sees it. */
export const runMetrics = sqliteTable(
  'run_metrics',
  {
    id: integer().primaryKey({ autoIncrement: true }),
    run: text().notNull(),
    name: text().notNull(),
    step: integer().notNull(),
    value: real().notNull(),
    at: text().notNull(),
  },
  (t) => [uniqueIndex('one_metric').on(t.run, t.name, t.step), index('run_metrics_run').on(t.run, t.id)],
);

export interface Part {
  sha256: string;
  bytes: number;
  rows: number;
}

/**
 * The state of votes and prompts at `to_seq`. It begins with the parts of the one before and goes on from where that
 * one came to: parts only grow in number, and of a vote's rows the one with the highest seq counts.
 */
export const snapshots = sqliteTable(
  'snapshots',
  {
    id: text().primaryKey(),
    to_seq: integer().notNull(),
    /** How far votes and prompts are written: `to_seq` when it is done. */
    votes_cursor: integer().notNull(),
    prompts_cursor: integer().notNull(),
    parts: text({ mode: 'json' }).$type<Part[]>().notNull(),
    prompts: text({ mode: 'json' }).$type<Part[]>().notNull(),
    created_at: text().notNull(),
  },
  (t) => [index('snapshots_to').on(t.to_seq)],
);

/** The latest release of a channel is what it serves. */
export const releases = sqliteTable(
  'releases',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    channel: text({ enum: ['stable', 'canary'] }).notNull(),
    policy: text().notNull(),
    share: real().notNull(),
    /** Where a large policy decodes: where stable does not, unless it is what stable serves. */
    slot: text({ enum: ['a', 'b'] })
      .notNull()
      .default('a'),
    /** The run that released it and its fence, or null: a person did. */
    run: text(),
    fence: integer(),
    /** The policy that this release withdrew. */
    rollback_of: text(),
    created_at: text().notNull(),
  },
  (t) => [
    uniqueIndex('releases_seq').on(t.seq),
    index('releases_channel').on(t.channel, t.seq),
    index('releases_run').on(t.run),
  ],
);

export const keys = sqliteTable(
  'keys',
  {
    id: text().primaryKey(),
    seq: integer().notNull(),
    hash: text().notNull(),
    kind: text({ enum: ['sk', 'pk', 'ek'] }).notNull(),
    name: text().notNull(),
    scopes: text({ mode: 'json' }).$type<string[]>().notNull(),
    origins: text({ mode: 'json' }).$type<string[]>().notNull(),
    created_at: text().notNull(),
    revoked_at: text(),
  },
  (t) => [uniqueIndex('keys_hash').on(t.hash), index('keys_seq').on(t.seq)],
);

/** Answers kept for their Idempotency-Key; `status` NULL means that the first request is under way. */
export const requests = sqliteTable(
  'requests',
  {
    key: text().primaryKey(),
    body: text().notNull(),
    status: integer(),
    type: text(),
    response: text(),
    created_at: text().notNull(),
  },
  (t) => [index('requests_created').on(t.created_at)],
);

/** How many requests a caller made in a minute (since 1970), where a limit is set. */
export const rates = sqliteTable(
  'rates',
  { minute: integer().notNull(), caller: text().notNull(), count: integer().notNull() },
  (t) => [primaryKey({ columns: [t.minute, t.caller] })],
);

/** Who made and ended keys, and who released and rolled back what. */
export const audit = sqliteTable('audit', {
  id: integer().primaryKey({ autoIncrement: true }),
  at: text().notNull(),
  key: text().notNull(),
  action: text().notNull(),
  subject: text().notNull(),
});
