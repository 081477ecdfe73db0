// Which policies fit into a Worker of the decoder script, and what room they have there.
import { expect, test } from 'vitest';
import { type Place, streamedDecoder } from '../../../functions/policy/load.ts';
import { decoderModule } from '../../../functions/policy/node.ts';
import {
  heapOf,
  ISOLATE,
  noRoomBeside,
  requireWorkerRoom,
  roomInApi,
  roomInSlot,
} from '../../../functions/policy/room.ts';
import { headerOf, packEdge } from '../../../schema/edge.ts';
import type { ModelConfig } from '../../../schema/manifest.ts';
import { readPolicy } from '../../../trainer/policy.ts';
import { randomModel, tinyConfig } from '../../support/model.ts';
import { SEED_FOLDER } from '../../support/seed.ts';

/** SmolLM2-135M's shape. */
const config = tinyConfig({
  vocab_size: 49_152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  max_position_embeddings: 2048,
});
const header = (bytes: number) => ({ config, bits: 4 as const, corrected: false, bytes, tensors: [] });
const PER_POSITION = 2 * 30 * 3 * 64 * 2 + 4 * 65;

test('135 M parameters in 4 bits have a context of 896 for eight who share it: 112 for each', () => {
  const { context, positions, slots } = roomInSlot(header(98.4e6));
  expect(context).toBeGreaterThanOrEqual(896);
  expect(slots).toBe(8);
  expect(98.4e6 + 6e6 + positions * PER_POSITION).toBeLessThan(ISOLATE);
});

test('where there is more room the cache is 32 MB, and a context the model’s own', () => {
  expect(roomInSlot(header(20e6)).positions).toBe(Math.floor(32e6 / PER_POSITION / 8) * 8);
  expect(roomInSlot({ ...header(20e6), config: { ...config, max_position_embeddings: 300 } }).context).toBe(300);
});

test('what cannot be served is refused with the arithmetic', () => {
  expect(() => roomInSlot(header(114e6))).toThrow(
    /its 4-bit image of 114\.0 MB, 6\.0 MB of script and tokenizer, 2\.7 MB to work in and 6\.0 MB for 256 positions make 128\.7 MB, and a Worker has 128\.0 MB/,
  );
});

/** The memory that a policy of this shape makes an isolate have, loaded as a slot loads it; its weights never come. */
async function memoryOf(config: ModelConfig, corrected: boolean): Promise<number> {
  const { tensors } = headerOf(config, 4, corrected);
  const json = new TextEncoder().encode(JSON.stringify({ config, tensors }));
  const head = new Uint8Array(16 + json.length);
  head.set(packEdge(tinyConfig(), randomModel(tinyConfig(), 1)).subarray(0, 12));
  new DataView(head.buffer).setUint32(12, json.length, true);
  head.set(json, 16);
  async function* image() {
    yield head;
  }
  const place: Place = {};
  await expect(streamedDecoder(decoderModule(), image(), roomInSlot, place)).rejects.toThrow('ends too soon');
  return place.instance!.memory.buffer.byteLength;
}

test('whatever a policy’s shape, its memory and heap are no more than 128 MB, and one like it has room after it', async () => {
  const shapes = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((i) => [
    { ...config, num_hidden_layers: 24 + i },
    { ...config, num_hidden_layers: 23 + i, vocab_size: 50_257 + i, max_position_embeddings: 701 + i },
    { ...config, hidden_size: 512, num_hidden_layers: 24 + i, num_attention_heads: 8, num_key_value_heads: 4 },
    { ...config, hidden_size: 320, num_hidden_layers: 38 + i, vocab_size: 128_256, num_attention_heads: 6 },
  ]);
  let least = ISOLATE;
  for (const [i, shape] of shapes.entries()) {
    const held = await memoryOf(shape, i % 3 > 0);
    const left = ISOLATE - held - heapOf(shape);
    expect(left, JSON.stringify(shape)).toBeGreaterThanOrEqual(0);
    expect(noRoomBeside(held, shape.vocab_size)).toBeUndefined();
    least = Math.min(least, left);
  }
  expect(least).toBeLessThan(2 ** 16); // some fill it
});

test('the heap of few tokens is what serving takes, of many what reading them does', () => {
  expect(heapOf({ vocab_size: 1000 })).toBe(3.04e6);
  expect(heapOf({ vocab_size: 49_152 })).toBeCloseTo(2.2e6 + 77 * 49_152);
});

test('beside the memory that SmolLM2 leaves in an isolate there is room for as many tokens as it has, not for thrice as many', () => {
  const held = 121.9e6;
  expect(noRoomBeside(held, config.vocab_size)).toBeUndefined();
  expect(noRoomBeside(held, 151_936)).toBe(
    'a policy before has left 121.9 MB of memory in this isolate, which with 13.9 MB of script and tokenizer make 135.8 MB, and a Worker has 128.0 MB: an isolate that is started anew has room',
  );
  expect(noRoomBeside(60e6, 151_936)).toBeUndefined();
});

test('that training will add what rounding loses is counted from the start', () => {
  // 111.6 MB before it is trained, 114.6 after
  const deeper = { ...config, num_hidden_layers: 36 };
  expect(() => roomInSlot(headerOf(deeper, 4, false))).not.toThrow();
  expect(() => requireWorkerRoom(deeper)).toThrow(/its 4-bit image of 114\.6 MB/);
  expect(() => requireWorkerRoom(config)).not.toThrow();
});

/** The seed policy's shape but for what is changed. */
const small = (changes: object) => headerOf({ ...readPolicy(SEED_FOLDER).config, ...changes }, 8, false);

test('a small policy’s answers share 33.6 MB: sixteen of its own context at most, or two of a shorter', () => {
  expect(roomInApi(small({}))).toEqual({ context: 256, slots: 16 });
  expect(roomInApi(small({ max_position_embeddings: 1024 }))).toEqual({ context: 1024, slots: 5 });
  const each = 2 * 4 * 3 * 64 * 4 + 4 * 68;
  const longest = Math.floor((32 * 2 ** 20) / each / 2);
  expect(roomInApi(small({ max_position_embeddings: 131_072 }))).toEqual({ context: longest, slots: 2 });
  const none = small({ num_hidden_layers: 45, hidden_size: 32, intermediate_size: 32 });
  expect(() => requireWorkerRoom(none.config)).toThrow(
    /: 512 positions need a cache of 35\.5 MB, and 33\.6 MB are for it/,
  );
  expect(roomInApi({ ...none, config: { ...none.config, max_position_embeddings: 200 } }).context).toBe(200);
});
