// Tokens per second of the decoder, ours (wasm, both builds) and the oracle's (plain TypeScript), on a model of 2 M
// parameters with random weights: alone, and sixteen sequences at a time.
//
//     node test/bench/decoder.ts
import type { Decoder } from '../../functions/policy/decoder.ts';
import { generateBatch } from '../../functions/policy/generate.ts';
import { loadDecoder } from '../../functions/policy/node.ts';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { packEdge, unpackEdge } from '../../schema/edge.ts';
import { randomModel, tinyConfig } from '../support/model.ts';

const config = tinyConfig({
  vocab_size: 1024,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 3,
  num_key_value_heads: 3,
  max_position_embeddings: 256,
});
const tensors = randomModel(config, 1);
const PROMPT = 24;
const ANSWER = 32;

/** Tokens of answers a second, their prompts' prefill included. */
function measure(decoder: Decoder, sequences: number): number {
  const prompts = Array.from({ length: sequences }, (_, i) =>
    Array.from({ length: PROMPT }, (_, k) => (i * 31 + k * 17) % 1024),
  );
  const started = performance.now();
  generateBatch(decoder, prompts, { maxTokens: ANSWER, temperature: 1, stopIds: [], seeds: prompts.map((_, i) => i) });
  return (sequences * ANSWER * 1000) / (performance.now() - started);
}

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1]!;
let image = packEdge(config, tensors);
const packing = Array.from({ length: 9 }, () => {
  const started = performance.now();
  image = packEdge(config, tensors);
  return performance.now() - started;
});
console.log(`edge.bin ${(image.length / 2 ** 20).toFixed(2)} MiB, packed in ${median(packing).toFixed(1)} ms`);

const oracle = referenceDecoder(config, unpackEdge(image).tensors, { slots: 16 });
measure(oracle, 2);
const plain = median([1, 2, 3].map(() => measure(oracle, 4)));
console.log(`the oracle                ${plain.toFixed(0).padStart(6)} tok/s`);
for (const build of ['relaxed', 'plain'] as const)
  for (const slots of [1, 16]) {
    const decoder = loadDecoder(image, { slots, build });
    measure(decoder, 64);
    const ours = median([1, 2, 3, 4, 5].map(() => measure(decoder, 64)));
    console.log(
      `wasm, ${build.padEnd(7)}, batch ${String(slots).padEnd(4)} ${ours.toFixed(0).padStart(6)} tok/s   ` +
        `${(ours / plain).toFixed(1)} × the oracle   ${(decoder.memoryBytes / 2 ** 20).toFixed(1)} MiB`,
    );
  }
