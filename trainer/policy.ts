// A policy as a folder in Hugging Face's layout, read and written: config.json, tokenizer.json, tokenizer_config.json,
// generation_config.json, model.safetensors. In memory its matrices stand as the trainer multiplies them, (in, out).

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { chatEncoder } from '../schema/chat.ts';
import { ModelConfig } from '../schema/manifest.ts';
import type { Message } from '../schema/message.ts';
import { type Dtype, type FloatTensor, floats, readSafetensors, writeSafetensors } from '../schema/safetensors.ts';
import { loadTokenizer, type Tokenizer } from '../schema/tokenizer.ts';
import { UserError } from './data.ts';
import { flatten } from './engine/compile.ts';
import { type Tensor, tf } from './engine/tf.ts';
import type { Parameters } from './model.ts';

export interface Policy {
  config: ModelConfig;
  tokenizer: Tokenizer;
  chatTemplate: string;
  /** The prompt ids of a conversation, up to where the answer begins. */
  encodePrompt: (messages: Message[]) => number[];
  /** The text files as they were read, to be handed on unchanged. */
  files: Record<'tokenizer.json' | 'tokenizer_config.json' | 'generation_config.json', string>;
}

const TokenizerConfig = z.looseObject({ chat_template: z.string() });

/** Everything of a policy but its weights, from its files' texts. */
export function policyFromTexts(text: (name: string) => string): Policy {
  const json = <T>(name: string, schema: z.ZodType<T>): T => {
    let value: unknown;
    try {
      value = JSON.parse(text(name));
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError(`${name} is not JSON`);
    }
    const parsed = schema.safeParse(value);
    if (!parsed.success) throw new UserError(`${name}: ${z.prettifyError(parsed.error)}`);
    return parsed.data;
  };
  const config = json('config.json', ModelConfig);
  const chatTemplate = json('tokenizer_config.json', TokenizerConfig).chat_template;
  const tokenizer = loadTokenizer(json('tokenizer.json', z.unknown()));
  return {
    config,
    tokenizer,
    chatTemplate,
    encodePrompt: chatEncoder(tokenizer, { template: chatTemplate }),
    files: {
      'tokenizer.json': text('tokenizer.json'),
      'tokenizer_config.json': text('tokenizer_config.json'),
      'generation_config.json': text('generation_config.json'),
    },
  };
}

/** Everything of a policy but its weights, from a folder. */
export function readPolicy(folder: string): Policy {
  return policyFromTexts((name) => {
    const path = join(folder, name);
    if (!existsSync(path)) throw new UserError(`${folder} is not a policy: it has no ${name}`);
    return readFileSync(path, 'utf8');
  });
}

export function policyFromFiles(files: Map<string, Uint8Array>): Policy {
  return policyFromTexts((name) => {
    const bytes = files.get(name);
    if (!bytes) throw new UserError(`the policy has no ${name}`);
    return new TextDecoder().decode(bytes);
  });
}

export function readWeights(folder: string, config: ModelConfig): Parameters {
  const path = join(folder, 'model.safetensors');
  if (!existsSync(path)) throw new UserError(`${folder} has no model.safetensors`);
  return weightsFromFile(readFileSync(path), config);
}

export function weightsFromFile(file: Uint8Array, config: ModelConfig): Parameters {
  const stored = readSafetensors(file);
  return fromHuggingFace(config, new Map([...stored].map(([name, tensor]) => [name, { shape: tensor.shape, data: floats(tensor) }])));
}

/** Writes the folder; weights as bf16 unless said otherwise. */
export function writePolicy(folder: string, policy: Policy, parameters: Parameters, dtype: Dtype = 'BF16'): void {
  mkdirSync(folder, { recursive: true });
  for (const [name, text] of Object.entries(policy.files)) writeFileSync(join(folder, name), text);
  writeFileSync(join(folder, 'config.json'), `${JSON.stringify(policy.config, null, 2)}\n`);
  writeFileSync(join(folder, 'model.safetensors'), writeSafetensors(toHuggingFace(policy.config, parameters), dtype));
}

/** The names that Hugging Face's LlamaForCausalLM gives its tensors, in the trainer's order. */
function layerNames(layer: number) {
  const prefix = `model.layers.${layer}`;
  return {
    attentionNorm: `${prefix}.input_layernorm.weight`,
    q: `${prefix}.self_attn.q_proj.weight`,
    k: `${prefix}.self_attn.k_proj.weight`,
    v: `${prefix}.self_attn.v_proj.weight`,
    attentionOut: `${prefix}.self_attn.o_proj.weight`,
    mlpNorm: `${prefix}.post_attention_layernorm.weight`,
    gate: `${prefix}.mlp.gate_proj.weight`,
    up: `${prefix}.mlp.up_proj.weight`,
    down: `${prefix}.mlp.down_proj.weight`,
  };
}

/** (out, in) matrices by their Hugging Face names → the trainer's (in, out) tree, q k v and gate up side by side. */
export function fromHuggingFace(config: ModelConfig, tensors: Map<string, FloatTensor>): Parameters {
  const take = (name: string): Tensor => {
    const tensor = tensors.get(name);
    if (!tensor) throw new UserError(`the weights have no ${name}`);
    return tf.tensor(tensor.data, tensor.shape);
  };
  const transposed = (...names: string[]) =>
    tf.tidy(() => tf.transpose(tf.concat(names.map((name) => take(name) as never), 0))); // n × (out, in) → (in, n out)
  return {
    embedding: take('model.embed_tokens.weight'),
    layers: Array.from({ length: config.num_hidden_layers }, (_, index) => {
      const names = layerNames(index);
      return {
        attentionNorm: take(names.attentionNorm),
        qkv: transposed(names.q, names.k, names.v),
        attentionOut: transposed(names.attentionOut),
        mlpNorm: take(names.mlpNorm),
        gateUp: transposed(names.gate, names.up),
        down: transposed(names.down),
      };
    }),
    norm: take('model.norm.weight'),
    ...(config.tie_word_embeddings ? {} : { head: take('lm_head.weight') }),
  };
}

export function toHuggingFace(config: ModelConfig, parameters: Parameters): Map<string, FloatTensor> {
  const { head_dim: hd, num_attention_heads: H, num_key_value_heads: K, intermediate_size: F } = config;
  const out = new Map<string, FloatTensor>();
  const put = (name: string, tensor: Tensor) => {
    const values = tensor.dataSync() as Float32Array;
    // A NaN in the weights would be served: it ends the run here.
    if (!values.every(Number.isFinite)) throw new Error(`${name} holds values that are not finite: nothing is written`);
    out.set(name, { shape: tensor.shape, data: values });
  };
  tf.tidy(() => {
    put('model.embed_tokens.weight', parameters.embedding);
    parameters.layers.forEach((layer, index) => {
      const names = layerNames(index);
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
      put(names.mlpNorm, layer.mlpNorm);
    });
    put('model.norm.weight', parameters.norm);
    if (parameters.head) put('lm_head.weight', parameters.head);
  });
  return out;
}

/** How many numbers a policy's weights are. */
export const countParameters = (parameters: Parameters): number => flatten(parameters).reduce((sum, t) => sum + t.size, 0);
