// What fits into an isolate's 128 MB beside an image: the pool of the cache's positions. The same arithmetic loads a policy
// (../decoder.ts a large one, ../serving.ts a small one) and refuses, when it is imported or published, one that cannot be served.
import { cacheBytes, type EdgeHeader, headerOf, isLarge } from '../../schema/edge.ts';
import type { ModelConfig } from '../../schema/manifest.ts';
import { positionBytes, workBytes } from './load.ts';

export const ISOLATE = 128e6;
const LEAST_POSITIONS = 256;

// in a slot of the decoder script

/**
 * What JavaScript's heap holds at most: the script, what comes from the bucket, requests; and by token the tokenizer, while it is read
 * beside what the policy before leaves in memory (afterwards half of it).
 */
export const heapOf = ({ vocab_size }: Pick<ModelConfig, 'vocab_size'>): number => 2.6e6 + 69 * vocab_size;
/** Choices under way at once, and rows of a call of the decoder: what a prompt may hold up the others by. */
const SLOTS = 8;
const ROWS = 32;
/** More positions than this many bytes hold are not needed for so many choices. */
const CACHE = 32e6;

// in the api's own isolate: two policies, and all else that it does

const API_CACHE = 32 * 2 ** 20;
const API_SLOTS = 16;

export interface Room {
  context: number;
  slots: number;
  rows: number;
  positions: number;
}

const mb = (n: number) => `${(n / 1e6).toFixed(1)} MB`;
const leastOf = ({ max_position_embeddings }: EdgeHeader['config']) =>
  Math.min(LEAST_POSITIONS, max_position_embeddings);

/** Throws a RangeError with the arithmetic where a policy has no room, or would have none when training has changed it. */
export function requireWorkerRoom(config: ModelConfig): void {
  if (isLarge(config)) roomInSlot(headerOf(config, 4, true));
  else roomInApi(headerOf(config, 8, false));
}

/** Of a large policy. Throws a RangeError with the arithmetic where there is none. */
export function roomInSlot({ config, bits, bytes }: EdgeHeader): Room {
  const { max_position_embeddings } = config;
  const heap = heapOf(config);
  const work = workBytes(config, bits, ROWS, SLOTS);
  const each = cacheBytes(config, bits) + positionBytes(config);
  const positions = Math.floor(Math.min(CACHE, ISOLATE - heap - bytes - work) / each / 8) * 8;
  const needed = leastOf(config);
  if (positions < needed) {
    throw new RangeError(
      `is too large to be served in a Worker: its ${bits}-bit image of ${mb(bytes)}, ${mb(heap)} of script and tokenizer, ${mb(work)} to work in and ${mb(needed * each)} for ${needed} positions make ${mb(bytes + heap + work + needed * each)}, and a Worker has ${mb(ISOLATE)}`,
    );
  }
  return { context: Math.min(max_position_embeddings, positions), slots: SLOTS, rows: ROWS, positions };
}

/** Of a small policy: as many slots as its share of memory holds, of the model's own context; where it does not hold two, two of a shorter. */
export function roomInApi({ config, bits }: EdgeHeader): Pick<Room, 'context' | 'slots'> {
  const each = cacheBytes(config, bits) + positionBytes(config);
  const positions = Math.floor(API_CACHE / each);
  const needed = 2 * leastOf(config);
  if (positions < needed)
    throw new RangeError(
      `is too large to be served in a Worker: ${needed} positions need a cache of ${mb(needed * each)}, and ${mb(API_CACHE)} are for it`,
    );
  const context = Math.min(config.max_position_embeddings, positions >> 1); // one alone, and whoever reads slowly keeps out all others
  return { context, slots: Math.min(API_SLOTS, Math.floor(positions / context)) };
}
