// The wasm decoder beside its oracle, both builds, on models of odd shapes; and what a batch must not change.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { Decoder } from '../../../functions/policy/decoder.ts';
import { generate, generateBatch } from '../../../functions/policy/generate.ts';
import { type Place, positionBytes, streamedDecoder, workBytes } from '../../../functions/policy/load.ts';
import { decoderModule, loadDecoder } from '../../../functions/policy/node.ts';
import { referenceDecoder } from '../../../functions/policy/reference.ts';
import { argmax, logSumExp } from '../../../functions/policy/sample.ts';
import {
  cacheBytes,
  type EdgeHeader,
  headerBytes,
  type Low,
  packEdge,
  readEdge,
  unpackEdge,
  withLow,
} from '../../../schema/edge.ts';
import type { ModelConfig } from '../../../schema/manifest.ts';
import { readTensors } from '../../../schema/safetensors.ts';
import { openGguf, tensorsOf } from '../../../trainer/import/from-gguf.ts';
import { smollm2 } from '../../../trainer/import/smollm2.ts';
import { readPolicy } from '../../../trainer/policy.ts';
import { random } from '../../../trainer/random.ts';
import { randomModel, randomNumbers, tinyConfig } from '../../support/model.ts';
import { seedPolicy } from '../../support/seed.ts';

const builds = ['relaxed', 'plain'] as const;

/** Log-probabilities may differ from float32 on the same rounded weights by this: activations of 16 bits cost that much, and those of 8 bits. */
const BOUND = { 8: 1e-3, 4: 0.25 };
/** And this much from float32 on the weights before they were rounded, on the random models below: the wider weights are spread, the more. */
const BOUND_FLOAT32 = { 8: 0.25, 4: 4 };

const shapes: [string, Partial<ModelConfig>][] = [
  [
    'a head, a layer, a block',
    { hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 1, vocab_size: 8 },
  ],
  ['a vocabulary of 301, tied', { vocab_size: 301 }],
  ['a head of its own', { vocab_size: 99, tie_word_embeddings: false }],
  [
    'as many key-value heads as heads',
    { num_attention_heads: 3, num_key_value_heads: 3, hidden_size: 192, intermediate_size: 512 },
  ],
  ['five heads on one key-value head', { num_attention_heads: 5, num_key_value_heads: 1, hidden_size: 96 }],
  [
    'six on two, hidden wider than heads',
    { num_attention_heads: 6, num_key_value_heads: 2, hidden_size: 416, intermediate_size: 160 },
  ],
  ['an inner size that is no multiple of a block', { intermediate_size: 75 }],
  [
    'biases on queries, keys and values',
    { architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', num_attention_heads: 3, num_key_value_heads: 1 },
  ],
  [
    'norms on heads of queries and keys, a head of its own',
    { architectures: ['Qwen3ForCausalLM'], model_type: 'qwen3', num_attention_heads: 4, tie_word_embeddings: false },
  ],
  ['another base, epsilon and context', { rope_theta: 500_000, rms_norm_eps: 1e-3, max_position_embeddings: 37 }],
  ...Array.from({ length: 6 }, (_, i) => drawnShape(i)),
];

function drawnShape(seed: number): [string, Partial<ModelConfig>] {
  const rng = random(seed, 'shape');
  const num_key_value_heads = rng.int(1, 4);
  const shape = {
    vocab_size: rng.int(8, 600),
    hidden_size: 32 * rng.int(1, 14),
    intermediate_size: rng.int(1, 500),
    num_hidden_layers: rng.int(1, 4),
    num_attention_heads: num_key_value_heads * rng.int(1, 5),
    num_key_value_heads,
    tie_word_embeddings: rng.int(0, 2) === 0,
  };
  return [Object.values(shape).join(' '), shape];
}

function logprobs(decoder: Decoder, ids: number[]): number[] {
  const out: number[] = [];
  for (const [i, id] of ids.entries()) {
    decoder.forward([id], [i], [0], [0]);
    const logits = decoder.logits(0);
    const total = logSumExp(logits);
    for (const v of logits) out.push(v - total);
  }
  return out;
}
const worst = (a: number[], b: number[]) => a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i]!)), 0);

