// What travels over HTTP and is shared by several routes: problems, lists, keys, sessions, samples. The checks of
// requests and the OpenAPI document are both made from these schemas.
import { z } from 'zod';
import { idSchema, type Kind } from './ids.ts';
import { Message } from './message.ts';

export const Time = z.iso.datetime({ offset: true });

/** RFC 9457. */
export const Problem = z.object({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
});

export const OpenAIError = z.object({
  error: z.object({ message: z.string(), type: z.string(), param: z.string().nullable(), code: z.string().nullable() }),
});

const bytes = (text: string) => new TextEncoder().encode(text).length;
export const Text16K = z.string().refine((text) => bytes(text) <= 16 * 1024, 'longer than 16 KB');

export const RaterId = z.string().min(1).max(256);
export const Cohorts = z
  .record(z.string().min(1).max(64), z.string().max(256))
  .refine((cohorts) => Object.keys(cohorts).length <= 8, 'more than 8 cohorts');

export const Metadata = z
  .record(z.string().max(64), z.string().max(512))
  .refine((metadata) => Object.keys(metadata).length <= 16, 'more than 16 entries');

/** A whole number in a query, where all is text. */
export const Digits = z.string().regex(/^\d{1,15}$/, 'not a whole number');
const Limit = Digits.transform(Number)
  .pipe(z.int().min(1).max(1000))
  .default(20)
  .meta({ type: 'integer', minimum: 1, maximum: 1000, default: 20 });

export const listQuery = (kind: Kind) => ({
  after: idSchema(kind).optional(),
  limit: Limit,
  order: z.enum(['asc', 'desc']).default('asc'),
});

export const listOf = <T extends z.ZodType>(item: T) =>
  z.object({
    object: z.literal('list'),
    data: z.array(item),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  });

// Keys

export const SCOPES = ['completions', 'feedback', 'read', 'export', 'train', 'release', 'admin'] as const;
export type Scope = (typeof SCOPES)[number];

const Origin = z
  .string()
  .max(256)
  .refine(
    (text) => text === 'null' || (/^https?:/.test(text) && URL.parse(text)?.origin === text),
    'not an origin (https://example.org)',
  );

export const NewKey = z.strictObject({
  kind: z.enum(['sk', 'pk', 'ek']),
  name: z.string().max(128).default(''),
  scopes: z.array(z.enum(SCOPES)).min(1).optional(),
  origins: z.array(Origin).max(32).optional(),
});

export const Key = z.object({
  object: z.literal('key'),
  id: idSchema('key'),
  kind: z.enum(['sk', 'pk', 'ek']),
  name: z.string(),
  scopes: z.array(z.string()),
  origins: z.array(z.string()),
  created_at: Time,
  revoked_at: Time.nullable(),
});
export type Key = z.infer<typeof Key>;
/** The plain key is shown this once. */
export const MadeKey = Key.extend({ key: z.string() });

export const Session = z.object({ session_token: z.string(), expires_at: Time });

// Samples

const asked = {
  messages: z.array(Message).min(1).optional(),
  prompt: z.string().min(1).optional(),
};

export const NewSamples = z
  .strictObject({
    ...asked,
    choices: z
      .array(z.strictObject({ text: z.string() }))
      .min(1)
      .max(16),
    model: z.string().min(1).max(256),
    user: RaterId.optional(),
    metadata: Metadata.optional(),
  })
  .refine((body) => (body.messages === undefined) !== (body.prompt === undefined), {
    message: 'one of messages and prompt is needed',
    path: ['messages'],
  });

export const MadeSamples = z.object({
  id: z.string(),
  choices: z.array(z.object({ sample_id: idSchema('sample') })),
  feedback_token: z.string(),
});

export const Sample = z.object({
  object: z.literal('sample'),
  id: idSchema('sample'),
  ...asked,
  text: z.string(),
  policy: z.string(),
  finish_reason: z.enum(['stop', 'length', 'abort', 'external']),
  completion_tokens: z.int(),
  session: z.string(),
  user: z.string().nullable(),
  params: z.record(z.string(), z.unknown()),
  metadata: Metadata,
  created_at: Time,
});
