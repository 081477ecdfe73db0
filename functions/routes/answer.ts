// From a decoder's chunks to an answer, whole or streamed, and to the samples that are stored of it. A sample is stored
// before its client holds the complete answer: streamed, the last piece of each choice waits for the store.
import { ulid } from 'ulid';
import type { CompletionChunk, CompletionRequest, TokenLogprob } from '../../schema/completion.ts';
import { newId } from '../../schema/ids.ts';
import { asApiError, openAIError } from '../error.ts';
import type { Call } from '../route.ts';
import { database, now } from '../store/db.ts';
import { type Asked, storing } from '../store/samples.ts';
import { feedbackToken } from '../token.ts';
import type { Choice, Spelling } from './openai.ts';

export interface Session {
  session: string;
  user: string | null;
  /** A fresh one, to be told. */
  session_token?: string;
}

interface Options {
  store: boolean;
  metadata?: Record<string, string> | undefined;
  stream_options?: { include_usage: boolean } | undefined;
}

/** An answer under way. */
interface Answering {
  call: Call<unknown, Options>;
  spelling: Spelling;
  asked: Asked;
  request: CompletionRequest;
  policy: string;
  session: Session;
  promptTokens: number;
  /** What the decoder has still to say. */
  chunks: AsyncIterator<CompletionChunk>;
  /** The decoder is not in this isolate, which has time to look after the client. */
  isElsewhere: boolean;
  /** Aborted when the client leaves. */
  leaving: AbortController;
}

type Text = Extract<CompletionChunk, { type: 'text' }>;
/** Bytes. Longer answers (log-probabilities of everything) are not kept for their Idempotency-Key: a row of D1 holds 2 MB. */
const MOST_KEPT = 1_900_000;
const EVENTS = 'text/event-stream; charset=utf-8';

async function beginning({ call, spelling, request, policy, session }: Answering) {
  const { store } = call.body;
  const sampleIds = store ? Array.from({ length: request.n }, () => newId('sample')) : [];
  const choices: (Choice & { tokens: number })[] = Array.from({ length: request.n }, (_, index) => ({
    index,
    text: '',
    logprobs: request.topLogprobs === undefined ? undefined : [],
    finishReason: null,
    sampleId: sampleIds[index],
    tokens: 0,
  }));
  return {
    choices,
    created_at: now(),
    head: { id: `${spelling.idPrefix}-${ulid()}`, created: Math.floor(Date.now() / 1000), model: policy },
    token: store
      ? { feedback_token: await feedbackToken(call.set, { sample_ids: sampleIds, policy, session: session.session }) }
      : {},
    fresh: store && session.session_token ? { session_token: session.session_token } : {},
  };
}
type Beginning = Awaited<ReturnType<typeof beginning>>;

const join = (a: TokenLogprob[] | undefined, b: TokenLogprob[] | undefined) => (b ? [...(a ?? []), ...b] : a);

function take(answering: Answering, choices: Beginning['choices'], chunk: CompletionChunk): void {
  if (chunk.type === 'prompt') {
    answering.promptTokens = chunk.promptTokens; // an upstream server tells in the end
    return;
  }
  const choice = choices[chunk.index]!;
  if (chunk.type === 'text') {
    choice.text += chunk.text;
    choice.logprobs = join(choice.logprobs, chunk.logprobs);
    choice.tokens++;
  } else {
    choice.finishReason = chunk.finishReason;
    choice.tokens = chunk.completionTokens;
  }
}

function usageOf({ promptTokens }: Answering, choices: Beginning['choices']) {
  const completionTokens = choices.reduce((total, choice) => total + choice.tokens, 0);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  };
}

/** Stores each choice's text as it was sent, in one batch, and the answer itself where an Idempotency-Key asks for it. */
async function store(
  { call, asked, request, policy, session }: Answering,
  { choices, created_at }: Beginning,
  texts: string[],
  kept?: [status: number, type: string, response: string],
): Promise<void> {
  const keep = kept && new TextEncoder().encode(kept[2]).length < MOST_KEPT ? kept : undefined;
  if (!call.body.store || !keep) await call.release();
  if (!call.body.store) return;
  const { temperature, topP: top_p, topK: top_k, minP: min_p, seed, stop, json } = request;
  const rows = choices.map((choice, i) => ({
    id: choice.sampleId!,
    policy,
    text: texts[i]!,
    finish_reason: choice.finishReason ?? ('abort' as const),
    completion_tokens: choice.tokens,
    session: session.session,
    user: session.user,
    params: {
      temperature,
      top_p,
      ...(top_k && { top_k }),
      ...(min_p && { min_p }),
      seed,
      ...(stop.length > 0 && { stop }),
      ...(json && { response_format: { type: 'json_object' } }),
    },
    metadata: call.body.metadata ?? {},
    created_at,
  }));
  const db = database(call.env.DB);
  await db.batch([...(await storing(db, call.set, asked, rows)), ...(keep ? call.remember(...keep) : [])]);
}

/** So long the status of an answer in one piece stays open; then a space is sent as often. */
const OPEN_MS = 1000;
/** Whose stream stands still hears something as often as that: what lies between takes a connection where nothing moves for dead. */
const PULSE_MS = 10_000;

/** What comes, or undefined where that takes longer. */
async function within<T>(ms: number, coming: Promise<T>): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const passed = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  return Promise.race([coming, passed]).finally(() => clearTimeout(timer));
}