const cases = shapes.flatMap(([name, over]) => ([8, 4] as const).map((bits) => [name, bits, over] as const));
/** What training by adapters makes of a model whose weights lie on the steps of 4 bits: a change of low rank, small beside them. */
function adapted(config: ModelConfig): Uint8Array {
  const { tensors } = unpackEdge(packEdge(config, randomModel(config, 11), 4));
  const random = randomNumbers(7);
  for (const [name, { shape, data }] of tensors) {
    if (!name.includes('_proj.weight')) continue;
    const [rows, cols] = shape as [number, number];
    const u = Float32Array.from({ length: rows }, () => random() - 0.5);
    const v = Float32Array.from({ length: cols }, () => random() - 0.5);
    const most = data.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    tensors.set(name, { shape, data: data.map((x, i) => x + 0.05 * most * u[Math.floor(i / cols)]! * v[i % cols]!) });
  }
  return packEdge(config, tensors, 4);
}

/** The same image with its corrections so many times as large. */
function exaggerated(image: Uint8Array, times: number): Uint8Array {
  const out = image.slice();
  const { config, tensors } = readEdge(out);
  const view = new DataView(out.buffer, headerBytes(out));
  const [q, kv] = [config.num_attention_heads, config.num_key_value_heads].map((heads) => 64 * heads) as [
    number,
    number,
  ];
  for (const { kind, name, rows, cols, offset } of tensors) {
    if (kind !== 'low') continue;
    const parts = name.includes('qkv') ? [q, kv, kv] : name.includes('gate_up') ? [rows / 2, rows / 2] : [rows];
    let at = offset;
    for (const own of parts) {
      for (let j = 0; j < 8; j++) view.setFloat32(at + 4 * j, times * view.getFloat32(at + 4 * j, true), true);
      at += 8 * (4 + cols + own);
    }
  }
  return out;
}

test.each(shapes.slice(1))('%s: in 4 bits what rounding would have lost is there as the oracle has it', (_, over) => {
  const config = tinyConfig({ hidden_size: 192, ...over });
  const image = adapted(config);
  expect(readEdge(image).corrected).toBe(true);
  const ids = Array.from({ length: 30 }, (_, i) => (7 * i) % config.vocab_size);
  // so many times that it is far above what rounded activations cost
  const [without, with_] = [0, 30].map((times) => exaggerated(image, times)) as [Uint8Array, Uint8Array];
  const change = (of: (image: Uint8Array) => Decoder) => {
    const old = logprobs(of(without), ids);
    return logprobs(of(with_), ids).map((v, i) => v - old[i]!);
  };
  const size = (of: number[]) => Math.sqrt(of.reduce((sum, v) => sum + v * v, 0) / of.length);
  const theirs = change((image) => referenceDecoder(config, unpackEdge(image).tensors));
  for (const build of builds) {
    const ours = change((image) => loadDecoder(image, { build }));
    expect(size(ours.map((v, i) => v - theirs[i]!))).toBeLessThan(0.05 * size(theirs));
  }
});

test.each(shapes.slice(1))(
  '%s: in 8 bits with sums of low rank added it is what the oracle says of both',
  (_, over) => {
    const config = tinyConfig({ hidden_size: 192, ...over });
    const plain = packEdge(config, randomModel(config, 11), 8);
    const random = randomNumbers(7);
    const sums = new Map<string, Low>();
    const expected = unpackEdge(plain).tensors;
    for (const [name, { shape, data }] of expected) {
      if (!name.includes('_proj.weight')) continue;
      const [rows, cols] = shape as [number, number];
      const [u, v] = [rows, cols].map((n) => Float32Array.from({ length: n * 8 }, () => (random() - 0.5) / 8)) as [
        Float32Array,
        Float32Array,
      ];
      sums.set(name, { u, v });
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < cols; c++)
          for (let j = 0; j < 8; j++) data[r * cols + c] = data[r * cols + c]! + u[r * 8 + j]! * v[c * 8 + j]!;
    }
    const image = withLow(plain, sums);
    for (const [name, { data }] of unpackEdge(image).tensors)
      expect(worst([...data], [...expected.get(name)!.data])).toBeLessThan(2e-4); // eight products of numbers rounded to a 127th
    const ids = Array.from({ length: 30 }, (_, i) => (7 * i) % config.vocab_size);
    const theirs = logprobs(referenceDecoder(config, unpackEdge(image).tensors), ids);
    for (const build of builds)
      expect(worst(logprobs(loadDecoder(image, { build }), ids), theirs)).toBeLessThan(BOUND[8]);
    expect(() => withLow(image, sums)).toThrow('has corrections already');
  },
);

