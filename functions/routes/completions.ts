// POST /v1/chat/completions and /v1/completions: who asks, which policy answers, and what of.
import { ChatTemplateError } from '../../schema/chat.ts';
import type { CompletionChunk, CompletionRequest } from '../../schema/completion.ts';
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
import { ApiError, at } from '../error.ts';
import { ContextOverflow, DecoderBusy } from '../policy/choice.ts';
import { LEAST_JSON } from '../policy/json.ts';
import { UpstreamFailure, UpstreamRefusal } from '../policy/upstream.ts';
import { type Call, route } from '../route.ts';
import { type Loaded, openChannel, openPolicy } from '../serving.ts';
import type { Channel } from '../store/policies.ts';
import type { Asked } from '../store/samples.ts';
import { readSessionToken, sessionToken } from '../token.ts';
import { type Session, streamed, whole } from './answer.ts';
import { CHAT, type Spelling, TEXT } from './openai.ts';

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
  const refuse = (path: string, message: string) => {
    throw new ApiError(403, `a public key ${message}`, { errors: [{ path, message }] });
  };
  if ('messages' in asked && asked.messages.some(({ role }) => role === 'system'))
    refuse('messages', 'may not send system messages');
  if (topLogprobs !== undefined) refuse('logprobs', 'is given no log-probabilities');
  if (body.model.startsWith('pol_')) refuse('model', 'may name a channel, not a policy');
  if (body.n > PAGE_CHOICES) refuse('n', `may ask for ${PAGE_CHOICES} choices at most`);
}

/** A session's place in [0, 1): a canary's share holds whoever lies below it, so that raising it keeps everyone in. */
const placeOf = async (session: string) =>
  Number.parseInt((await sha256(`canary:${session}`)).slice(0, 8), 16) / 2 ** 32;

async function resolveModel(
  { c, env, channels, body: { model } }: Call<unknown, Body>,
  session: string,
): Promise<Loaded> {
  const channel = (name: Channel) => openChannel(env, channels, name, c.executionCtx);
  const open = async () => {
    if (model.startsWith('pol_')) return openPolicy(env, channels, model);
    if (model === 'stable' || model === 'canary') return channel(model);
    if (model !== 'default') return undefined;
    const canary = channels.canary && (await placeOf(session)) < channels.canary.share;
    return channel(canary ? 'canary' : 'stable');
  };
  const loaded = await open();
  if (!loaded) throw at(404, 'model', `"${model}" is not a policy or channel here`, 'model_not_found');
  return loaded;
}

/** How much was asked for; a page gets no more than its cap. */
function maxTokens({ caller, body }: Call<unknown, Body>): number | undefined {
  const asked = body.max_completion_tokens ?? body.max_tokens;
  return asked !== undefined && caller.kind === 'pk' ? Math.min(asked, MAX_TOKENS) : asked;
}

function completionRequest(
  call: Call<unknown, Body>,
  asked: Asked,
  topLogprobs: number | undefined,
  loaded: Loaded,
  session: string,
): CompletionRequest {
  const { body } = call;
  const bias = Object.entries(body.logit_bias ?? {}).map(([id, value]) => [Number(id), value] as const);
  if (bias.some(([id]) => id >= loaded.vocabulary))
    throw at(400, 'logit_bias', 'names a token that the model does not have');
  const json = body.response_format?.type === 'json_object';
  const most = maxTokens(call) ?? MAX_TOKENS;
  if (json && most < LEAST_JSON)
    throw at(
      400,
      'max_completion_tokens' in body ? 'max_completion_tokens' : 'max_tokens',
      `must be ${LEAST_JSON} at least: an object takes as many`,
    );
  return {
    input: asked,
    n: body.n,
    maxTokens: most,
    temperature: body.temperature,
    topP: body.top_p,
    topK: body.top_k,
    minP: body.min_p,
    seed: body.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!,
    stop: body.stop,
    session,
    ...(topLogprobs === undefined ? {} : { topLogprobs }),
    ...(bias.length > 0 ? { logitBias: new Map(bias) } : {}),
    ...(json ? { json } : {}),
  };
}

function decodingError(error: unknown, param: string): unknown {
  if (error instanceof ContextOverflow || error instanceof ChatTemplateError) {
    const { message } = error; // a sentence of its own, which says what it is about
    const code = error instanceof ContextOverflow ? { code: 'context_length_exceeded' } : {};
    return new ApiError(400, message, { errors: [{ path: param, message }], ...code });
  }
  if (error instanceof UpstreamRefusal)
    return new ApiError(400, error.message, { errors: [{ path: param, message: error.message }] });
  if (error instanceof UpstreamFailure) {
    console.error(error.message);
    return new ApiError(502, error.message, { headers: { 'Retry-After': '5' } });
  }
  if (error instanceof DecoderBusy)
    return new ApiError(429, `${error.message}: ask again in a second`, {
      code: 'decoder_busy',
      headers: { 'Retry-After': '1' },
    });
  return error;
}

async function draw({ call, spelling, asked, topLogprobs }: Drawing): Promise<Response> {
  const { c, body } = call;
  checkPage(call, asked, topLogprobs);
  const session = await sessionOf(call);
  const loaded = await resolveModel(call, session.session);
  const request = completionRequest(call, asked, topLogprobs, loaded, session.session);

  const leaving = new AbortController();
  c.req.raw.signal.addEventListener('abort', () => leaving.abort());
  if (c.req.raw.signal.aborted) leaving.abort();
  const param = 'messages' in asked ? 'messages' : 'prompt';
  const decoding = loaded.complete(request, leaving.signal)[Symbol.asyncIterator]();
  const chunks: AsyncIterator<CompletionChunk> = {
    next: () => decoding.next().catch((error) => Promise.reject(decodingError(error, param))),
    return: async () => (await decoding.return?.()) ?? { done: true, value: undefined },
  };
  // what is wrong with the prompt shows with the first chunk, while the status is still open
  const first = await chunks.next();
  const promptTokens = first.value?.type === 'prompt' ? first.value.promptTokens : 0;
  const wanted = maxTokens(call) ?? 0;
  if (promptTokens + wanted > loaded.context) {
    await chunks.return?.();
    const limit = body.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens';
    const detail = `${wanted} and a prompt of ${promptTokens} tokens exceed the context of ${loaded.context}`;
    throw at(400, limit, detail, 'context_length_exceeded');
  }
  const answering = {
    ...{ call, spelling, asked, request, session, promptTokens, chunks, leaving },
    policy: loaded.policy,
    isElsewhere: loaded.isElsewhere,
  };
  return body.stream ? streamed(answering) : whole(answering);
}

const prepare = (json: unknown) => {
  const param = unsupported(json);
  if (param) {
    const why =
      param === 'prompt' ? 'is one string here: several, or token ids, are not supported' : 'is not supported';
    throw at(400, param, why, 'unsupported_parameter');
  }
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
    errors: [404, 410],
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
    errors: [404, 410],
    handle(call) {
      const { prompt, logprobs } = call.body;
      return draw({ call, spelling: TEXT, asked: { prompt }, topLogprobs: logprobs });
    },
  }),
];