/**
 * An answer in one piece. Where a decoder that is shared takes its time, its head goes out before, and spaces, for with some proxies (wrangler's)
 * a client is only seen to leave when something is written to it, and others would wait for what nobody reads. If it fails then, the
 * connection breaks off.
 */
export async function whole(answering: Answering): Promise<Response> {
  const { call, spelling, chunks, leaving, isElsewhere } = answering;
  const begun = await beginning(answering);
  const { choices, head, token, fresh } = begun;
  async function finish(): Promise<string> {
    for (let step = await chunks.next(); !step.done; step = await chunks.next()) take(answering, choices, step.value);
    const answer = JSON.stringify({
      ...head,
      object: spelling.object,
      choices: choices.map(spelling.whole),
      usage: usageOf(answering, choices),
      ...token,
      ...fresh,
    });
    const texts = choices.map((choice) => choice.text);
    await store(answering, begun, texts, [200, 'application/json', answer]);
    return answer;
  }
  const headers = { 'Content-Type': 'application/json' };
  const coming = finish();
  const answer = await (isElsewhere ? within(OPEN_MS, coming) : coming);
  if (answer !== undefined) return new Response(answer, { headers });
  const failed = coming.catch(async (error) => {
    if (!leaving.signal.aborted) asApiError(error); // which logs it
    await call.release();
  });
  call.c.executionCtx.waitUntil(failed);
  const utf8 = new TextEncoder();
  const stream = new ReadableStream<Uint8Array>(
    {
      start: (controller) => controller.enqueue(utf8.encode(' ')), // JSON may have space before it
      async pull(controller) {
        const answer = await within(OPEN_MS, coming);
        controller.enqueue(utf8.encode(answer ?? ' '));
        if (answer !== undefined) controller.close();
      },
      cancel: () => leaving.abort(),
    },
    { highWaterMark: 0 },
  );
  // identity: what compresses on the way would hold the spaces back
  return new Response(stream, { headers: { ...headers, 'Content-Encoding': 'identity' } });
}

export async function streamed(answering: Answering): Promise<Response> {
  const { call, spelling, request, chunks, leaving } = answering;
  const begun = await beginning(answering);
  const { choices, head, token, fresh } = begun;
  const withUsage = call.body.stream_options?.include_usage === true;
  const utf8 = new TextEncoder();

  let written = '';
  const event = (data: object | string) => {
    const text = `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
    written += text;
    return utf8.encode(text);
  };
  const frame = { ...head, object: spelling.streamObject };
  const piece = (choice: Choice, first: boolean, offset: number, more: object = {}) =>
    event({
      ...frame,
      choices: [spelling.piece(choice, first, offset)],
      ...(withUsage ? { usage: null } : {}),
      ...more,
    });
  const empty = request.topLogprobs === undefined ? undefined : [];

  const sent = choices.map(() => '');
  const waiting: (Text | undefined)[] = choices.map(() => undefined);
  const flush = (index: number): Uint8Array[] => {
    const chunk = waiting[index];
    if (!chunk) return [];
    waiting[index] = undefined;
    const offset = sent[index]!.length;
    sent[index] += chunk.text;
    return [
      piece({ ...choices[index]!, text: chunk.text, logprobs: chunk.logprobs, finishReason: null }, false, offset),
    ];
  };

  let settled = false;
  async function* events(): AsyncGenerator<Uint8Array> {
    for (const choice of choices) yield piece({ ...choice, logprobs: undefined }, true, 0, { ...token, ...fresh });
    for (let step = await chunks.next(); !step.done; step = await chunks.next()) {
      take(answering, choices, step.value);
      if (step.value.type !== 'text') continue;
      yield* flush(step.value.index);
      waiting[step.value.index] = step.value;
    }
    const last = choices.flatMap((choice) => [
      ...flush(choice.index),
      piece({ ...choice, text: '', logprobs: empty }, false, sent[choice.index]!.length, token),
    ]);
    if (withUsage) last.push(event({ ...frame, choices: [], usage: usageOf(answering, choices), ...token }));
    last.push(event('[DONE]'));
    settled = true;
    // The client may leave meanwhile; what it holds a token for is stored all the same.
    const saving = store(answering, begun, sent, [200, EVENTS, written]).catch(async (error) => {
      await call.release();
      throw error;
    });
    call.c.executionCtx.waitUntil(saving);
    await saving;
    yield* last;
  }

  /** The client left, or decoding failed: what was sent is stored. */
  async function abandon(): Promise<void> {
    if (settled) return;
    settled = true;
    leaving.abort();
    await chunks.return?.();
    for (const choice of choices) choice.finishReason = null;
    await store(answering, begun, sent);
  }
  const abort = () => call.c.executionCtx.waitUntil(abandon());
  if (leaving.signal.aborted) abort();
  else leaving.signal.addEventListener('abort', abort);

  const source = events();
  let coming: ReturnType<typeof source.next> | undefined;
  const stream = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          coming ??= source.next();
          const step = await within(PULSE_MS, coming);
          if (!step) return controller.enqueue(utf8.encode(':\n\n')); // a comment
          coming = undefined;
          if (step.done) controller.close();
          else controller.enqueue(step.value);
        } catch (error) {
          if (!leaving.signal.aborted) controller.enqueue(event(openAIError(asApiError(error)).body));
          controller.close();
          await abandon();
        }
      },
      cancel: () => leaving.abort(),
    },
    { highWaterMark: 0 }, // decoded as it is asked for
  );
  return new Response(stream, { headers: { 'Content-Type': EVENTS, 'Cache-Control': 'no-cache' } });
}
