// Whole answers, many at a time and without waiting for anything: what the trainer's rollouts and evaluations call. Slots
// are refilled as answers end, prompts run as one product with the others' tokens, and a prompt that another answer has
// run already is copied. What a sequence becomes depends on its prompt, its seed and the options alone.
import { type Decoder, slotStarts } from './decoder.ts';
import { pick, uniform } from './sample.ts';

interface GenerateOptions {
  maxTokens: number;
  /** 0 is greedy. */
  temperature: number;
  topP?: number;
  /** An answer ends with the first of these; it is the last of its ids. */
  stopIds: number[];
  /** Tokens that are never sampled, padding for one. */
  banned?: number[];
}

interface Generated {
  /** As sampled: the stop id is among them where the finish is `stop`. */
  ids: number[];
  /** Of each token, under this image at this temperature (1 where greedy), before the nucleus is cut out. */
  logprobs: number[];
  finish: 'stop' | 'length';
}

interface Sequence {
  index: number;
  slot: number;
  prompt: number[];
  /** Tokens that are in the slot's cache. */
  done: number;
  ids: number[];
  logprobs: number[];
}

export function commonPrefix(a: number[], b: number[]): number {
  const most = Math.min(a.length, b.length);
  let n = 0;
  while (n < most && a[n] === b[n]) n++;
  return n;
}

export function generateBatch(
  decoder: Decoder,
  prompts: number[][],
  { maxTokens, temperature, topP = 1, stopIds, banned = [], seeds }: GenerateOptions & { seeds: number[] },
): Generated[] {
  if (seeds.length !== prompts.length) throw new RangeError(`${seeds.length} seeds for ${prompts.length} prompts`);
  for (const [i, prompt] of prompts.entries())
    if (prompt.length < 1 || prompt.length >= decoder.context)
      throw new RangeError(`prompt ${i} has ${prompt.length} tokens; the context holds ${decoder.context}`);
  const results: Generated[] = Array.from({ length: prompts.length });
  const starts = slotStarts(decoder);
  const held: number[][] = starts.map(() => []); // tokens in each slot's cache
  const free = held.map((_, slot) => slot).reverse();
  const atOnce = Math.min(decoder.slots, decoder.logitRows);
  let active: Sequence[] = [];
  let next = 0;

  while (next < prompts.length || active.length > 0) {
    while (next < prompts.length && active.length < atOnce) {
      const prompt = prompts[next]!;
      const twin = active.find((s) => s.prompt === prompt || commonPrefix(s.prompt, prompt) === prompt.length);
      if (twin && twin.done < prompt.length - 1) break; // wait until there is something to copy
      const slot = free.pop()!;
      let from = slot;
      for (let s = 0; s < held.length; s++)
        if (commonPrefix(held[s]!, prompt) > commonPrefix(held[from]!, prompt)) from = s;
      // The last token runs again in any case: its logits are what the answer begins with.
      const done = Math.min(commonPrefix(held[from]!, prompt), prompt.length - 1);
      if (from !== slot && done > 0) decoder.copy(starts[from]!, starts[slot]!, done);
      held[slot] = prompt.slice(0, done);
      active.push({ index: next++, slot, prompt, done, ids: [], logprobs: [] });
    }

    const tokens: number[] = [];
    const positions: number[] = [];
    const begins: number[] = [];
    const wanted: number[] = [];
    const sampled: Sequence[] = [];
    // Answers under way come first, so that prompts never hold them up.
    active.sort((a, b) => Number(a.ids.length === 0) - Number(b.ids.length === 0) || a.index - b.index);
    for (const sequence of active) {
      const { prompt, ids, slot } = sequence;
      const length = prompt.length + ids.length;
      while (sequence.done < length && tokens.length < decoder.rows) {
        const token = sequence.done < prompt.length ? prompt[sequence.done]! : ids[sequence.done - prompt.length]!;
        tokens.push(token);
        positions.push(sequence.done);
        begins.push(starts[slot]!);
        held[slot]!.push(token);
        sequence.done++;
      }
      if (sequence.done === length && begins.at(-1) === starts[slot]) {
        wanted.push(tokens.length - 1);
        sampled.push(sequence);
      }
      if (tokens.length === decoder.rows) break;
    }
    decoder.forward(tokens, positions, begins, wanted);

    for (const [i, { index, slot, prompt, ids, logprobs }] of sampled.entries()) {
      if (banned.length > 0) {
        const logits = decoder.logits(i);
        for (const id of banned) logits[id] = Number.NEGATIVE_INFINITY;
      }
      const { id, logprob } = pick(decoder, i, { temperature, topP }, uniform(seeds[index]!, 0, ids.length));
      ids.push(id);
      logprobs.push(logprob);
      const stopped = stopIds.includes(id);
      if (!stopped && ids.length < maxTokens && prompt.length + ids.length < decoder.context) continue;
      results[index] = { ids, logprobs, finish: stopped ? 'stop' : 'length' };
      free.push(slot);
    }
    active = active.filter((sequence) => !results[sequence.index]);
  }
  return results;
}

export const generate = (
  decoder: Decoder,
  prompt: number[],
  { seed, ...options }: GenerateOptions & { seed: number },
) => generateBatch(decoder, [prompt], { ...options, seeds: [seed] })[0]!;
