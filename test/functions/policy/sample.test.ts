// Sampling: the right shares, the right nucleus, the same draw for the same seed; and the wasm files are those of the source.
import { readFileSync } from 'node:fs';
import { main } from 'assemblyscript/asc';
import { expect, test } from 'vitest';
import type { Decoder } from '../../../functions/policy/decoder.ts';
import { loadDecoder } from '../../../functions/policy/node.ts';
import { argmax, largest, logSumExp, pick, uniform } from '../../../functions/policy/sample.ts';
import { packEdge } from '../../../schema/edge.ts';
import { randomModel, tinyConfig } from '../../support/model.ts';

/** As much of a decoder as sampling sees, with logits of one's own. */
function fixed(values: number[]): Decoder {
  const logits = Float32Array.from(values);
  const most = Math.max(...logits);
  const weights = (_: number, t: number) => logits.map((v) => Math.exp((v - most) / t));
  return { logits: () => logits, weights } as unknown as Decoder;
}

test('uniform numbers are uniform, apart by seed, stream and counter, and the same again', () => {
  const draws = Array.from({ length: 40_000 }, (_, i) => uniform(7, i % 4, i >> 2));
  expect(draws.every((u) => u >= 0 && u < 1)).toBe(true);
  const cells = new Uint32Array(20);
  for (const u of draws) cells[Math.floor(u * 20)]!++;
  const chi = cells.reduce((sum, n) => sum + (n - 2000) ** 2 / 2000, 0);
  expect(chi).toBeLessThan(44); // 19 degrees of freedom: one in a thousand
  const pairs = draws.slice(1).reduce((sum, u, i) => sum + (u - 0.5) * (draws[i]! - 0.5), 0) / draws.length;
  expect(Math.abs(pairs)).toBeLessThan(0.002);
  const near = [0, 1, 2, -1, 2 ** 31, 2 ** 32, 2 ** 40 + 1, Number.MAX_SAFE_INTEGER].map((seed) => uniform(seed, 0, 0));
  expect(new Set(near).size).toBe(near.length);
  expect(uniform(123_456_789_012, 3, 4)).toBe(uniform(123_456_789_012, 3, 4));
});

// 97 tokens: more than are sought one by one where top_k is wide
const MANY = Array.from({ length: 97 }, (_, i) => 3 * Math.sin(i * 1.7));
test.each([
  [1, {}],
  [0.5, {}],
  [2, {}],
  [1, { topP: 0.8 }],
  [1, { topP: 0.5 }],
  [0.7, { topP: 0.1 }],
  [1, { topP: 0.9999 }],
  [1, { topK: 3 }],
  [1, { topK: 1 }],
  [0.7, { topK: 80 }],
  [1, { topK: 500 }],
  [1, { minP: 0.3 }],
  [2, { minP: 1 }],
  [1, { topK: 5, topP: 0.7 }],
  [1, { topK: 70, topP: 0.7, minP: 0.2 }],
  [2, { topK: 70, topP: 0.9 }],
] as const)('tokens come in the shares that temperature %d and %j leave them', (temperature, cut) => {
  const { topP = 1, topK = 0, minP = 0 }: { topP?: number; topK?: number; minP?: number } = cut;
  for (const logits of [[1, 3, -2, 2.5, Number.NEGATIVE_INFINITY, 0, 3], MANY]) {
    const weights = logits.map((v) => Math.exp(v / temperature));
    const order = [...weights.keys()].sort((a, b) => weights[b]! - weights[a]! || a - b).slice(0, topK || undefined);
    const total = order.reduce((sum, id) => sum + weights[id]!, 0);
    const kept = new Set<number>();
    let mass = 0;
    let before = 0;
    for (const id of order) {
      if (before < topP * total && weights[id]! >= minP * weights[order[0]!]!) {
        kept.add(id);
        mass += weights[id]!;
      }
      before += weights[id]!;
    }
    const counts = new Float64Array(logits.length);
    const draws = 20_000;
    const decoder = fixed(logits);
    for (let i = 0; i < draws; i++) counts[pick(decoder, 0, { temperature, ...cut }, uniform(1, 0, i)).id]!++;
    for (const [id, count] of counts.entries()) {
      const share = kept.has(id) ? weights[id]! / mass : 0;
      expect(Math.abs(count / draws - share)).toBeLessThan(4.5 * Math.sqrt((share * (1 - share)) / draws) + 1e-9);
    }
  }
});

