// Random little Llamas for tests and benchmarks: the same seed gives the same weights.
import { ModelConfig } from '../../schema/manifest.ts';
import type { FloatTensor } from '../../schema/safetensors.ts';

export function tinyConfig(over: Partial<ModelConfig> = {}): ModelConfig {
  return ModelConfig.parse({
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: 300,
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    head_dim: 64,
    max_position_embeddings: 96,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: true,
    bos_token_id: null,
    eos_token_id: 1,
    pad_token_id: 0,
    ...over,
  });
}

/** Uniform numbers in [0, 1), the same for the same seed. */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let h = Math.imul(state ^ (state >>> 15), state | 1);
    h ^= h + Math.imul(h ^ (h >>> 7), h | 61);
    return ((h ^ (h >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function randomModel(config: ModelConfig, seed: number): Map<string, FloatTensor> {
  const random = randomNumbers(seed);
  const tensors = new Map<string, FloatTensor>();
  const matrix = (name: string, rows: number, cols: number, scale = 1 / Math.sqrt(cols)) => {
    const data = Float32Array.from({ length: rows * cols }, () => (random() + random() + random() - 1.5) * 2 * scale);
    tensors.set(name, { shape: [rows, cols], data });
  };
  const { hidden_size: D, intermediate_size: F, vocab_size: V } = config;
  const vector = (name: string, length: number, middle: number) =>
    tensors.set(name, { shape: [length], data: Float32Array.from({ length }, () => middle - 0.2 + 0.4 * random()) });
  const norm = (name: string) => vector(name, D, 1);
  const q = config.num_attention_heads * config.head_dim;
  const kv = config.num_key_value_heads * config.head_dim;
  matrix('model.embed_tokens.weight', V, D, 0.1);
  for (let l = 0; l < config.num_hidden_layers; l++) {
    const layer = `model.layers.${l}`;
    norm(`${layer}.input_layernorm.weight`);
    matrix(`${layer}.self_attn.q_proj.weight`, q, D);
    matrix(`${layer}.self_attn.k_proj.weight`, kv, D);
    matrix(`${layer}.self_attn.v_proj.weight`, kv, D);
    if (config.model_type === 'qwen2')
      for (const [one, length] of Object.entries({ q, k: kv, v: kv }))
        vector(`${layer}.self_attn.${one}_proj.bias`, length, 0);
    if (config.model_type === 'qwen3')
      for (const one of ['q', 'k']) vector(`${layer}.self_attn.${one}_norm.weight`, config.head_dim, 1);
    matrix(`${layer}.self_attn.o_proj.weight`, D, q);
    norm(`${layer}.post_attention_layernorm.weight`);
    matrix(`${layer}.mlp.gate_proj.weight`, F, D);
    matrix(`${layer}.mlp.up_proj.weight`, F, D);
    matrix(`${layer}.mlp.down_proj.weight`, D, F);
  }
  norm('model.norm.weight');
  if (!config.tie_word_embeddings) matrix('lm_head.weight', V, D, 0.1);
  return tensors;
}
