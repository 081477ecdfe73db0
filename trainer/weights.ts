// Weights between files and tensors: Hugging Face's names and (out, in) matrices on disk, the trainer's (in, out) tree in memory.

import { join } from 'node:path';
import { type Low, requireNoOthers } from '../schema/edge.ts';
import { RANK } from '../schema/low-rank.ts';
import { MalformedFile } from '../schema/malformed.ts';
import type { ModelConfig } from '../schema/manifest.ts';
import { type Dtype, type FloatTensor, readTensors, writeSafetensors } from '../schema/safetensors.ts';
import { flatten } from './engine/compile.ts';
import { expectWeights, type Tensor, tf } from './engine/tf.ts';
import { makeFolder, writeWhole } from './folder.ts';
import { folderTensors } from './import/from-folder.ts';
import { isGguf, openGguf, tensorsOf } from './import/from-gguf.ts';
import { type Lora, SCALE } from './lora.ts';
import { DivergedError } from './metrics.ts';
import type { Adapter, Matrix, Parameters } from './model.ts';
import type { Policy } from './policy.ts';
import { reading } from './user-error.ts';

/** The weights of a policy: a folder's, or a GGUF file's. */
export function readWeights(path: string, config: ModelConfig): Parameters {
  if (isGguf(path)) {
    const gguf = openGguf(path);
    return reading(path, () => fromHuggingFace(config, tensorsOf(gguf)));
  }
  const tensors = folderTensors(path);
  return reading(path, () => fromHuggingFace(config, tensors));
}

export function weightsFromFile(file: Uint8Array, config: ModelConfig): Parameters {
  return fromHuggingFace(config, readTensors(file));
}

/** Writes the folder; weights as bf16 unless said otherwise. */
export function writePolicy(folder: string, policy: Policy, parameters: Parameters, dtype: Dtype = 'BF16'): void {
  makeFolder(folder);
  const put = (name: string, content: string | Uint8Array) => {
    const path = join(folder, name);
    writeWhole(path, typeof content === 'string' ? new TextEncoder().encode(content) : content);
  };
  for (const [name, text] of Object.entries(policy.files)) put(name, text);
  put('config.json', `${JSON.stringify(policy.config, null, 2)}\n`);
  put('model.safetensors', writeSafetensors(toHuggingFace(policy.config, parameters), dtype));
}

/** The names that Hugging Face's models give their tensors, in the trainer's order. */
function layerNames(layer: number) {
  const prefix = `model.layers.${layer}`;
  return {
    attentionNorm: `${prefix}.input_layernorm.weight`,
    q: `${prefix}.self_attn.q_proj.weight`,
    k: `${prefix}.self_attn.k_proj.weight`,
    v: `${prefix}.self_attn.v_proj.weight`,
    biases: ['q', 'k', 'v'].map((one) => `${prefix}.self_attn.${one}_proj.bias`),
    queryNorm: `${prefix}.self_attn.q_norm.weight`,
    keyNorm: `${prefix}.self_attn.k_norm.weight`,
    attentionOut: `${prefix}.self_attn.o_proj.weight`,
    mlpNorm: `${prefix}.post_attention_layernorm.weight`,
    gate: `${prefix}.mlp.gate_proj.weight`,
    up: `${prefix}.mlp.up_proj.weight`,
    down: `${prefix}.mlp.down_proj.weight`,
  };
}

/** (out, in) matrices by their Hugging Face names → the trainer's (in, out) tree, q k v and gate up side by side. */
export function fromHuggingFace(config: ModelConfig, tensors: Map<string, FloatTensor>): Parameters {
  const { vocab_size: V, hidden_size: D, intermediate_size: F } = config;
  const [Q, K] = [config.num_attention_heads, config.num_key_value_heads].map((heads) => heads * config.head_dim);
  expectWeights([...tensors.values()].reduce((sum, { data }) => sum + data.length, 0));
  const taken = new Set<string>();
  const take = (name: string, ...shape: number[]): Tensor => {
    const tensor = tensors.get(name);
    taken.add(name);
    if (!tensor) throw new MalformedFile(`the weights have no ${name}`);
    if (tensor.shape.join() !== shape.join())
      throw new MalformedFile(`${name} is [${tensor.shape}], config.json makes it [${shape}]`);
    return tf.tensor(tensor.data, tensor.shape);
  };
  // Freed matrix by matrix: else all would be in memory three times.
  const transposed = (...matrices: [name: string, out: number, into: number][]) =>
    tf.tidy(() => tf.transpose(tf.concat(matrices.map((matrix) => take(...matrix)) as never[], 0))); // n × (out, in) → (in, n out)
  const parameters: Parameters = tf.tidy(() => ({
    embedding: take('model.embed_tokens.weight', V, D),
    layers: Array.from({ length: config.num_hidden_layers }, (_, index) => {
      const names = layerNames(index);
      return {
        attentionNorm: take(names.attentionNorm, D),
        qkv: transposed([names.q, Q!, D], [names.k, K!, D], [names.v, K!, D]),
        ...(config.model_type === 'qwen2' && {
          qkvBias: tf.concat(names.biases.map((name, i) => take(name, i === 0 ? Q! : K!))), // Q, K, K → (Q + 2 K)
        }),
        ...(config.model_type === 'qwen3' && {
          queryNorm: take(names.queryNorm, config.head_dim),
          keyNorm: take(names.keyNorm, config.head_dim),
        }),
        attentionOut: transposed([names.attentionOut, D, Q!]),
        mlpNorm: take(names.mlpNorm, D),
        gateUp: transposed([names.gate, F, D], [names.up, F, D]),
        down: transposed([names.down, D, F]),
      };
    }),
    norm: take('model.norm.weight', D),
    ...(config.tie_word_embeddings ? {} : { head: take('lm_head.weight', V, D) }),
  }));
  requireNoOthers(config, tensors.keys(), taken);
  return parameters;
}

