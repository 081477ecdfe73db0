// LoRA (Hu et al. 2021): beside a frozen matrix W a product of two thin ones is trained, y = x·W + s·(x·A)·B. The gradient of W is never
// made, and Adam's moments are of A and B alone: a model of 135 M is trained in the memory of little more than its weights.

import type { ModelConfig } from '../schema/manifest.ts';
import type { LORA_PARTS, LoraConfig } from '../schema/run-config.ts';
import { type Tensor, tf } from './engine/tf.ts';
import type { Adapter, Matrix, Parameters } from './model.ts';
import { type Random, random } from './random.ts';

/** Adapters by layer; of the matrices that are adapted. */
export type Lora = { layers: Partial<Record<Matrix, Adapter>>[] };

/** What training changes: all weights, or adapters beside them. */
export type Trained = Parameters | Lora;
export const LORA_ON: Record<(typeof LORA_PARTS)[number], readonly Matrix[]> = {
  attention: ['qkv', 'attentionOut'],
  mlp: ['gateUp', 'down'],
};

/** s: α/r with α = 2 r, as is common; the learning rate does the rest. */
export const SCALE = 2;

/** A uniform in ±1/√in as PEFT has it, B zero: the model begins as it was. */
export function freshLora(config: ModelConfig, { rank, on }: LoraConfig, rng: Random): Lora {
  const { hidden_size: D, intermediate_size: F, head_dim: hd, num_attention_heads: H, num_key_value_heads: K } = config;
  const shapes: Record<Matrix, [number, number]> = {
    qkv: [D, (H + 2 * K) * hd],
    attentionOut: [H * hd, D],
    gateUp: [D, 2 * F],
    down: [F, D],
  };
  const adapter = ([rows, columns]: [number, number]): Adapter => {
    const a = Float32Array.from({ length: rows * rank }, () => (2 * rng() - 1) / Math.sqrt(rows));
    return { a: tf.tensor2d(a, [rows, rank]), b: tf.zeros([rank, columns]) };
  };
  const adapted = on.flatMap((part) => LORA_ON[part]);
  return {
    layers: Array.from({ length: config.num_hidden_layers }, () =>
      Object.fromEntries(adapted.map((name) => [name, adapter(shapes[name])])),
    ),
  };
}

/** Of the adapters, which are all of one rank. */
export const rankOf = ({ layers }: Lora): number => Object.values(layers[0]!)[0]!.a.shape[1]!;

/** What is trained, by its form alone: for reading a state from its file. */
export const formOf = (config: ModelConfig, lora: LoraConfig | null, weights: Parameters): Trained =>
  lora ? freshLora(config, lora, random(0)) : weights;

/** The model with its adapters beside the matrices, for a forward pass in a compiled call. */
export const withLora = (base: Parameters, { layers }: Lora): Parameters => ({
  ...base,
  layers: base.layers.map((layer, i) => ({
    ...layer,
    adapters: Object.fromEntries(
      Object.entries(layers[i]!).map(([name, { a, b }]) => [name, { a, b: tf.mul(b, SCALE) as Tensor }]),
    ),
  })),
});

/** What a forward pass takes: the trained weights, or the frozen ones with the trained adapters. For a compiled call. */
export const weightsOf = (trained: Trained, [frozen]: Parameters[]): Parameters =>
  frozen ? withLora(frozen, trained as Lora) : (trained as Parameters);

/** W + s·A·B: new tensors for what is adapted, clones of the rest. */
export const merged = (base: Parameters, { layers }: Lora): Parameters =>
  tf.tidy(() => {
    const { head } = base;
    return {
      embedding: tf.clone(base.embedding),
      layers: base.layers.map((layer, i) =>
        Object.fromEntries(
          Object.entries(layer).map(([name, matrix]) => {
            const adapter = layers[i]![name as Matrix];
            const sum = adapter && tf.add(matrix as Tensor, tf.mul(tf.matMul(adapter.a, adapter.b), SCALE)); // (in, r) · (r, out) → (in, out)
            return [name, sum ?? tf.clone(matrix as Tensor)];
          }),
        ),
      ),
      norm: tf.clone(base.norm),
      ...(head ? { head: tf.clone(head) } : {}),
    };
  }) as never;
