// One choice of a completion under way: it takes a token from each row of logits that is made for it, and gives the text
// that is certain, so that no piece ends inside a character or holds part of a stop string.
import { policyEncoder } from '../../schema/chat.ts';
import type { CompletionChunk, CompletionRequest, TokenLogprob } from '../../schema/completion.ts';
import { encode, streamDecoder, type Tokenizer } from '../../schema/tokenizer.ts';
import type { Decoder } from './decoder.ts';
import { isWhole, type JsonState, jsonStart, LEAST_JSON, maskJson, takeToken } from './json.ts';
import { largest, logSumExp, pick, uniform } from './sample.ts';

/** The prompt leaves no room for an answer. */
export class ContextOverflow extends Error {
  readonly promptTokens: number;
  readonly context: number;
  constructor(promptTokens: number, context: number) {
    super(`the prompt has ${promptTokens} tokens; with at least one of an answer the context holds ${context}`);
    this.promptTokens = promptTokens;
    this.context = context;
  }
}

/** There is no room for this request, and none came free while it waited; the message is for whoever asked. */
export class DecoderBusy extends Error {}

/** A request's prompt in tokens, one at least. */
export function promptEncoder({ config, context }: Decoder, tokenizer: Tokenizer, chatTemplate: string) {
  const chat = policyEncoder(tokenizer, config, chatTemplate);
  return ({ input, json }: CompletionRequest): number[] => {
    const prompt = 'messages' in input ? chat(input.messages) : encode(tokenizer, input.prompt);
    if (prompt.length === 0) prompt.push(config.bos_token_id ?? config.eos_token_id);
    if (prompt.length + (json ? LEAST_JSON : 1) > context) throw new ContextOverflow(prompt.length, context);
    return prompt;
  };
}

export interface Choice {
  index: number;
  prompt: number[];
  ids: number[];
  /** Bytes of a token to text, half a character kept back; without one, what is left. */
  next: (id?: number) => string;
  /** Text that is not out yet: it may be the beginning of a stop string. */
  text: string;
  /** How far its object has come, where it is to be one. */
  json: JsonState | undefined;
  /** Log-probabilities of its tokens, with where in the text each begins. */
  logprobs: { at: number; value: TokenLogprob }[];
}

export const startChoice = (
  tokenizer: Tokenizer,
  { json }: CompletionRequest,
  prompt: number[],
  index: number,
): Choice => ({
  index,
  prompt,
  ids: [],
  next: streamDecoder(tokenizer),
  text: '',
  json: json ? jsonStart() : undefined,
  logprobs: [],
});

/** How much of the end of a text could be the beginning of a stop string. */
function heldBack(text: string, stop: string[]): number {
  let most = 0;
  for (const s of stop)
    for (let n = Math.min(s.length - 1, text.length); n > most; n--) if (text.endsWith(s.slice(0, n))) most = n;
  return most;
}

function describe(tokenizer: Tokenizer, id: number, logits: Float32Array, total: number) {
  const bytes = tokenizer.bytesOf(id) ?? new Uint8Array();
  return { token: new TextDecoder().decode(bytes), bytes: [...bytes], logprob: logits[id]! - total };
}

/** Takes a choice's next token from the i-th row of logits. */
export function advance(
  decoder: Decoder,
  tokenizer: Tokenizer,
  request: CompletionRequest,
  choice: Choice,
  i: number,
): CompletionChunk[] {
  const { config, context } = decoder;
  const logits = decoder.logits(i);
  // Log-probabilities are the model's own: before temperature, top_p and bias.
  const raw = request.topLogprobs === undefined ? undefined : logits.slice();
  for (const [id, bias] of request.logitBias ?? []) if (id >= 0 && id < logits.length) logits[id]! += bias;
  const most = Math.min(request.maxTokens, context - choice.prompt.length);
  if (choice.json) maskJson(logits, choice.json, tokenizer, most - choice.ids.length);
  const u = uniform(request.seed, choice.index, choice.ids.length);
  const { id } = pick(decoder, i, request, u);
  choice.ids.push(id);

  if (choice.json) takeToken(choice.json, tokenizer, id);
  const isEos = id === config.eos_token_id;
  const ended = isEos || (choice.json !== undefined && isWhole(choice.json));
  if (raw && !isEos) {
    const total = logSumExp(raw);
    const top = largest(raw, request.topLogprobs!).map((other) => describe(tokenizer, other, raw, total));
    choice.logprobs.push({ at: choice.text.length, value: { ...describe(tokenizer, id, raw, total), top } });
  }
  if (!isEos) choice.text += choice.next(id);
  const full = choice.ids.length >= most;
  if (ended || full) choice.text += choice.next(); // half a character becomes U+FFFD
  const found = request.stop.map((s) => choice.text.indexOf(s)).filter((at) => at >= 0);
  const stopped = found.length > 0;
  const done = ended || stopped || full;
  const out = stopped ? Math.min(...found) : choice.text.length - (done ? 0 : heldBack(choice.text, request.stop));

  const chunks: CompletionChunk[] = [];
  // A token that has written nothing yet (half a character) goes with the one that finishes it.
  const ready = choice.logprobs.filter(({ at }) => at < out || (done && !stopped)).map(({ value }) => value);
  if (out > 0 || ready.length > 0)
    chunks.push({
      type: 'text',
      index: choice.index,
      text: choice.text.slice(0, out),
      ...(raw ? { logprobs: ready } : {}),
    });
  choice.logprobs = choice.logprobs.filter(({ at }) => at >= out).map(({ at, value }) => ({ at: at - out, value }));
  choice.text = choice.text.slice(out);
  if (done)
    chunks.push({
      type: 'end',
      index: choice.index,
      finishReason: ended || stopped ? 'stop' : 'length',
      completionTokens: choice.ids.length,
    });
  return chunks;
}
