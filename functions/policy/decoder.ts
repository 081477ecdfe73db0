// What a decoder is to those who use it: a Llama with a cache of keys and values, that runs rows of tokens and gives logits. Two
// are behind it: the wasm one that serves (load.ts) and the plain one that it is tested against (reference.ts).
import type { ModelConfig } from '../../schema/manifest.ts';

export interface Decoder {
  config: ModelConfig;
  /** Positions that one sequence may have. */
  context: number;
  /** Sequences in flight at once. */
  slots: number;
  /** Positions of the cache, of all sequences together. */
  positions: number;
  /** Rows that one `forward` takes at most, and of how many of them it gives logits. */
  rows: number;
  logitRows: number;
  /**
   * Runs rows through the model: row i is token `tokens[i]` at `positions[i]` of the sequence whose stretch of the cache
   * begins at `starts[i]`, a multiple of 8, and sees all earlier positions of its sequence, those of this call included.
   * `wanted` names the rows whose logits are to be made, in rising order. What comes out for a row does not depend on which rows run beside it.
   */
  forward(tokens: number[], positions: number[], starts: number[], wanted: number[]): void;
  /** Logits of the i-th wanted row, a view that holds until the next `forward`; writing to it biases what is sampled. */
  logits(i: number): Float32Array; // (V)
  /** exp((logit − the largest) / temperature) for the i-th wanted row, a view that holds until the next call. */
  weights(i: number, temperature: number): Float32Array; // (V)
  /** Copies the first positions of a sequence to another's stretch: choices share the prefill of their prompt. */
  copy(fromStart: number, toStart: number, positions: number): void;
}

/** Stretches of the cache begin at multiples of 8 and take whole eights. */
export const stretch = (positions: number): number => Math.ceil(positions / 8) * 8;

/** Where each slot begins, where every slot holds a whole context. */
export const slotStarts = ({ slots, context }: Decoder): number[] =>
  Array.from({ length: slots }, (_, slot) => slot * stretch(context));

export interface DecoderOptions {
  /** Positions a sequence may have, prompt and answer together; the model's own context unless said. */
  context?: number;
  slots?: number;
  /** Of the cache; a whole context for each slot unless said. */
  positions?: number;
  rows?: number;
}

/** Cosines and sines of RoPE, computed in float32 as transformers does. */
export function ropeTables(config: ModelConfig, context: number): { cos: Float32Array; sin: Float32Array } {
  const half = config.head_dim / 2;
  const cos = new Float32Array(context * half); // (C, H/2)
  const sin = new Float32Array(context * half); // (C, H/2)
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(1 / config.rope_theta ** (i / half));
    for (let position = 0; position < context; position++) {
      const angle = Math.fround(position * frequency);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
