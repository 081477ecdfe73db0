// POST /v1/chat/completions and /v1/completions: resolve the model, decode, store the samples, answer.
// A sample is stored before its client holds the complete answer: of each choice the last piece waits for the store.
import { ulid } from 'ulid';
import { ChatTemplateError } from '../../schema/chat.ts';
import type { CompletionChunk, CompletionRequest, TokenLogprob } from '../../schema/completion.ts';
import { newId } from '../../schema/ids.ts';
import {
  ChatCompletion,
  ChatCompletionRequest,
  CompletionBody,
  TextCompletion,
  unsupported,
  withoutNulls,
} from '../../schema/wire-completions.ts';
import { raterId, sha256 } from '../crypto.ts';
import { ApiError, asApiError, at, busy, openAIError } from '../error.ts';
import { ContextOverflow, DecoderBusy } from '../policy/complete.ts';
import { type Call, route } from '../route.ts';
import { type Loaded, openChannel, openPolicy } from '../serving.ts';
import { database, now } from '../store/db.ts';
import type { Channels } from '../store/keys.ts';
import { type Asked, type NewSample, storing } from '../store/samples.ts';
import { feedbackToken, readSessionToken, sessionToken } from '../token.ts';
import { CHAT, type Choice, type Spelling, TEXT } from './openai.ts';

/** What is drawn where nobody says how much, and the most that a page can have. */
const MAX_TOKENS = 1024;
const PAGE_CHOICES = 4;

type Body = (ChatCompletionRequest | CompletionBody) & { max_completion_tokens?: number | undefined };

interface Drawing {
  call: Call<unknown, Body>;
  spelling: Spelling;
  asked: Asked;
  topLogprobs: number | undefined;
}

interface Session {
  session: string;
  user: string | null;
  /** A fresh one, to be told. */
  session_token?: string;
}

async function sessionOf({ c, set, caller, body }: Call<unknown, Body>): Promise<Session> {
  if (caller.kind === 'sk') {
    const user = body.user === undefined ? null : await raterId(set.PLUMB_PEPPER, body.user);
    return { session: user ?? newId('rater'), user };
  }
  const header = c.req.header('Plumb-Session');
  if (header !== undefined) return { session: await readSessionToken(set, header), user: null };
  const session = newId('rater');
  return { session, user: null, session_token: (await sessionToken(set, session)).session_token };
}

function checkPage({ caller, body }: Call<unknown, Body>, asked: Asked, topLogprobs: number | undefined) {
  if (caller.kind !== 'pk') return;
  const refuse = (param: string) => {
    throw new ApiError(403, `a public key may not set ${param}`, {
      errors: [{ path: param, message: 'is for servers' }],
    });
  };
  if ('messages' in asked && asked.messages.some(({ role }) => role === 'system')) refuse('messages');
  if (topLogprobs !== undefined) refuse('logprobs');
  if (body.model.startsWith('pol_')) refuse('model');
  if (body.n > PAGE_CHOICES) refuse('n');
}

/** A session's place in [0, 1): a canary's share holds whoever lies below it, so that raising it keeps everyone in. */
const placeOf = async (session: string) =>
  Number.parseInt((await sha256(`canary:${session}`)).slice(0, 8), 16) / 2 ** 32;

async function resolveModel(bucket: R2Bucket, model: string, channels: Channels, session: string): Promise<Loaded> {
  const open = async () => {
    if (model.startsWith('pol_')) return openPolicy(bucket, model);
    if (model === 'stable' || model === 'canary') return openChannel(bucket, channels, model);
    if (model !== 'default') return undefined;
    const canary = channels.canary && (await placeOf(session)) < channels.canary.share;
    return openChannel(bucket, channels, canary ? 'canary' : 'stable');
  };
  const loaded = await open();
  if (!loaded) throw at(404, 'model', 'is not a policy or channel here', 'model_not_found');
  return loaded;
}

function completionRequest(
  { body }: Call<unknown, Body>,
  asked: Asked,
  topLogprobs: number | undefined,
  loaded: Loaded,
): CompletionRequest {
  const bias = Object.entries(body.logit_bias ?? {}).map(([id, value]) => [Number(id), value] as const);
  if (bias.some(([id]) => id >= loaded.vocabulary))
    throw at(400, 'logit_bias', 'names a token that the model does not have');
  return {
    input: asked,
    n: body.n,
    maxTokens: maxTokens(body) ?? MAX_TOKENS,
    temperature: body.temperature,
    topP: body.top_p,
    seed: body.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!,
    stop: body.stop,
    ...(topLogprobs === undefined ? {} : { topLogprobs }),
    ...(bias.length > 0 ? { logitBias: new Map(bias) } : {}),
  };
}
const maxTokens = (body: Body) => body.max_completion_tokens ?? body.max_tokens;

