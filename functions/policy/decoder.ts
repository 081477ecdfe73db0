// What a decoder is to those who use it: a Llama with slots of KV cache, that runs rows of tokens and gives logits. Two
// are behind it: the wasm one that serves (load.ts) and the plain one that it is tested against (reference.ts).
import type { ModelConfig } from '../../schema/manifest.ts';

export interface Decoder {
  config: ModelConfig;
  /** Positions that one slot holds. */
  context: number;
  /** Sequences in flight at once. */
  slots: number;
  /** Rows that one `forward` takes at most, and of how many of them it gives logits. */
  rows: number;
  logitRows: number;
  /**
   * Runs rows through the model: row i is token `tokens[i]` at `positions[i]` of the sequence in `slots[i]`, and sees all
   * earlier positions of its slot, those of this call included. `wanted` names the rows whose logits are to be made.
   * What comes out for a row does not depend on which rows run beside it.
   */
  forward(tokens: number[], positions: number[], slots: number[], wanted: number[]): void;
  /** Logits of the i-th wanted row, a view that holds until the next `forward`; writing to it biases what is sampled. */
  logits(i: number): Float32Array; // (V)
  /** exp((logit − the largest) / temperature) for the i-th wanted row, a view that holds until the next call. */
  weights(i: number, temperature: number): Float32Array; // (V)
  /** Copies the first positions of one slot to another: choices share the prefill of their prompt. */
  copy(from: number, to: number, positions: number): void;
}

export interface DecoderOptions {
  /** Positions a slot holds: prompt and answer together; the model's own context unless said. */
  context?: number;
  slots?: number;
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