test('the ends of the interval pick tokens that can be', () => {
  const logits = [Number.NEGATIVE_INFINITY, 2, 1, Number.NEGATIVE_INFINITY];
  for (const cut of [{}, { topP: 0.9 }, { topP: 0.01 }, { topK: 3 }, { topK: 99 }, { minP: 0.01 }]) {
    expect(pick(fixed(logits), 0, { temperature: 1, ...cut }, 0).id).toBe(1);
    expect([1, 2]).toContain(pick(fixed(logits), 0, { temperature: 1, ...cut }, 1 - 2 ** -32).id);
  }
  expect(pick(fixed([1, 5, 5, 2]), 0, { temperature: 0 }, 0.99).id).toBe(1);
  expect(pick(fixed([1, 5, 4, 2]), 0, { temperature: 1e-9, topK: 2 }, 0.99).id).toBe(1);
});

test('largest is a sort’s beginning, logSumExp the logarithm of a sum', () => {
  const values = Float32Array.from({ length: 500 }, (_, i) => Math.fround(Math.sin(i * 7.3) * 9));
  const sorted = [...values.keys()].sort((a, b) => values[b]! - values[a]! || a - b);
  expect(largest(values, 20)).toEqual(sorted.slice(0, 20));
  expect(largest(values, 0)).toEqual([]);
  expect(argmax(values)).toBe(sorted[0]);
  expect(logSumExp(values)).toBeCloseTo(Math.log(values.reduce((sum, v) => sum + Math.exp(v), 0)), 9);
  expect(logSumExp(Float32Array.of(1000, 1000))).toBeCloseTo(1000 + Math.log(2), 9);
});

test.each([
  ['relaxed', 301],
  ['relaxed', 302],
  ['plain', 303],
  ['plain', 301],
] as const)(
  'the decoder’s weights (%s, of %i tokens) are exp, to float32, and nothing for what is banned',
  (build, V) => {
    const config = tinyConfig({ vocab_size: V });
    const decoder = loadDecoder(packEdge(config, randomModel(config, 6)), { build });
    for (const temperature of [0.01, 0.5, 1, 3]) {
      decoder.forward([3], [0], [0], [0]);
      const logits = decoder.logits(0);
      logits[17] = Number.NEGATIVE_INFINITY;
      logits[V - 1] = Math.max(...logits) + 3; // the largest may be one of those that fill no four
      const most = Math.max(...logits);
      const weights = decoder.weights(0, temperature);
      expect(weights.length).toBe(V);
      expect(weights[17]).toBe(0);
      for (const [id, weight] of weights.entries()) {
        const x = (logits[id]! - most) / temperature;
        const exact = Math.exp(x);
        // of exp 2 ulp or so, and of what it is taken of half of one
        const off = Math.min(4e-7 - 1.2e-7 * Math.max(x, -100), 1e-5 * Math.max(1, 1 / temperature));
        expect(Math.abs(weight - exact)).toBeLessThanOrEqual(exact * off + 1e-37);
      }
    }
  },
);

test.each(['relaxed', 'plain'])(
  'decoder.%s.wasm is what `npm run build:decoder` makes of its source',
  async (target) => {
    const room = `${import.meta.dirname}/../../../functions/policy`;
    let built: Uint8Array | undefined;
    const { error, stderr } = await main(
      ['--config', 'asconfig.json', '--target', target, '--baseDir', `${room}/assembly`],
      {
        writeFile: (_, contents) => {
          if (contents instanceof Uint8Array) built = contents;
        },
      },
    );
    expect(error, stderr.toString()).toBeNull();
    expect(Buffer.compare(built!, readFileSync(`${room}/decoder.${target}.wasm`))).toBe(0);
  },
);
