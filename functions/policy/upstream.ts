// A policy that decodes at another server with OpenAI's API (vLLM, llama.cpp, a hosted one), behind the same interface as one that
// decodes here. Each choice is a request of its own, since not every server knows `n`; who asks is not told to it.
import { EventSourceParserStream } from 'eventsource-parser/stream';
import { z } from 'zod';
import type { Complete, CompletionChunk, CompletionRequest, TokenLogprob } from '../../schema/completion.ts';
import type { Upstream } from '../../schema/manifest.ts';
import { DecoderBusy } from './choice.ts';

/** The server refuses the request (400), or does not do its part; the message is for whoever asked. */
export class UpstreamRefusal extends Error {}
export class UpstreamFailure extends Error {}

/** So long a server may say nothing. */
const PATIENCE_MS = 60_000;
/** A server that is busy or cannot be reached is asked again: so often, after so long unless it says how long. */
const TRIES = 4;
const PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;
const SEEDS = 2 ** 31;

const Logprob = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()).nullish() });
const Chunk = z.object({
  error: z.union([z.string(), z.object({ message: z.string() }).transform(({ message }) => message)]).nullish(),
  usage: z.object({ prompt_tokens: z.int(), completion_tokens: z.int() }).nullish(),
  choices: z
    .array(
      z.object({
        finish_reason: z.string().nullish(),
        text: z.string().nullish(),
        delta: z.object({ content: z.string().nullish() }).nullish(),
        logprobs: z
          .object({
            // of a chat
            content: z.array(Logprob.extend({ top_logprobs: z.array(Logprob).nullish() })).nullish(),
            // of a plain completion
            tokens: z.array(z.string()).nullish(),
            token_logprobs: z.array(z.number().nullable()).nullish(),
            top_logprobs: z.array(z.record(z.string(), z.number()).nullable()).nullish(),
          })
          .nullish(),
      }),
    )
    .nullish(),
});

const spelled = (token: string, logprob: number, bytes?: number[] | null) => ({
  token,
  logprob,
  bytes: bytes ?? [...new TextEncoder().encode(token)],
});

type Choice = NonNullable<z.infer<typeof Chunk>['choices']>[number];
function logprobsOf({ logprobs }: Choice): TokenLogprob[] {
  if (logprobs?.content)
    return logprobs.content.map(({ token, logprob, bytes, top_logprobs }) => ({
      ...spelled(token, logprob, bytes),
      top: (top_logprobs ?? []).map((other) => spelled(other.token, other.logprob, other.bytes)),
    }));
  return (logprobs?.tokens ?? []).map((token, i) => ({
    ...spelled(token, logprobs?.token_logprobs?.[i] ?? 0),
    top: Object.entries(logprobs?.top_logprobs?.[i] ?? {}).map(([other, logprob]) => spelled(other, logprob)),
  }));
}

function bodyOf(request: CompletionRequest, model: string, index: number): object {
  const { input, topLogprobs, topK, minP, stop, logitBias, json } = request;
  const isChat = 'messages' in input;
  return {
    model,
    ...input,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: request.maxTokens,
    temperature: request.temperature,
    top_p: request.topP,
    seed: (((request.seed + index) % SEEDS) + SEEDS) % SEEDS,
    ...(topK ? { top_k: topK } : {}),
    ...(minP ? { min_p: minP } : {}),
    ...(stop.length > 0 ? { stop } : {}),
    ...(topLogprobs === undefined
      ? {}
      : isChat
        ? { logprobs: true, top_logprobs: topLogprobs }
        : { logprobs: topLogprobs }),
    ...(logitBias ? { logit_bias: Object.fromEntries(logitBias) } : {}),
    ...(json ? { response_format: { type: 'json_object' } } : {}),
  };
}

/** What a server says of a request that it does not take, as a sentence's end. */
async function complaint(response: Response): Promise<string> {
  const text = await response.text().catch(() => '');
  let said: unknown = text;
  try {
    const { error, message, detail } = JSON.parse(text) ?? {};
    said = error?.message ?? error ?? message ?? detail ?? text;
  } catch {} // then it is no JSON
  const words = typeof said === 'string' ? said.trim() : JSON.stringify(said);
  return words ? `: ${words.slice(0, 500)}` : '';
}

const ofKey = (status: number) =>
  status === 401 || status === 403 ? ': the key that PLUMB_UPSTREAM_KEYS has for it, if any, is not taken' : '';

