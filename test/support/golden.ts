// What golden/llama.py and golden/qwen.py wrote of Hugging Face's models, and the weights that they give them, by their formula.
import { readFileSync } from 'node:fs';
import type { ModelConfig } from '../../schema/manifest.ts';
import type { FloatTensor } from '../../schema/safetensors.ts';

export interface Golden {
  name: string;
  config: ModelConfig;
  tensors: Record<string, { shape: number[]; seed: number }>;
  ids: number[];
  /** By the token's place. */
  logits: Record<string, number[]>;
}
export const goldens: Golden[] = ['llama', 'qwen'].flatMap((name) =>
  JSON.parse(readFileSync(`${import.meta.dirname}/../golden/${name}.json`, 'utf8')),
);

/** Whole-number arithmetic, so that any language gives the same. */
function numbers(seed: number, shape: number[]): Float32Array {
  const count = shape.reduce((a, b) => a * b);
  return Float32Array.from({ length: count }, (_, i) => {
    let h = (Math.imul(i + 1, 2654435761) + seed * 40503) >>> 0;
    h = Math.imul(h ^ (h >>> 15), 2246822519) >>> 0;
    h = (h ^ (h >>> 13)) >>> 0;
    const value = Math.fround(h / 2 ** 31 - 1);
    return shape.length === 2 ? value / 8 : value / 4 + 1;
  });
}

export const goldenWeights = (tensors: Record<string, { shape: number[]; seed: number }>): Map<string, FloatTensor> =>
  new Map(Object.entries(tensors).map(([name, { shape, seed }]) => [name, { shape, data: numbers(seed, shape) }]));
