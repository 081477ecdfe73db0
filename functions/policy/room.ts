// What fits into an isolate's 128 MB beside an image: the pool of the cache's positions. The same arithmetic loads a policy
// (../decoder.ts a large one, ../serving.ts a small one) and refuses, when it is imported or published, one that cannot be served.
import { cacheBytes, type EdgeHeader, headerOf, isLarge } from '../../schema/edge.ts';
import type { ModelConfig } from '../../schema/manifest.ts';
import { positionBytes, workBytes } from './load.ts';

export const ISOLATE = 128e6;
const LEAST_POSITIONS = 256;

// in a slot of the decoder script

/**
 * What JavaScript's heap holds at most: the script; and while a policy is loaded what comes from the bucket, and by token its tokenizer with
 * what reading that leaves to be collected, or while it serves requests, and by token its tokenizer and what JSON is told apart by.
 */
export const heapOf = ({ vocab_size }: Pick<ModelConfig, 'vocab_size'>): number =>
  Math.max(2.2e6 + TOKEN_READ * vocab_size, 3e6 + 40 * vocab_size);
export const TOKEN_READ = 77;
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
/** What memory takes beside its parts: they begin at multiples of 64, and its pages are whole. */
const ROUNDING = 2 ** 16 + 2 ** 13;
const leastOf = ({ max_position_embeddings }: EdgeHeader['config']) =>
  Math.min(LEAST_POSITIONS, max_position_embeddings);

/** Throws a RangeError with the arithmetic where a policy has no room, or would have none when training has changed it. */
export function requireWorkerRoom(config: ModelConfig): void {
  if (isLarge(config)) roomInSlot(headerOf(config, 4, true));
  else roomInApi(headerOf(config, 8, false));
}

/**
 * What a former policy made an isolate's memory stays: one with more tokens may have room in another isolate alone.
 * @param held bytes of it
 * @returns the arithmetic, where there is no room
 */
export function noRoomBeside(held: number, vocab_size: number): string | undefined {
  const heap = heapOf({ vocab_size });
  return held + heap <= ISOLATE
    ? undefined
    : `a policy before has left ${mb(held)} of memory in this isolate, which with ${mb(heap)} of script and tokenizer make ${mb(held + heap)}, and a Worker has ${mb(ISOLATE)}: an isolate that is started anew has room`;
}

/** Of a large policy. Throws a RangeError with the arithmetic where there is none. */
export function roomInSlot({ config, bits, bytes }: EdgeHeader): Room {
  const { max_position_embeddings } = config;
  const heap = heapOf(config);
  const work = workBytes(config, bits, ROWS, SLOTS) + ROUNDING;
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
