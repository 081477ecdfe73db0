// The oracle beside Hugging Face's Llama and Qwens, on the logits of test/golden/: conventions, not speed.
import { describe, expect, test } from 'vitest';
import { loadDecoder } from '../../../functions/policy/node.ts';
import { referenceDecoder } from '../../../functions/policy/reference.ts';
import { packEdge } from '../../../schema/edge.ts';
import { ModelConfig } from '../../../schema/manifest.ts';
import { goldens, goldenWeights } from '../../support/golden.ts';

describe.each(goldens)('$name', ({ config: raw, tensors: described, ids, logits }) => {
  const config = ModelConfig.parse(raw);
  const tensors = goldenWeights(described);
  const worst = (rows: Float32Array[]) =>
    Math.max(...Object.entries(logits).flatMap(([i, row]) => row.map((v, k) => Math.abs(v - rows[Number(i)]![k]!))));

  test('float32: within 1e-4 of Hugging Face’s logits', () => {
    const oracle = referenceDecoder(config, tensors);
    const rows = ids.map((id, i) => {
      oracle.forward([id], [i], [0], [0]);
      return oracle.logits(0);
    });
    expect(worst(rows)).toBeLessThan(1e-4);
  });

  test('int8, as served: within what rounding the weights costs', () => {
    const decoder = loadDecoder(packEdge(config, tensors), { slots: 64 });
    decoder.forward(
      ids,
      ids.map((_, i) => i),
      ids.map(() => 0),
      ids.map((_, i) => i),
    );
    const rows = ids.map((_, i) => decoder.logits(i));
    expect(worst(rows)).toBeLessThan(0.1);
  });
});
