// `Complete` on a decoder of this isolate: one request's choices decode side by side, in slots of their own, and between
// any two tokens the event loop runs, so that other streams go on and a cancelled one stops within a token.
import { policyEncoder } from '../../schema/chat.ts';
import type { Complete, CompletionChunk, CompletionRequest, TokenLogprob } from '../../schema/completion.ts';
import { encode, streamDecoder, type Tokenizer } from '../../schema/tokenizer.ts';
import { type Decoder, slotStarts } from './decoder.ts';
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

/** Every slot is taken, and none came free while this request waited. */
export class DecoderBusy extends Error {}

/** How long a request waits for a slot, and after how long without a token a slot's owner is given up. */
const PATIENCE_MS = 5_000;
const ABANDONED_MS = 60_000;

interface Slot {
  owner: object | null;
  touched: number;
}

/** Back to the event loop once. In workerd, setImmediate is there only with nodejs_compat. */
const tick = (): Promise<void> =>
  new Promise((resolve) => {
    if (typeof setImmediate === 'function') setImmediate(resolve);
    else setTimeout(resolve, 0);
  });

/**
 * Takes up to `most` slots, one at least. It polls, because workerd lets no request be woken by another. A platform may
 * end a request without running its `finally`; what such a one held is taken over after a while.
 */
async function takeSlots(slots: Slot[], most: number, owner: object, signal: AbortSignal): Promise<number[]> {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const now = Date.now();
    const free = [...slots.keys()].filter((i) => !slots[i]!.owner || now - slots[i]!.touched > ABANDONED_MS);
    if (free.length > 0) {
      const taken = free.slice(0, most);
      for (const i of taken) slots[i] = { owner, touched: now };
      return taken;
    }
    if (now > deadline) throw new DecoderBusy(`all ${slots.length} slots of the decoder are taken`);
    await new Promise((resolve) => setTimeout(resolve, 10));
    signal.throwIfAborted();
  }
}

/** One choice under way. */
interface Choice {
  index: number;
  slot: number;
  token: number; // the next to run
  position: number;
  ids: number[];
  next: (id?: number) => string;
  /** Text that is not out yet: it may be the beginning of a stop string. */
  text: string;
  /** Log-probabilities of its tokens, with where in the text each begins. */
  logprobs: { at: number; value: TokenLogprob }[];
}

/** How much of the end of a text could be the beginning of a stop string. */
function heldBack(text: string, stop: string[]): number {
  let most = 0;
  for (const s of stop)
    for (let n = Math.min(s.length - 1, text.length); n > most; n--) if (text.endsWith(s.slice(0, n))) most = n;
  return most;
}

export function completer(decoder: Decoder, tokenizer: Tokenizer, chatTemplate: string): Complete {
  const { config } = decoder;
  const chat = policyEncoder(tokenizer, config, chatTemplate);
  const starts = slotStarts(decoder);
  const slots: Slot[] = Array.from({ length: decoder.slots }, () => ({ owner: null, touched: 0 }));

  const describe = (id: number, logits: Float32Array, total: number) => {
    const bytes = tokenizer.bytes[id] ?? new Uint8Array();
    return { token: new TextDecoder().decode(bytes), bytes: [...bytes], logprob: logits[id]! - total };
  };

  /** Takes the next token of a choice from the i-th row of logits. */
  function advance(choice: Choice, i: number, request: CompletionRequest): CompletionChunk[] {
    const logits = decoder.logits(i);
    // Log-probabilities are the model's own: before temperature, top_p and bias.
    const raw = request.topLogprobs === undefined ? undefined : logits.slice();
    for (const [id, bias] of request.logitBias ?? []) if (id >= 0 && id < logits.length) logits[id]! += bias;
    const u = uniform(request.seed, choice.index, choice.ids.length);
    const { id } = pick(decoder, i, request.temperature, request.topP, u);
    choice.ids.push(id);
    choice.token = id;
    choice.position++;

    const ended = id === config.eos_token_id;
    if (raw && !ended) {
      const total = logSumExp(raw);
      const top = largest(raw, request.topLogprobs!).map((other) => describe(other, raw, total));
      choice.logprobs.push({ at: choice.text.length, value: { ...describe(id, raw, total), top } });
    }
    if (!ended) choice.text += choice.next(id);
    const full = choice.ids.length >= Math.min(request.maxTokens, decoder.context - promptLength(choice));
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
  const promptLength = (choice: Choice) => choice.position + 1 - choice.ids.length;

  return async function* complete(request, signal) {
    signal.throwIfAborted();
    const { input } = request;
    const prompt = 'messages' in input ? chat(input.messages) : encode(tokenizer, input.prompt);
    if (prompt.length === 0) prompt.push(config.bos_token_id ?? config.eos_token_id);
    if (prompt.length >= decoder.context) throw new ContextOverflow(prompt.length, decoder.context);

    const owner = {};
    // Never more than half of them, so that one request of many choices does not shut out the next.
    const most = Math.min(request.n, decoder.logitRows, Math.ceil(slots.length / 2));
    const taken = await takeSlots(slots, most, owner, signal);
    const rest = async () => {
      await tick();
      signal.throwIfAborted();
      const now = Date.now();
      for (const i of taken) {
        if (slots[i]!.owner !== owner) throw new DecoderBusy('this request stood still for too long and lost its slot');
        slots[i]!.touched = now;
      }
    };
    try {
      yield { type: 'prompt', promptTokens: prompt.length };
      // All but the prompt's last token, once for all choices; the last is the first that each choice runs.
      const last = prompt.length - 1;
      const first = taken[0]!;
      for (let from = 0; from < last; from += decoder.rows) {
        await rest();
        const part = prompt.slice(from, Math.min(last, from + decoder.rows));
        decoder.forward(
          part,
          [...part.keys()].map((i) => from + i),
          part.map(() => starts[first]!),
          [],
        );
      }
      for (const slot of taken.slice(1)) decoder.copy(starts[first]!, starts[slot]!, last);

      let started = 0;
      const start = (slot: number): Choice => ({
        index: started++,
        slot,
        token: prompt[last]!,
        position: last,
        ids: [],
        next: streamDecoder(tokenizer),
        text: '',
        logprobs: [],
      });
      // Where slots are fewer than choices, a slot that comes free still holds the prompt for the next.
      let choices = taken.map(start);
      while (choices.length > 0) {
        await rest();
        decoder.forward(
          choices.map((c) => c.token),
          choices.map((c) => c.position),
          choices.map((c) => starts[c.slot]!),
          choices.map((_, i) => i),
        );
        const chunks = choices.map((choice, i) => advance(choice, i, request));
        choices = choices.flatMap((choice, i) => {
          if (chunks[i]!.at(-1)?.type !== 'end') return [choice];
          return started < request.n ? [start(choice.slot)] : [];
        });
        for (const chunk of chunks.flat()) yield chunk;
      }
    } finally {
      for (const i of taken) if (slots[i]!.owner === owner) slots[i] = { owner: null, touched: 0 };
    }
  };
}