function decodingError(error: unknown): unknown {
  if (error instanceof ContextOverflow) return at(400, 'messages', error.message, 'context_length_exceeded');
  if (error instanceof ChatTemplateError) return at(400, 'messages', error.message);
  if (error instanceof DecoderBusy) return busy('the decoder is busy', 1);
  return error;
}

const join = (a: TokenLogprob[] | undefined, b: TokenLogprob[] | undefined) => (b ? [...(a ?? []), ...b] : a);

async function draw({ call, spelling, asked, topLogprobs }: Drawing): Promise<Response> {
  const { c, env, set, caller, body, channels } = call;
  checkPage(call, asked, topLogprobs);
  if (caller.kind === 'pk')
    for (const name of ['max_tokens', 'max_completion_tokens'] as const)
      if ((body[name] ?? 0) > MAX_TOKENS) body[name] = MAX_TOKENS;
  const session = await sessionOf(call);
  const loaded = await resolveModel(env.BUCKET, body.model, channels, session.session);
  const request = completionRequest(call, asked, topLogprobs, loaded);

  const leaving = new AbortController();
  const left = () => leaving.abort();
  c.req.raw.signal?.addEventListener('abort', left);
  if (c.req.raw.signal?.aborted) left();

  const chunks = loaded.complete(request, leaving.signal)[Symbol.asyncIterator]();
  const next = () => chunks.next().catch((error) => Promise.reject(decodingError(error)));
  // what is wrong with the prompt shows with the first chunk, while the status is still open
  const first = await next();
  const promptTokens = first.value?.type === 'prompt' ? first.value.promptTokens : 0;
  const wanted = maxTokens(body) ?? 0;
  if (promptTokens + wanted > loaded.context) {
    await chunks.return?.();
    const param = body.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens';
    throw at(
      400,
      param,
      `${wanted} and a prompt of ${promptTokens} tokens exceed the context of ${loaded.context}`,
      'context_length_exceeded',
    );
  }

  const sampleIds = body.store ? Array.from({ length: body.n }, () => newId('sample')) : [];
  const token = body.store
    ? {
        feedback_token: await feedbackToken(set, {
          sample_ids: sampleIds,
          policy: loaded.policy,
          session: session.session,
        }),
      }
    : {};
  const created_at = now();
  const head = { id: `${spelling.idPrefix}-${ulid()}`, created: Math.floor(Date.now() / 1000), model: loaded.policy };
  const fresh = session.session_token && body.store ? { session_token: session.session_token } : {};

  const choices: (Choice & { tokens: number })[] = Array.from({ length: body.n }, (_, index) => ({
    index,
    text: '',
    logprobs: topLogprobs === undefined ? undefined : [],
    finishReason: null,
    sampleId: sampleIds[index],
    tokens: 0,
  }));
  const sum = () => choices.reduce((total, choice) => total + choice.tokens, 0);
  const usage = () => ({ prompt_tokens: promptTokens, completion_tokens: sum(), total_tokens: promptTokens + sum() });

  const store = async (texts: string[], remembered: [number, string, string] | undefined) => {
    if (!body.store) return call.release();
    const { temperature, topP: top_p, seed, stop } = request;
    const rows: NewSample[] = choices.map((choice, i) => ({
      id: sampleIds[i]!,
      policy: loaded.policy,
      text: texts[i]!,
      finish_reason: choice.finishReason ?? 'abort',
      completion_tokens: choice.tokens,
      session: session.session,
      user: session.user,
      params: { temperature, top_p, seed, ...(stop.length > 0 ? { stop } : {}) },
      metadata: body.metadata ?? {},
      created_at,
    }));
    const db = database(env.DB);
    await db.batch([...(await storing(db, set, asked, rows)), ...(remembered ? call.remember(...remembered) : [])]);
    if (!remembered) await call.release();
  };

  const take = (chunk: CompletionChunk) => {
    if (chunk.type === 'prompt') return;
    const choice = choices[chunk.index]!;
    if (chunk.type === 'text') {
      choice.text += chunk.text;
      choice.logprobs = join(choice.logprobs, chunk.logprobs);
      choice.tokens++;
    } else {
      choice.finishReason = chunk.finishReason;
      choice.tokens = chunk.completionTokens;
    }
  };

  if (!body.stream) {
    for (let step = await next(); !step.done; step = await next()) take(step.value);
    const answer = JSON.stringify({
      ...head,
      object: spelling.object,
      choices: choices.map(spelling.whole),
      usage: usage(),
      ...token,
      ...fresh,
    });
    await store(
      choices.map((choice) => choice.text),
      [200, 'application/json', answer],
    );
    return new Response(answer, { headers: { 'Content-Type': 'application/json' } });
  }

  // Streamed: events are made as they are asked for.
  const utf8 = new TextEncoder();
  const withUsage = body.stream_options?.include_usage === true;
  let written = '';
  const event = (data: unknown) => {
    const text = `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
    written += text;
    return utf8.encode(text);
  };
  const piece = (choice: Choice, opening: boolean, offset: number, more: object = {}) =>
    event({
      ...head,
      object: spelling.streamObject,
      choices: [spelling.piece(choice, opening, offset)],
      ...(withUsage ? { usage: null } : {}),
      ...more,
    });
  const sent = choices.map(() => '');
  const waiting: (Extract<CompletionChunk, { type: 'text' }> | undefined)[] = choices.map(() => undefined);
  const flush = (index: number): Uint8Array[] => {
    const chunk = waiting[index];
    if (!chunk) return [];
    waiting[index] = undefined;
    const part = { ...choices[index]!, text: chunk.text, logprobs: chunk.logprobs, finishReason: null };
    sent[index] += chunk.text;
    return [piece(part, false, sent[index]!.length - chunk.text.length)];
  };
  const none = topLogprobs === undefined ? undefined : [];

  async function* events(): AsyncGenerator<Uint8Array> {
    for (const choice of choices)
      yield piece({ ...choice, text: '', logprobs: undefined }, true, 0, { ...token, ...fresh });
    for (let step = await next(); !step.done; step = await next()) {
      const chunk = step.value;
      take(chunk);
      if (chunk.type !== 'text') continue;
      for (const bytes of flush(chunk.index)) yield bytes;
      waiting[chunk.index] = chunk;
    }
    const last = choices.flatMap((choice) => [
      ...flush(choice.index),
      piece({ ...choice, text: '', logprobs: none }, false, sent[choice.index]!.length, token),
    ]);
    if (withUsage) last.push(event({ ...head, object: spelling.streamObject, choices: [], usage: usage(), ...token }));
    last.push(event('[DONE]'));
    stored = true;
    await store(sent, [200, 'text/event-stream', written]);
    for (const bytes of last) yield bytes;
  }

  let stored = false;
  const source = events();
  /** The client left, or decoding failed: what was sent is stored, once. */
  const abandon = async () => {
    if (stored) return;
    stored = true;
    left();
    await chunks.return?.();
    for (const choice of choices) choice.finishReason = null;
    await store(sent, undefined);
  };
  leaving.signal.addEventListener('abort', () => c.executionCtx.waitUntil(abandon()));
  const stream = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const step = await source.next();
          if (step.done) controller.close();
          else controller.enqueue(step.value);
        } catch (error) {
          if (leaving.signal.aborted) return controller.close();
          controller.enqueue(event(openAIError(asApiError(error)).body));
          controller.close();
          await abandon();
        }
      },
      cancel: left,
    },
    { highWaterMark: 0 },
  );
  return new Response(stream, { headers: { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' } });
}

const prepare = (json: unknown) => {
  const param = unsupported(json);
  if (param) throw at(400, param, 'is not supported', 'unsupported_parameter');
  return withoutNulls(json);
};

const shared = {
  method: 'post',
  auth: 'completions',
  browsers: true,
  channels: true,
  idempotent: true,
  prepare,
} as const;

export const completionRoutes = [
  route({
    ...shared,
    path: '/v1/chat/completions',
    summary: 'Complete a chat, as OpenAI has it; each choice has a sample_id, the answer a feedback_token',
    body: ChatCompletionRequest,
    answers: { 200: ChatCompletion },
    handle(call) {
      const { messages, logprobs, top_logprobs } = call.body;
      return draw({
        call,
        spelling: CHAT,
        asked: { messages },
        topLogprobs: logprobs ? (top_logprobs ?? 0) : undefined,
      });
    },
  }),
  route({
    ...shared,
    path: '/v1/completions',
    summary: 'Continue a text, as OpenAI has it',
    body: CompletionBody,
    answers: { 200: TextCompletion },
    handle(call) {
      const { prompt, logprobs } = call.body;
      return draw({ call, spelling: TEXT, asked: { prompt }, topLogprobs: logprobs });
    },
  }),
];
