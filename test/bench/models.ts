// The models that stages are timed with.
import type { ModelConfig } from '../../schema/manifest.ts';

/** 5.8 million weights. */
export const TIED: ModelConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 4096,
  hidden_size: 256,
  num_hidden_layers: 6,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  head_dim: 64,
  intermediate_size: 688,
  max_position_embeddings: 128,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: 1,
  pad_token_id: 0,
};
const COMMON = { ...TIED, max_position_embeddings: 1024, bos_token_id: 1, eos_token_id: 2 };
/** 6.84 million: with an output matrix of its own, as TRL's classifiers want it. */
export const SMALL: ModelConfig = { ...COMMON, tie_word_embeddings: false };
/** SmolLM2's shape: 135 million. */
export const LARGE: ModelConfig = {
  ...COMMON,
  vocab_size: 49_152,
  hidden_size: 576,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  intermediate_size: 1536,
};
