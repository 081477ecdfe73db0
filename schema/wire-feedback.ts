// Feedback: one act of judging. What the schemas let through is well formed; `impossible` says what cannot be meant.
import { z } from 'zod';
import { idSchema } from './ids.ts';
import { Cohorts, listQuery, RaterId, Text16K, Time } from './wire.ts';

const SampleId = idSchema('sample');
const Said = Text16K.refine((text) => text.trim() !== '', 'is empty');
const Name = z.string().min(1).max(64);

const shared = {
  /** Needed with a public key; a list where the samples were drawn apart. */
  token: z.union([z.string(), z.array(z.string()).min(1).max(8)]).optional(),
  rater: z.strictObject({ id: RaterId, cohorts: Cohorts.optional() }).optional(),
  comment: Text16K.optional(),
  task_id: idSchema('task').optional(),
};
const several = z.array(SampleId).min(2).max(8);

export const NewFeedback = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('thumb'),
    sample_id: SampleId,
    value: z.literal([1, -1]),
    ...shared,
  }),
  z.strictObject({
    kind: z.literal('choice'),
    sample_ids: several,
    winner: z.union([z.literal('tie'), z.literal('both_bad'), SampleId]),
    ...shared,
  }),
  z.strictObject({
    kind: z.literal('ranking'),
    sample_ids: several,
    order: z.array(z.array(SampleId).min(1).max(8)).min(1).max(8),
    ...shared,
  }),
  z.strictObject({
    kind: z.literal('rating'),
    sample_id: SampleId,
    aspect: Name,
    value: z.int().min(1).max(5),
    ...shared,
  }),
  z.strictObject({ kind: z.literal('correction'), sample_id: SampleId, text: Said, ...shared }),
  z.strictObject({ kind: z.literal('comment'), sample_id: SampleId, text: Said, ...shared }),
  z.strictObject({
    kind: z.literal('implicit'),
    sample_id: SampleId,
    signal: z.enum(['copy', 'regenerate', 'abandon', 'edit']),
    value: z.union([z.number(), z.boolean(), z.string().max(256)]).optional(),
    ...shared,
  }),
  z.strictObject({
    kind: z.literal('outcome'),
    sample_id: SampleId,
    name: Name,
    value: z.union([z.boolean(), z.number()]),
    ...shared,
  }),
]);
export type NewFeedback = z.infer<typeof NewFeedback>;

const FEEDBACK_KINDS = [
  'thumb',
  'choice',
  'ranking',
  'rating',
  'correction',
  'comment',
  'implicit',
  'outcome',
] as const;
/** The kinds that say which answer is better, or how good one is: what a snapshot holds. */
export const JUDGEMENTS = ['thumb', 'choice', 'ranking', 'rating', 'correction', 'outcome'] as const;
/** Those that people give: enough of them start a run. Outcomes are learnt from too, but come by themselves, and in any number. */
export const LEARNT_FROM = ['thumb', 'choice', 'ranking', 'rating', 'correction'] as const;

export const judged = (body: NewFeedback): string[] => ('sample_ids' in body ? body.sample_ids : [body.sample_id]);

/** What distinguishes several votes of one kind on one target. */
export const facetOf = (body: NewFeedback): string =>
  body.kind === 'rating'
    ? body.aspect
    : body.kind === 'implicit'
      ? body.signal
      : body.kind === 'outcome'
        ? body.name
        : '';

export function impossible(body: NewFeedback): { path: string; message: string } | undefined {
  if (!('sample_ids' in body)) return undefined;
  if (new Set(body.sample_ids).size < body.sample_ids.length)
    return { path: 'sample_ids', message: 'names a sample twice' };
  if (body.kind === 'choice') {
    const known = ['tie', 'both_bad', ...body.sample_ids].includes(body.winner);
    return known ? undefined : { path: 'winner', message: 'is not among the samples' };
  }
  const ranked = body.order.flat();
  if (body.order.length < 2) return { path: 'order', message: 'needs two groups at least' };
  if (new Set(ranked).size < ranked.length) return { path: 'order', message: 'names a sample twice' };
  if (!ranked.every((id) => body.sample_ids.includes(id)))
    return { path: 'order', message: 'names a sample that is not among the samples' };
  return undefined;
}

/** A row reads as it was sent, without the token. */
export const Feedback = z.looseObject({
  object: z.literal('feedback'),
  id: idSchema('feedback'),
  kind: z.enum(FEEDBACK_KINDS),
  rater: idSchema('rater'),
  rater_kind: z.enum(['asserted', 'verified', 'anonymous']),
  revision: z.int(),
  policy: z.string(),
  created_at: Time,
  updated_at: Time,
  undone_at: Time.optional(),
});

export const FeedbackQuery = z.strictObject({
  ...listQuery('feedback'),
  kind: z.enum(FEEDBACK_KINDS).optional(),
  policy: z.string().max(256).optional(),
  rater: idSchema('rater').optional(),
  run: idSchema('run').optional(),
  since: Time.optional(),
  until: Time.optional(),
  undone: z.enum(['true', 'false']).default('false'),
});
export type FeedbackQuery = z.infer<typeof FeedbackQuery>;

/** Datasets are resumed by the id of the last row held, which begins with its vote's. */
export const DatasetQuery = z.strictObject({
  after: z
    .string()
    .regex(/^fb_[0-7][0-9A-HJKMNP-TV-Z]{25}(:smp_[0-7][0-9A-HJKMNP-TV-Z]{25}){0,2}$/, "not a row's id")
    .optional(),
  policy: z.string().max(256).optional(),
  since: Time.optional(),
  until: Time.optional(),
  snapshot: idSchema('snapshot').optional(),
  shape: z.enum(['conversational', 'standard']).default('conversational'),
});
export type DatasetQuery = z.infer<typeof DatasetQuery>;
