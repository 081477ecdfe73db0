// `Complete` on a decoder of this isolate: one request's choices decode side by side, in slots of their own, and between
// any two tokens the event loop runs, so that other streams go on and a cancelled one stops within a token.
import type { Complete } from '../../schema/completion.ts';
import type { Tokenizer } from '../../schema/tokenizer.ts';
import { advance, DecoderBusy, promptEncoder, startChoice } from './choice.ts';
import { type Decoder, slotStarts } from './decoder.ts';
import { tick } from './tick.ts';

/** How long a request waits for a slot, and after how long without a token a slot's owner is given up. */
const PATIENCE_MS = 5_000;
const ABANDONED_MS = 60_000;

interface Slot {
  owner: object | null;
  touched: number;
}

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

export function completer(decoder: Decoder, tokenizer: Tokenizer, chatTemplate: string): Complete {
  const promptOf = promptEncoder(decoder, tokenizer, chatTemplate);
  const starts = slotStarts(decoder);
  const slots: Slot[] = Array.from({ length: decoder.slots }, () => ({ owner: null, touched: 0 }));

  return async function* complete(request, signal) {
    signal.throwIfAborted();
    const prompt = promptOf(request);
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
      const start = (slot: number) => ({ slot, choice: startChoice(tokenizer, request, prompt, started++) });
      // Where slots are fewer than choices, a slot that comes free still holds the prompt for the next.
      let choices = taken.map(start);
      while (choices.length > 0) {
        await rest();
        decoder.forward(
          choices.map(({ choice: { ids } }) => ids.at(-1) ?? prompt[last]!),
          choices.map(({ choice: { ids } }) => last + ids.length),
          choices.map(({ slot }) => starts[slot]!),
          choices.map((_, i) => i),
        );
        const chunks = choices.map(({ choice }, i) => advance(decoder, tokenizer, request, choice, i));
        choices = choices.flatMap((under, i) => {
          if (chunks[i]!.at(-1)?.type !== 'end') return [under];
          return started < request.n ? [start(under.slot)] : [];
        });
        for (const chunk of chunks.flat()) yield chunk;
      }
    } finally {
      for (const i of taken) if (slots[i]!.owner === owner) slots[i] = { owner: null, touched: 0 };
    }
  };
}
