// A tiny policy with random weights: it talks nonsense, by the decoder that serves.

import { sha256 } from '../../functions/crypto.ts';
import { packEdge } from '../../schema/edge.ts';
import { newId } from '../../schema/ids.ts';
import type { Manifest, ModelConfig, PolicyFile } from '../../schema/manifest.ts';
import { loadTokenizer, tokenizerJson, trainBpe } from '../../schema/tokenizer.ts';

const text = (file: unknown) =>
  new Uint8Array(new TextEncoder().encode(typeof file === 'string' ? file : JSON.stringify(file)));

export interface Tiny {
  manifest: Manifest;
  files: Record<string, Uint8Array<ArrayBuffer>>;
}

/** Same seed, same weights. */
export async function tinyPolicy(seed = 1, over: Partial<Manifest> = {}): Promise<Tiny> {
  const file = trainBpe(['the quick brown fox jumps over the lazy dog'], {
    vocabSize: 280,
    special: ['<|pad|>', '<|eos|>'],
    individualDigits: false,
  });
  const tokenizer = loadTokenizer(JSON.stringify(file));
  const config: ModelConfig = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: tokenizer.size,
    hidden_size: 64,
    intermediate_size: 64,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    head_dim: 64,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: true,
    bos_token_id: null,
    eos_token_id: 1,
    pad_token_id: 0,
  };
  let state = seed;
  const random = (rows: number, cols: number, scale: number) => {
    const data = new Float32Array(rows * cols);
    for (let i = 0; i < data.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      data[i] = (state / 2 ** 32 - 0.5) * scale;
    }
    return { shape: [rows, cols], data };
  };
  const ones = { shape: [64], data: new Float32Array(64).fill(1) };
  const layer = 'model.layers.0';
  const edge = packEdge(
    config,
    new Map([
      [`${layer}.input_layernorm.weight`, ones],
      ...['q', 'k', 'v', 'o'].map((name) => [`${layer}.self_attn.${name}_proj.weight`, random(64, 64, 0.2)] as const),
      [`${layer}.post_attention_layernorm.weight`, ones],
      ...['gate', 'up', 'down'].map((name) => [`${layer}.mlp.${name}_proj.weight`, random(64, 64, 0.2)] as const),
      ['model.norm.weight', ones],
      ['model.embed_tokens.weight', random(config.vocab_size, 64, 0.2)],
    ]),
  );
  const chat_template =
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: ";
  const files: Tiny['files'] = {
    'edge.bin': new Uint8Array(edge),
    'tokenizer.json': text(tokenizerJson(file)),
    'config.json': text(config),
  };
  const listed: PolicyFile[] = [];
  for (const [name, data] of Object.entries(files))
    listed.push({ name: name as PolicyFile['name'], sha256: await sha256(data), bytes: data.length });
  const id = over.id ?? newId('policy');
  const manifest: Manifest = {
    object: 'policy',
    id,
    name: `tiny ${seed}`,
    created_at: new Date().toISOString(),
    config,
    tokenizer: { chat_template },
    files: listed,
    parent: null,
    root: id,
    run: null,
    snapshot: null,
    metrics: {},
    ...over,
  };
  return { manifest, files };
}