test.each(builds)('in 4 bits the cache keeps the nearest numbers of 16 bits (%s)', (build) => {
  // Nothing else is rounded here: all activations of a block are of one size, and matrices have one number besides 0.
  const config = tinyConfig({ num_hidden_layers: 1, num_attention_heads: 1, vocab_size: 32, rms_norm_eps: 1e-9 });
  const random = randomNumbers(8);
  for (const size of [1.003, 1.0045, 1.006]) {
    const tensors = randomModel(config, 3);
    for (const [name, { data }] of tensors) data.fill(name.includes('norm') ? 1 : 0);
    const embedding = tensors.get('model.embed_tokens.weight')!.data;
    for (let i = 0; i < embedding.length; i++) embedding[i] = random() < 0.5 ? -1 : 1;
    const value = tensors.get('model.layers.0.self_attn.v_proj.weight')!.data; // (H, D)
    const out = tensors.get('model.layers.0.self_attn.o_proj.weight')!.data; // (D, H)
    for (let i = 0; i < 64; i++) value[65 * i] = size;
    for (let i = 0; i < 32; i++) out[65 * i] = 1; // of half of what there is, so that its size tells
    const image = packEdge(config, tensors, 4);
    const { tensors: unpacked } = unpackEdge(image);
    const held = unpacked.get('model.layers.0.self_attn.v_proj.weight')!.data;
    held.set(held.map((v) => Math.round(v * 128) / 128)); // of numbers from 1 to 2
    const [ours, oracle] = [loadDecoder(image, { build }), referenceDecoder(config, unpacked)].map((decoder) => {
      decoder.forward([5], [0], [0], [0]);
      return [...decoder.logits(0)];
    }) as [number[], number[]];
    expect(worst(ours, oracle)).toBeLessThan(1e-3);
  }
});

describe.each(cases)('%s, %i bits', (_, bits, over) => {
  const config = tinyConfig(over);
  const tensors = randomModel(config, 11);
  const image = packEdge(config, tensors, bits);
  const unpacked = unpackEdge(image);
  const oracle = referenceDecoder(config, unpacked.tensors);
  const random = randomNumbers(5);
  const ids = Array.from({ length: 36 }, () => Math.floor(random() * config.vocab_size));

  test.each(builds)('log-probabilities (%s) are those of the oracle', (build) => {
    const ours = logprobs(loadDecoder(image, { build }), ids);
    expect(ours.every(Number.isFinite)).toBe(true);
    expect(worst(ours, logprobs(oracle, ids))).toBeLessThan(BOUND[bits]);
    expect(worst(ours, logprobs(referenceDecoder(config, tensors), ids))).toBeLessThan(BOUND_FLOAT32[bits]);
  });

  test.each(builds)(
    'greedy ids (%s) are the oracle’s: exactly in 8 bits, in 4 as far as they can be told apart',
    (build) => {
      const options = { maxTokens: 24, temperature: 0, stopIds: [], seed: 0 };
      const prompt = ids.slice(0, 9);
      const ours = generate(loadDecoder(image, { build }), prompt, options);
      expect(ours.ids.length).toBe(24);
      if (bits === 8) {
        const theirs = generate(oracle, prompt, options);
        expect(ours.ids).toEqual(theirs.ids);
        expect(worst(ours.logprobs, theirs.logprobs)).toBeLessThan(BOUND[bits]);
        return;
      }
      const known = logprobs(oracle, [...prompt, ...ours.ids.slice(0, -1)]);
      const V = config.vocab_size;
      for (const [i, id] of ours.ids.entries()) {
        const row = known.slice((prompt.length - 1 + i) * V, (prompt.length + i) * V);
        expect(Math.max(...row) - row[id]!).toBeLessThan(2 * BOUND[bits]);
        expect(Math.abs(ours.logprobs[i]! - row[id]!)).toBeLessThan(BOUND[bits]);
      }
    },
  );

  test('a prompt run at once, in parts, or token by token gives the same bits', () => {
    const results = [64, 5, 4, 3, 2, 1].map((rows) => {
      const decoder = loadDecoder(image, { rows });
      for (let from = 0; from < ids.length; from += rows) {
        const part = ids.slice(from, from + rows);
        decoder.forward(
          part,
          part.map((_, i) => from + i),
          part.map(() => 0),
          [part.length - 1],
        );
      }
      return Array.from(decoder.logits(0));
    });
    for (const result of results) expect(result).toEqual(results[0]);
  });
});

