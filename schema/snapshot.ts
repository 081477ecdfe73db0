// Rows of a snapshot: what a run trains on. Parts are JSONL files in R2 that only grow in number; a vote that was changed
// or undone after its part was frozen stands again in a later part, and the row with the highest seq wins.
import { z } from 'zod';
import { idSchema } from './ids.ts';
import { Message } from './message.ts';

/** A conversation belongs to one side for ever: A fits the reward model and prompts PPO, B fits the gate's judge, C measures. */
export const Side = z.enum(['A', 'B', 'C']);
export type Side = z.infer<typeof Side>;

const base = {
  seq: z.int().positive(),
  feedback: idSchema('feedback'),
  side: Side,
  /** Keyed hash of the conversation's root (system + first user message). */
  root: z.string(),
  rater: z.string(),
  rater_kind: z.enum(['asserted', 'verified', 'anonymous']),
  cohorts: z.record(z.string(), z.string()),
  created_at: z.iso.datetime(),
  prompt: z.array(Message),
  /** The samples judged, in the order of the vote's sample_ids. */
  samples: z.array(z.strictObject({ id: idSchema('sample'), text: z.string(), policy: z.string() })),
};

/** A standing vote, or the mark that it no longer stands (undone, erased, or its samples are gone). */
export const SnapshotRow = z.discriminatedUnion('kind', [
  z.strictObject({ ...base, kind: z.literal('thumb'), value: z.union([z.literal(1), z.literal(-1)]) }),
  z.strictObject({ ...base, kind: z.literal('choice'), winner: z.string() }), // a sample id, "tie" or "both_bad"
  z.strictObject({ ...base, kind: z.literal('ranking'), order: z.array(z.array(idSchema('sample'))) }), // best group first
  z.strictObject({ ...base, kind: z.literal('rating'), aspect: z.string(), value: z.int() }),
  z.strictObject({ ...base, kind: z.literal('correction'), text: z.string() }),
  z.strictObject({ ...base, kind: z.literal('outcome'), name: z.string(), value: z.union([z.boolean(), z.number()]) }),
  z.strictObject({ seq: z.int().positive(), feedback: idSchema('feedback'), kind: z.literal('gone') }),
]);
export type SnapshotRow = z.infer<typeof SnapshotRow>;
export type Vote = Exclude<SnapshotRow, { kind: 'gone' }>;

/** A distinct prompt of the samples served, judged or not: what PPO may start from. */
export const PromptRow = z.strictObject({
  seq: z.int().positive(),
  hash: z.string(),
  root: z.string(),
  side: Side,
  prompt: z.array(Message),
});
export type PromptRow = z.infer<typeof PromptRow>;
