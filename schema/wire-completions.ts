// POST /v1/chat/completions and /v1/completions as OpenAI has them: unknown fields and nulls count as absent, and what
// would change the answer but isn't supported is refused by name (`unsupported` below).
import { z } from 'zod';
import { idSchema } from './ids.ts';
import type { Message } from './message.ts';
import { Metadata, RaterId } from './wire.ts';

const Stop = z.string().min(1);
/** Of an answer: anything, or one JSON object. */
const FORMATS = ['text', 'json_object'] as const;
const shared = {
  model: z.string().min(1).max(256),
  n: z.int().min(1).max(16).default(1),
  max_tokens: z.int().min(1).optional(),
  temperature: z.number().min(0).max(2).default(1),
  top_p: z.number().min(0).max(1).default(1),
  // not OpenAI’s, but what vLLM, llama.cpp and Hugging Face call them
  top_k: z.int().min(0).default(0),
  min_p: z.number().min(0).max(1).default(0),
  seed: z.int().optional(),
  stop: z
    .union([Stop.transform((one) => [one]), z.array(Stop).max(4)], 'must be a string, or up to four')
    .default([])
    .meta({ anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'string' }, maxItems: 4 }] }),
  stream: z.boolean().default(false),
  stream_options: z.object({ include_usage: z.boolean().default(false) }).optional(),
  logit_bias: z.record(z.string().regex(/^\d{1,9}$/, 'not a token id'), z.number().min(-100).max(100)).optional(),
  response_format: z.object({ type: z.enum(FORMATS) }).optional(),
  user: RaterId.optional(),
  metadata: Metadata.optional(),
  store: z.boolean().default(true),
};

const Content = z
  .union([
    z.string(),
    z
      .array(z.object({ type: z.literal('text'), text: z.string() }))
      .transform((parts) => parts.map((p) => p.text).join('')),
  ])
  .meta({ anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'object' } }] });
const ChatMessage = z
  .object({ role: z.enum(['system', 'developer', 'user', 'assistant']), content: Content })
  // OpenAI's newer name of the same role
  .transform(({ role, content }): Message => ({ role: role === 'developer' ? 'system' : role, content }))
  .meta({ type: 'object', required: ['role', 'content'], properties: { role: { type: 'string' }, content: {} } });

export const ChatCompletionRequest = z
  .object({
    ...shared,
    messages: z.array(ChatMessage).min(1),
    max_completion_tokens: z.int().min(1).optional(),
    logprobs: z.boolean().default(false),
    top_logprobs: z.int().min(0).max(20).optional(),
  })
  .refine((body) => body.logprobs || body.top_logprobs === undefined, {
    message: 'needs logprobs',
    path: ['top_logprobs'],
  });
export type ChatCompletionRequest = z.infer<typeof ChatCompletionRequest>;

export const CompletionBody = z.object({
  ...shared,
  prompt: z
    .union([z.string().min(1), z.tuple([z.string().min(1)]).transform(([one]) => one)])
    .meta({ anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'string' }, maxItems: 1 }] }),
  logprobs: z.int().min(0).max(5).optional(),
});
export type CompletionBody = z.infer<typeof CompletionBody>;

/** The first field of a request that would change the answer and isn't supported, or undefined. */
export function unsupported(body: unknown): string | undefined {
  if (typeof body !== 'object' || body === null) return undefined;
  const fields = body as Record<string, unknown>;
  const given = (name: string) => fields[name] !== undefined && fields[name] !== null;
  const type = (value: unknown) => (value as { type?: unknown } | null)?.type;
  for (const name of ['tools', 'functions', 'suffix', 'audio', 'web_search_options']) if (given(name)) return name;
  for (const name of ['tool_choice', 'function_call']) if (given(name) && fields[name] !== 'none') return name;
  for (const name of ['presence_penalty', 'frequency_penalty']) if (given(name) && fields[name] !== 0) return name;
  if (given('response_format') && !FORMATS.some((format) => format === type(fields.response_format)))
    return 'response_format';
  if (given('modalities') && JSON.stringify(fields.modalities) !== '["text"]') return 'modalities';
  if (given('echo') && fields.echo !== false) return 'echo';
  if (given('best_of') && fields.best_of !== (fields.n ?? 1)) return 'best_of';
  if (Array.isArray(fields.prompt) && (fields.prompt.length > 1 || typeof fields.prompt[0] === 'number'))
    return 'prompt';
  if (!Array.isArray(fields.messages)) return undefined;
  for (const [i, message] of fields.messages.entries()) {
    if (message?.role === 'tool' || message?.role === 'function') return `messages[${i}].role`;
    if (message?.tool_calls || message?.function_call) return `messages[${i}].tool_calls`;
    if (!Array.isArray(message?.content)) continue;
    if (message.content.some((part: unknown) => typeof type(part) === 'string' && type(part) !== 'text'))
      return `messages[${i}].content`;
  }
  return undefined;
}

/** `null` is absent here, at every depth. */
export const withoutNulls = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).flatMap(([k, v]) => (v === null ? [] : [[k, withoutNulls(v)]])));
};

const FinishReason = z.enum(['stop', 'length']).nullable();
const Usage = z.object({ prompt_tokens: z.int(), completion_tokens: z.int(), total_tokens: z.int() });
const mine = { sample_id: idSchema('sample').optional() };
const answer = {
  id: z.string(),
  created: z.int(),
  model: z.string(),
  usage: Usage.optional(),
  feedback_token: z.string().optional(),
  session_token: z.string().optional(),
};

const TopLogprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()) });
const ChatLogprobs = z
  .object({ content: z.array(TopLogprob.extend({ top_logprobs: z.array(TopLogprob) })) })
  .nullable();
const TextLogprobs = z
  .object({
    tokens: z.array(z.string()),
    token_logprobs: z.array(z.number()),
    top_logprobs: z.array(z.record(z.string(), z.number())),
    text_offset: z.array(z.int()),
  })
  .nullable();

export const ChatCompletion = z.object({
  ...answer,
  object: z.literal('chat.completion'),
  choices: z.array(
    z.object({
      index: z.int(),
      message: z.object({ role: z.literal('assistant'), content: z.string(), refusal: z.null() }),
      logprobs: ChatLogprobs,
      finish_reason: FinishReason,
      ...mine,
    }),
  ),
});

export const TextCompletion = z.object({
  ...answer,
  object: z.literal('text_completion'),
  choices: z.array(
    z.object({ index: z.int(), text: z.string(), logprobs: TextLogprobs, finish_reason: FinishReason, ...mine }),
  ),
});

export const Model = z.object({
  object: z.literal('model'),
  id: z.string(),
  created: z.int(),
  owned_by: z.string(),
});
export const ModelList = z.object({ object: z.literal('list'), data: z.array(Model) });
