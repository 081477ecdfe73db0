// Answers drawn from a policy as it would be served: its weights are packed into the image that the edge maps, and the decoder
// that serves there draws here, in as many threads as there are processors.

import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { packEdge, withLow } from '../schema/edge.ts';
import { RANK } from '../schema/low-rank.ts';
import type { ModelConfig } from '../schema/manifest.ts';
import type { Row } from './data.ts';
import { dispose } from './engine/compile.ts';
import { type Lora, merged, rankOf } from './lora.ts';
import type { Parameters } from './model.ts';
import { lowOf, toHuggingFace } from './weights.ts';

interface SamplingOptions {
  maxTokens: number;
  temperature: number;
}
/** The tokens drawn (the last is EOS unless the answer was cut) and their log-probabilities under the image. */
export interface Sampled {
  ids: number[];
  logprobs: number[];
}
/** The image's log-probabilities, rows × columns. */
export function drawnLogprobs(sampled: Sampled[], columns: number): Float32Array {
  const out = new Float32Array(sampled.length * columns);
  sampled.forEach(({ logprobs }, i) => {
    out.set(logprobs, i * columns);
  });
  return out;
}

/** Prompts with what was drawn to them. */
export const rowsOf = (prompts: number[][], sampled: Sampled[]): Row[] =>
  sampled.map(({ ids }, i) => ({ prompt: prompts[i]!, answer: ids }));

/** A policy under training by adapters: its image is that of its base, made once, and they. */
export interface Adapted {
  base: Parameters;
  lora: Lora;
}

/** One answer to each prompt; the same weights, prompt and seed give the same answer. */
export type Sampler = (
  policy: Parameters | Adapted,
  prompts: number[][],
  seeds: number[],
  options: SamplingOptions,
) => Promise<Sampled[]>;

export interface RolloutJob extends SamplingOptions {
  image: SharedArrayBuffer;
  prompts: number[][];
  seeds: number[];
}

/** From so many bytes of an image on, its threads end with what was drawn: what they hold would lie beside the training's memory (LOG.md). */
const HEAVY = 50e6;

/** Its threads start with the first prompts. Call `close` when done, or the process stays. */
export function startSampler(model: ModelConfig): {
  sample: Sampler;
  sampleImage: (
    image: Uint8Array,
    prompts: number[][],
    seeds: number[],
    options: SamplingOptions,
  ) => Promise<Sampled[]>;
  close: () => Promise<void>;
} {
  let threads: Worker[] = [];
  const close = async () => {
    await Promise.all(threads.map((thread) => thread.terminate()));
    threads = [];
  };

  const ask = (thread: Worker, job: RolloutJob): Promise<Sampled[]> =>
    new Promise((resolve, reject) => {
      const done = (settle: () => void) => {
        thread.off('message', onMessage).off('error', onError);
        settle();
      };
      const onMessage = (answers: Sampled[]) => done(() => resolve(answers));
      const onError = (error: Error) => done(() => reject(error));
      thread.on('message', onMessage).on('error', onError);
      thread.postMessage(job);
    });

  const sampleImage = async (image: Uint8Array, prompts: number[][], seeds: number[], options: SamplingOptions) => {
    const sharedImage = new SharedArrayBuffer(image.length);
    new Uint8Array(sharedImage).set(image);
    if (threads.length === 0)
      threads = Array.from(
        { length: availableParallelism() },
        () => new Worker(join(import.meta.dirname, 'rollout.worker.ts')),
      );
    // Every thread takes each n-th prompt, so that long and short ones spread evenly.
    const shares = threads.map((_, t) => prompts.flatMap((_, i) => (i % threads.length === t ? [i] : [])));
    const parts = await Promise.all(
      shares.map((share, t) =>
        share.length === 0
          ? []
          : ask(threads[t]!, {
              ...options,
              image: sharedImage,
              prompts: share.map((i) => prompts[i]!),
              seeds: share.map((i) => seeds[i]!),
            }),
      ),
    );
    const out: Sampled[] = new Array(prompts.length);
    shares.forEach((share, t) => {
      share.forEach((i, n) => {
        out[i] = parts[t]![n]!;
      });
    });
    if (image.length > HEAVY) await close();
    return out;
  };
  const packed = (parameters: Parameters) => packEdge(model, toHuggingFace(model, parameters), 8);
  let last: { base: Parameters; image: Uint8Array } | undefined;
  const imageOf = (policy: Parameters | Adapted): Uint8Array => {
    if (!('lora' in policy)) {
      last = undefined;
      return packed(policy);
    }
    const { base, lora } = policy;
    if (rankOf(lora) > RANK) {
      const whole = merged(base, lora);
      try {
        return packed(whole);
      } finally {
        dispose(whole);
      }
    }
    if (last?.base !== base) last = { base, image: packed(base) };
    return withLow(last.image, lowOf(model, lora));
  };
  return {
    sampleImage,
    sample: async (policy, prompts, seeds, options) => sampleImage(imageOf(policy), prompts, seeds, options),
    close,
  };
}