/** An answer of the server that is about to stream. */
async function open(url: string, key: string | undefined, body: object, signal: AbortSignal): Promise<Response> {
  const init = {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) },
    body: JSON.stringify(body),
    redirect: 'manual' as const, // the key is for that server alone
    signal,
  };
  for (let tries = 1; ; tries++) {
    const response = await fetch(url, init).catch((error) => {
      signal.throwIfAborted();
      return error as Error;
    });
    if (response instanceof Response) {
      if (response.ok) return response;
      if (response.status === 400 || response.status === 422)
        throw new UpstreamRefusal(`the upstream server refuses this${await complaint(response)}`);
      if (response.status === 404)
        throw new UpstreamFailure(`the upstream server answered with 404${await complaint(response)}`);
      await response.body?.cancel();
      if (response.status !== 429 && response.status !== 503)
        throw new UpstreamFailure(`the upstream server answered with ${response.status}${ofKey(response.status)}`);
    }
    if (tries === TRIES) {
      if (response instanceof Response) throw new DecoderBusy('the upstream server is busy');
      throw new UpstreamFailure('the upstream server cannot be reached');
    }
    const asked = response instanceof Response ? 1000 * Number(response.headers.get('retry-after')) : 0;
    const pause = Math.min(LONGEST_PAUSE_MS, asked > 0 ? asked : PAUSE_MS * 2 ** tries);
    await new Promise((resolve) => setTimeout(resolve, pause));
    signal.throwIfAborted();
  }
}

export function upstream({ url, model }: Upstream, key: string | undefined): Complete {
  async function* choice(
    request: CompletionRequest,
    index: number,
    leaving: AbortSignal,
  ): AsyncGenerator<CompletionChunk> {
    const silence = new AbortController();
    const signal = AbortSignal.any([leaving, silence.signal]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const heard = () => {
      clearTimeout(timer);
      const failure = new UpstreamFailure(`the upstream server said nothing for ${PATIENCE_MS / 1000} s`);
      timer = setTimeout(() => silence.abort(failure), PATIENCE_MS);
    };
    heard();
    try {
      const path = 'messages' in request.input ? 'chat/completions' : 'completions';
      const response = await open(`${url}/${path}`, key, bodyOf(request, model, index), signal);
      yield { type: 'prompt', promptTokens: 0 }; // it is on its way; how many they are may follow
      let finishReason: string | undefined;
      let completionTokens = 0;
      let said = false;
      const events = response
        .body!.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>)
        .pipeThrough(new EventSourceParserStream());
      for await (const { data } of events) {
        heard();
        if (data === '[DONE]') break;
        said = true;
        const chunk = Chunk.parse(JSON.parse(data));
        if (chunk.error) throw new UpstreamFailure(`the upstream server failed: ${chunk.error.slice(0, 500)}`);
        const [part] = chunk.choices ?? [];
        const text = part?.delta?.content ?? part?.text ?? '';
        const logprobs = part && request.topLogprobs !== undefined ? logprobsOf(part) : undefined;
        if (text || logprobs?.length) {
          completionTokens++;
          yield { type: 'text', index, text, ...(logprobs && { logprobs }) };
        }
        finishReason = part?.finish_reason ?? finishReason;
        if (!chunk.usage) continue;
        completionTokens = chunk.usage.completion_tokens;
        if (index === 0) yield { type: 'prompt', promptTokens: chunk.usage.prompt_tokens };
      }
      // llama-cpp-python's streams nothing at all where a prompt is too long
      if (!said)
        throw new UpstreamFailure(
          'the upstream server ended without a word: does it stream, and is the prompt within its context?',
        );
      if (!finishReason) throw new UpstreamFailure('the upstream server broke off');
      yield { type: 'end', index, finishReason: finishReason === 'length' ? 'length' : 'stop', completionTokens };
    } catch (error) {
      signal.throwIfAborted(); // by its own reason, whatever the stream made of it
      if (error instanceof SyntaxError || error instanceof z.ZodError)
        throw new UpstreamFailure('the upstream server answered with what is no completion');
      if ([UpstreamRefusal, UpstreamFailure, DecoderBusy].some((known) => error instanceof known)) throw error;
      throw new UpstreamFailure('the upstream server broke off'); // runtimes differ in what they call it
    } finally {
      clearTimeout(timer);
    }
  }

  return async function* complete(request, signal) {
    signal.throwIfAborted();
    const over = new AbortController();
    const leaving = AbortSignal.any([signal, over.signal]);
    const choices = Array.from({ length: request.n }, (_, index) => choice(request, index, leaving));
    const next = async (one: (typeof choices)[number]) => ({ one, step: await one.next() });
    const pending = new Map(choices.map((one) => [one, next(one)]));
    try {
      // All of them are on their way before anything is said: until then a status can tell what is wrong.
      await Promise.all(pending.values());
      while (pending.size > 0) {
        const { one, step } = await Promise.race(pending.values());
        if (step.done) pending.delete(one);
        else pending.set(one, next(one));
        if (!step.done) yield step.value;
      }
    } finally {
      over.abort();
      for (const one of pending.values()) one.catch(() => {}); // they end by that
    }
  };
}