export function toHuggingFace(config: ModelConfig, parameters: Parameters): Map<string, FloatTensor> {
  const { head_dim: hd, num_attention_heads: H, num_key_value_heads: K, intermediate_size: F } = config;
  const out = new Map<string, FloatTensor>();
  const put = (name: string, tensor: Tensor) => {
    const values = tensor.dataSync() as Float32Array;
    // A NaN in the weights would be served: it ends the run here.
    if (!values.every(Number.isFinite))
      throw new DivergedError(`${name} holds values that are not finite: nothing is written`);
    out.set(name, { shape: tensor.shape, data: values });
  };
  put('model.embed_tokens.weight', parameters.embedding);
  parameters.layers.forEach((layer, index) => {
    const names = layerNames(index);
    tf.tidy(() => {
      const [q, k, v] = tf.split(layer.qkv, [H * hd, K * hd, K * hd], 1) as [Tensor, Tensor, Tensor]; // 3 × (D, heads hd)
      const [gate, up] = tf.split(layer.gateUp, [F, F], 1) as [Tensor, Tensor]; // 2 × (D, F)
      put(names.attentionNorm, layer.attentionNorm);
      for (const [name, matrix] of [
        [names.q, q],
        [names.k, k],
        [names.v, v],
        [names.attentionOut, layer.attentionOut],
        [names.gate, gate],
        [names.up, up],
        [names.down, layer.down],
      ] as const)
        put(name, tf.transpose(matrix)); // (in, out) → (out, in)
      if (layer.qkvBias)
        tf.split(layer.qkvBias, [H * hd, K * hd, K * hd]).forEach((bias, i) => {
          put(names.biases[i]!, bias); // (heads hd)
        });
      if (layer.queryNorm) put(names.queryNorm, layer.queryNorm);
      if (layer.keyNorm) put(names.keyNorm, layer.keyNorm);
      put(names.mlpNorm, layer.mlpNorm);
    });
  });
  put('model.norm.weight', parameters.norm);
  if (parameters.head) put('lm_head.weight', parameters.head);
  return out;
}

/** What adapters of rank 8 at most add to each of Hugging Face's (out, in) matrices. */
export function lowOf(config: ModelConfig, { layers }: Lora): Map<string, Low> {
  const { head_dim: hd, num_attention_heads: H, num_key_value_heads: K, intermediate_size: F, hidden_size: D } = config;
  const out = new Map<string, Low>();
  layers.forEach((layer, index) => {
    const names = layerNames(index);
    const matrices: Record<Matrix, [string, number][]> = {
      qkv: [
        [names.q, H * hd],
        [names.k, K * hd],
        [names.v, K * hd],
      ],
      attentionOut: [[names.attentionOut, D]],
      gateUp: [
        [names.gate, F],
        [names.up, F],
      ],
      down: [[names.down, D]],
    };
    for (const [matrix, { a, b }] of Object.entries(layer) as [Matrix, Adapter][]) {
      const [into, rank] = a.shape as [number, number];
      const [as, bs] = [a.dataSync(), b.dataSync()] as [Float32Array, Float32Array]; // (in, r), (r, n out)
      if (!as.every(Number.isFinite) || !bs.every(Number.isFinite))
        throw new DivergedError(`adapters of layer ${index} hold values that are not finite: nothing is drawn`);
      const v = new Float32Array(into * RANK); // (in, RANK)
      for (let i = 0; i < into; i++) v.set(as.subarray(i * rank, (i + 1) * rank), i * RANK);
      let first = 0;
      for (const [name, rows] of matrices[matrix]) {
        const u = new Float32Array(rows * RANK); // (out, RANK)
        for (let j = 0; j < rank; j++)
          for (let r = 0; r < rows; r++) u[r * RANK + j] = SCALE * bs[(j * bs.length) / rank + first + r]!;
        out.set(name, { u, v });
        first += rows;
      }
    }
  });
  return out;
}

/** How many numbers a policy's weights are. */
export const countParameters = (parameters: Parameters): number =>
  flatten(parameters).reduce((sum, t) => sum + t.size, 0);
