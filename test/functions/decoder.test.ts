// The decoder where it serves: in workerd a .wasm file is a module import, and there is no other way to load one.
import { expect, test } from 'vitest';
import relaxed from '../../functions/policy/decoder.relaxed.wasm';
import { generateBatch } from '../../functions/policy/generate.ts';
import { wasmDecoder } from '../../functions/policy/load.ts';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { packEdge, unpackEdge } from '../../schema/edge.ts';
import { randomModel, tinyConfig } from '../support/model.ts';

test('the wasm module loads in workerd and says what the oracle says', () => {
  const config = tinyConfig();
  const image = packEdge(config, randomModel(config, 9));
  const prompts = [[5, 6, 7, 8, 9], [5, 6, 7], [200]];
  const options = { maxTokens: 16, temperature: 0, stopIds: [1], seeds: [0, 0, 0] };
  const ours = generateBatch(wasmDecoder(relaxed, image, { slots: 3 }), prompts, options);
  const oracle = referenceDecoder(config, unpackEdge(image).tensors, { slots: 3 });
  expect(ours.map(({ ids }) => ids)).toEqual(generateBatch(oracle, prompts, options).map(({ ids }) => ids));
});