const kinds = builds.flatMap((build) => ([8, 4] as const).map((bits) => [build, bits] as const));
describe.each(kinds)('many sequences (%s, %i bits)', (build, bits) => {
  const config = tinyConfig({ num_attention_heads: 3, num_key_value_heads: 3, hidden_size: 96, vocab_size: 203 });
  const image = packEdge(config, randomModel(config, 3), bits);
  const random = randomNumbers(8);
  const prompts = Array.from({ length: 23 }, (_, i) =>
    // Some are the same, some begin alike, one is a single token.
    i % 5 === 4
      ? [7]
      : Array.from({ length: 2 + Math.floor(random() * 30) }, (_, k) => (k < 4 ? k : Math.floor(random() * 203))),
  );
  prompts.push(prompts[2]!, [...prompts[2]!], prompts[2]!);
  const seeds = prompts.map((_, i) => i * 1_000_003);
  const options = { maxTokens: 40, temperature: 1, topP: 0.95, stopIds: [1, 9, 17], banned: [0, 4, 5] };

  test('each is what it would be alone, whatever the number of slots and rows', () => {
    const alone = prompts.map((prompt, i) =>
      generate(loadDecoder(image, { build }), prompt, { ...options, seed: seeds[i]! }),
    );
    expect(alone.some((g) => g.finish === 'stop')).toBe(true);
    expect(alone.some((g) => g.finish === 'length')).toBe(true);
    for (const [slots, rows] of [
      [1, 64],
      [3, 4],
      [16, 64],
      [26, 26],
      [40, 33],
    ])
      expect(
        generateBatch(loadDecoder(image, { build, slots: slots!, rows: rows! }), prompts, { ...options, seeds }),
      ).toEqual(alone);
    for (const { ids, finish } of alone) {
      expect(ids.some((id) => options.banned.includes(id))).toBe(false);
      expect(ids.slice(0, -1).some((id) => options.stopIds.includes(id))).toBe(false);
      expect(options.stopIds.includes(ids.at(-1)!)).toBe(finish === 'stop');
    }
  });

  // With activations of 8 bits a hair's breadth is wide enough to draw another token.
  if (bits === 8)
    test('the oracle gives the same answers', () => {
      const { tensors } = unpackEdge(image);
      const oracle = referenceDecoder(config, tensors, { slots: 8 });
      // top_p is left out: a hair's breadth at the nucleus's edge would move every later choice.
      const few = { ...options, topP: 1, maxTokens: 12 };
      const some = { ...few, seeds: seeds.slice(0, 10) };
      const theirs = generateBatch(oracle, prompts.slice(0, 10), some);
      const ours = generateBatch(loadDecoder(image, { build, slots: 8 }), prompts.slice(0, 10), some);
      expect(ours.map(({ ids }) => ids)).toEqual(theirs.map(({ ids }) => ids));
    });

  test('sequences lie in stretches of any length, and what is copied to another goes on as in its own', () => {
    const decoder = loadDecoder(image, { build, slots: 3, positions: 56 });
    const alone = (ids: number[]) => {
      const own = loadDecoder(image, { build });
      own.forward(ids, [...ids.keys()], Array(ids.length).fill(0), [ids.length - 1]);
      return own.logits(0).slice();
    };
    const [a, b] = [
      [3, 9, 27, 81, 40, 120, 7, 21, 63],
      [5, 25, 125],
    ];
    // 16 positions from 40 on for one, 8 from 0 on for the other, their rows in turn
    decoder.forward([...a.slice(0, 8), ...b], [...a.slice(0, 8).keys(), 0, 1, 2], [...Array(8).fill(40), 0, 0, 0], []);
    decoder.copy(40, 16, 5);
    decoder.forward([a[8]!, b[2]!, 11], [8, 2, 5], [40, 0, 16], [0, 1, 2]);
    expect(decoder.logits(0)).toEqual(alone(a));
    expect(decoder.logits(1)).toEqual(alone(b));
    expect(decoder.logits(2)).toEqual(alone([...a.slice(0, 5), 11]));
    expect([decoder.positions, decoder.slots]).toEqual([56, 3]);
  });

  test('four rows run as one only where they are one sequence’s tokens in a row', () => {
    const decoder = loadDecoder(image, { build, slots: 8, positions: 64 });
    const one = [3, 9, 27, 81, 40, 120, 7, 21, 63, 2, 11, 5];
    const sequences = { 0: one, 32: [...one].reverse() };
    for (const [start, ids] of Object.entries(sequences))
      decoder.forward(ids, [...ids.keys()], Array(ids.length).fill(Number(start)), []);
    for (const rows of [
      [3, 4, 6, 7, 8, 9, 10, 11].map((position): [0 | 32, number] => [0, position]),
      [1, 2, 3, 4, 5, 6, 7, 8].map((position, i): [0 | 32, number] => [i < 2 || i > 4 ? 0 : 32, position]),
    ]) {
      decoder.forward(
        rows.map(([start, position]) => sequences[start][position]!),
        rows.map(([, position]) => position),
        rows.map(([start]) => start),
        [...rows.keys()],
      );
      for (const [i, [start, position]] of rows.entries()) {
        const own = loadDecoder(image, { build });
        const ids = sequences[start].slice(0, position + 1);
        own.forward(ids, [...ids.keys()], Array(ids.length).fill(0), [position]);
        expect(decoder.logits(i)).toEqual(own.logits(0));
      }
    }
  });

  test('a token that may not come has no weight at all', () => {
    const decoder = loadDecoder(image, { build });
    decoder.forward([3], [0], [0], [0]);
    decoder.logits(0)[5] = Number.NEGATIVE_INFINITY;
    const weights = decoder.weights(0, 0.5);
    expect(weights[5]).toBe(0);
    expect(weights.filter((weight) => weight === 0).length).toBe(1);
  });

  test('another image loaded in place is that policy; one of another shape is refused', () => {
    const other = packEdge(config, randomModel(config, 4), bits);
    const decoder = loadDecoder(image, { build, slots: 4 });
    generateBatch(decoder, prompts, { ...options, seeds });
    const before = decoder.memoryBytes;
    decoder.load(other);
    const fresh = loadDecoder(other, { build, slots: 4 });
    expect(generateBatch(decoder, prompts, { ...options, seeds })).toEqual(
      generateBatch(fresh, prompts, { ...options, seeds }),
    );
    expect(decoder.memoryBytes).toBe(before);
    const wider = tinyConfig({ vocab_size: 204 });
    expect(() => decoder.load(packEdge(wider, randomModel(wider, 1), bits))).toThrow(
      'an image with another vocab_size',
    );
    const coarser = packEdge(config, randomModel(config, 4), bits === 4 ? 8 : 4);
    expect(() => decoder.load(coarser)).toThrow(`cannot take the place of one of ${bits}`);
  });

  test('the context ends an answer, and a prompt that fills it is refused', () => {
    const decoder = loadDecoder(image, { build, context: 21 });
    const free = { maxTokens: 99, temperature: 1, stopIds: [], seed: 1 };
    const prompt = Array.from({ length: 20 }, (_, i) => i);
    expect(generate(decoder, prompt.slice(0, 6), free)).toMatchObject({ finish: 'length', ids: { length: 15 } });
    expect(generate(decoder, prompt, free).ids.length).toBe(1);
    expect(() => generate(decoder, [...prompt, 3], free)).toThrow('21 tokens; the context holds 21');
  });

  test('what is outside of the model never reaches the kernels', () => {
    const decoder = loadDecoder(image, { build, slots: 2, context: 32, rows: 4 });
    expect(() => decoder.forward([203], [0], [0], [])).toThrow('token 203 of 203');
    expect(() => decoder.forward([-1], [0], [0], [])).toThrow('token -1');
    expect(() => decoder.forward([Number.NaN], [0], [0], [])).toThrow('token NaN');
    expect(() => decoder.forward([1], [32], [0], [])).toThrow('position 32 of 32');
    expect(() => decoder.forward([1], [0], [64], [])).toThrow('position 0 of a stretch that begins at 64 of 64');
    expect(() => decoder.forward([1], [8], [56], [])).toThrow('position 8 of a stretch that begins at 56 of 64');
    expect(() => decoder.forward([1], [0], [4], [])).toThrow('begins at 4');
    expect(() => decoder.forward([1], [0], [-8], [])).toThrow('begins at -8');
    expect(() => decoder.forward([1], [0], [0], [1])).toThrow('row 1 of 1');
    expect(() => decoder.forward([1, 2], [0, 1], [0, 0], [1, 0])).toThrow('row 0 after row 1: not in rising order');
    expect(() => decoder.forward([1, 1, 1, 1, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [])).toThrow(
      '5 rows, of at most 4',
    );
  });
});

test('more memory than there is is refused before any is taken', () => {
  const config = tinyConfig({ max_position_embeddings: 1_000_000 });
  const image = packEdge(config, randomModel(config, 1));
  expect(() => loadDecoder(image, { slots: 64 })).toThrow('64 slots of 1000000 positions need');
});

test('memory is weights, cache and little else, and does not grow', () => {
  const config = tinyConfig({
    vocab_size: 1024,
    hidden_size: 192,
    intermediate_size: 512,
    num_hidden_layers: 4,
    num_attention_heads: 3,
    num_key_value_heads: 3,
    max_position_embeddings: 256,
  });
  const image = packEdge(config, randomModel(config, 1));
  const decoder = loadDecoder(image, { slots: 16 });
  const cache = 16 * 4 * 3 * 64 * 256 * 4 * 2;
  expect(decoder.memoryBytes).toBeLessThan(image.length + cache + 2 ** 20);
  const prompts = Array.from({ length: 40 }, (_, i) =>
    Array.from({ length: 1 + (i % 60) }, (_, k) => (k * 7 + i) % 1024),
  );
  generateBatch(decoder, prompts, { maxTokens: 60, temperature: 1, stopIds: [1], seeds: prompts.map((_, i) => i) });
  decoder.forward([1], [0], [0], [0]);
  expect(argmax(decoder.logits(0))).toBeLessThan(1024);
  expect(decoder.memoryBytes).toBeLessThan(image.length + cache + 2 ** 20);
});

test.each([8, 4] as const)('memory is what it was counted to be, within two pages (%i bits)', (bits) => {
  const config = tinyConfig({
    vocab_size: 1024,
    hidden_size: 192,
    intermediate_size: 4096,
    max_position_embeddings: 2048,
  });
  const image = packEdge(config, randomModel(config, 1), bits);
  const { bytes } = readEdge(image);
  const counted = bytes + workBytes(config, bits, 32, 8) + 2048 * (cacheBytes(config, bits) + positionBytes(config));
  const taken = loadDecoder(image, { slots: 8, rows: 32, positions: 2048 }).memoryBytes;
  expect(Math.abs(taken - counted)).toBeLessThan(2 ** 17);
});

test.each([0, 0.7, 1])(
  'log-probabilities of what was sampled at temperature %d are those of its distribution',
  (temperature) => {
    const config = tinyConfig({ vocab_size: 120 });
    const decoder = loadDecoder(packEdge(config, randomModel(config, 2)), { slots: 3 });
    const prompts = [[3, 4], [5], [3, 4, 6, 7]];
    const banned = [0, 11];
    const options = { maxTokens: 20, temperature, topP: 0.9, stopIds: [1], banned, seeds: [1, 2, 3] };
    for (const [i, { ids, logprobs: given }] of generateBatch(decoder, prompts, options).entries()) {
      expect(given.length).toBe(ids.length);
      const sequence = [...prompts[i]!];
      for (const [k, id] of ids.entries()) {
        decoder.forward(
          sequence,
          sequence.map((_, p) => p),
          sequence.map(() => 0),
          [sequence.length - 1],
        );
        const logits = decoder
          .logits(0)
          .map((v, token) => (banned.includes(token) ? Number.NEGATIVE_INFINITY : v / (temperature || 1)));
        expect(given[k]).toBeCloseTo(logits[id]! - logSumExp(logits), 4);
        sequence.push(id);
      }
    }
  },
);

test('a prompt that many answers share runs once, and what prompts begin with in common too', () => {
  const config = tinyConfig();
  const decoder = loadDecoder(packEdge(config, randomModel(config, 2)), { slots: 4 });
  let rows = 0;
  const { forward } = decoder;
  decoder.forward = (...args) => {
    rows += args[0].length;
    forward(...args);
  };
  const prompt = Array.from({ length: 30 }, (_, i) => i + 2);
  const prompts = [...Array.from({ length: 6 }, () => [...prompt]), [...prompt.slice(0, 20), 90, 91]];
  const options = { maxTokens: 5, temperature: 1, stopIds: [], seeds: prompts.map((_, i) => i) };
  expect(generateBatch(decoder, prompts, options).every(({ ids }) => ids.length === 5)).toBe(true);
  // The prompt, the last one's own end, each further answer's last prompt token, and four tokens of each answer.
  expect(rows).toBe(30 + 5 + 2 + 7 * 4);
});

test.each(builds)('the seed policy answers greedily as transformers does in float32, token for token (%s)', (build) => {
  const { folder, policy } = seedPolicy();
  const decoder = loadDecoder(packEdge(policy.config, readTensors(readFileSync(`${folder}/model.safetensors`)), 8), {
    build,
  });
  const golden: { text: string; prompt: number[]; ids: number[]; logprobs: number[] }[] = JSON.parse(
    readFileSync(join(import.meta.dirname, '../../golden/greedy.json'), 'utf8'),
  );
  for (const { text, prompt, ids, logprobs } of golden) {
    expect(policy.encodePrompt([{ role: 'user', content: text }])).toEqual(prompt);
    const options = { maxTokens: ids.length, temperature: 0, stopIds: [policy.config.eos_token_id], seed: 0 };
    const ours = generate(decoder, prompt, options);
    expect(ours.ids).toEqual(ids);
    expect(worst(ours.logprobs, logprobs)).toBeLessThan(0.02);
  }
  expect(golden.flatMap(({ ids }) => ids).length).toBeGreaterThan(200);
});

test.each(builds)('gates far below zero are shut, and of logits far apart the largest weighs all (%s)', (build) => {
  const config = tinyConfig({ tie_word_embeddings: false });
  const tensors = randomModel(config, 5);
  for (const [name, { shape, data }] of tensors) {
    const times = name.includes('gate_proj') ? 2000 : name === 'lm_head.weight' ? 300 : 1;
    tensors.set(name, { shape, data: data.map((x) => times * x) });
  }
  const image = packEdge(config, tensors, 8);
  const decoder = loadDecoder(image, { build });
  const ids = [5, 7, 200, 31];
  const expected = logprobs(referenceDecoder(config, unpackEdge(image).tensors), ids);
  expect(Math.min(...expected)).toBeLessThan(-200);
  expect(worst(logprobs(decoder, ids), expected)).toBeLessThan(0.001 * -Math.min(...expected));
  const logits = decoder.logits(0);
  const largest = Math.max(...logits);
  const weights = decoder.weights(0, 1);
  for (const [token, logit] of logits.entries()) expect(weights[token]).toBeCloseTo(Math.exp(logit - largest), 5);
});

/** On SmolLM2 and its own answers, in nats: how far a token's log-probability is from transformers' in float32 in the mean, and at most. */
const BOUND_SMOLLM2 = { 8: { mean: 0.03, most: 0.3 }, 4: { mean: 0.045, most: 0.35 } };

test.each([8, 4] as const)(
  'SmolLM2 in %i bits says what transformers says in float32, token for token where that is clear',
  {
    timeout: 300_000,
  },
  async (bits) => {
    const path = await smollm2();
    const policy = readPolicy(path);
    const decoder = loadDecoder(packEdge(policy.config, tensorsOf(openGguf(path)), bits), { context: 128 });
    const golden: { text: string; prompt: number[]; ids: number[]; logprobs: number[]; margins: number[] }[] =
      JSON.parse(readFileSync(join(import.meta.dirname, '../../golden/greedy-smollm2.json'), 'utf8'));
    const { mean, most } = BOUND_SMOLLM2[bits];
    const apart: number[] = [];
    let exact = 0;
    for (const { text, prompt, ids, logprobs, margins } of golden) {
      expect(policy.encodePrompt([{ role: 'user', content: text }])).toEqual(prompt);
      decoder.forward(
        prompt,
        prompt.map((_, i) => i),
        prompt.map(() => 0),
        [prompt.length - 1],
      );
      for (const [t, id] of ids.entries()) {
        const logits = decoder.logits(0);
        apart.push(Math.abs(logits[id]! - logSumExp(logits) - logprobs[t]!));
        if (margins[t]! > most) expect(argmax(logits), `${text} ${t}`).toBe(id);
        decoder.forward([id], [prompt.length + t], [0], [0]);
      }
      if (bits === 4 || Math.min(...margins) < 0.03) continue; // which of two comes is a matter of rounding
      const options = { maxTokens: ids.length, temperature: 0, stopIds: [policy.config.eos_token_id], seed: 0 };
      expect(generate(decoder, prompt, options).ids).toEqual(ids);
      exact++;
    }
    expect(exact).toBe(bits === 8 ? 4 : 0);
    expect(apart.length).toBe(200);
    expect(apart.reduce((sum, nats) => sum + nats / apart.length, 0)).toBeLessThan(mean);
    expect(Math.max(...apart)).toBeLessThan(most);
  },
);

test('the build is the one with relaxed SIMD where the engine takes it, else the plain one', async () => {
  const ours = async (takes: boolean) => {
    vi.resetModules();
    const spy = vi.spyOn(WebAssembly as unknown as { validate(bytes: Uint8Array): boolean }, 'validate');
    if (!takes) spy.mockReturnValue(false);
    const fresh = await import('../../../functions/policy/node.ts');
    const chosen = fresh.decoderModule();
    spy.mockRestore();
    return builds.find((build) => fresh.decoderModule(build) === chosen);
  };
  expect([await ours(true), await ours(false)]).toEqual(['relaxed', 'plain']);
});

describe('an image that comes in pieces', () => {
  const config = tinyConfig();
  const image = packEdge(config, randomModel(config, 4), 4);
  const module = decoderModule('relaxed');
  async function* pieces(of: Uint8Array, size: number) {
    for (let at = 0; at < of.length; at += size) yield of.slice(at, at + size);
  }
  const run = (decoder: Decoder) => logprobs(decoder, [5, 7, 200]);

  test.each([1, 7, 1000, image.length])('of %i bytes gives the decoder of the whole', async (size) => {
    const decoder = await streamedDecoder(module, pieces(image, size), ({ bits }) => ({ context: 8, slots: bits }));
    expect([decoder.context, decoder.slots]).toEqual([8, 4]);
    expect(run(decoder)).toEqual(run(loadDecoder(image)));
  });

  test('takes the place of a former decoder, of whatever shape: all live in one memory, which is no larger than the largest needs', async () => {
    const options = ({ bits }: EdgeHeader) => ({ context: bits === 4 ? 16 : 8 });
    const small = tinyConfig({ vocab_size: 240 });
    const shape = tinyConfig({ hidden_size: 192 });
    const images = [
      packEdge(config, randomModel(config, 5), 4),
      packEdge({ ...config, eos_token_id: 9 }, randomModel(config, 4), 4),
      adapted(shape), // with corrections, which the next has not
      packEdge(shape, randomModel(shape, 1), 4),
      packEdge(small, randomModel(small, 1), 8),
      packEdge({ ...config, max_position_embeddings: 64 }, randomModel(config, 4), 4),
    ];
    const alone = images.map((image) => loadDecoder(image, options(readEdge(image))));
    const place: Place = {};
    let largest = 0;
    let first: Place['instance'];
    for (const [i, image] of images.entries()) {
      const decoder = await streamedDecoder(module, pieces(image, 1000), options, place);
      first ??= place.instance;
      expect(place.instance).toBe(first);
      expect(decoder.config).toEqual(alone[i]!.config);
      expect(run(decoder)).toEqual(run(alone[i]!));
      largest = decoder.memoryBytes;
    }
    expect(largest).toBe(Math.max(...alone.map(({ memoryBytes }) => memoryBytes)));
  });

  test.each(['the first', 'a later one'])('where %s was damaged another takes the same place', async (which) => {
    const place: Place = {};
    const load = (bytes: Uint8Array) => streamedDecoder(module, pieces(bytes, 1000), () => ({ context: 8 }), place);
    if (which === 'a later one') await load(image);
    await expect(load(image.subarray(0, 9000))).rejects.toThrow('ends too soon');
    const taken = place.instance;
    expect(taken).toBeDefined();
    expect(run(await load(image))).toEqual(run(loadDecoder(image)));
    expect(place.instance).toBe(taken);
  });

  test('images of other shapes cannot be read into one’s weights', () => {
    const shape = tinyConfig({ hidden_size: 192 });
    const plain = loadDecoder(packEdge(shape, randomModel(shape, 1), 4), { context: 8 });
    expect(() => plain.load(adapted(shape))).toThrow('one has corrections');
  });

  test('of too few or too many bytes is refused, and so is what is no image', async () => {
    const refused = (file: Uint8Array) => streamedDecoder(module, pieces(file, 999), () => ({}));
    await expect(refused(image.subarray(0, image.length - 1))).rejects.toThrow('ends too soon');
    await expect(refused(image.subarray(0, 40))).rejects.toThrow('ends too soon');
    await expect(refused(new Uint8Array([...image, 0]))).rejects.toThrow('longer than its config says');
    await expect(refused(image.map((byte, i) => (i === 0 ? 0 : byte)))).rejects.toThrow('no image');
  });
});
