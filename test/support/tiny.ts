// A Llama so small that training it takes a second, for tests of the stages.
import type { ModelConfig } from '../../schema/manifest.ts';
import { initialParameters, type Parameters } from '../../trainer/model.ts';
import { random } from '../../trainer/random.ts';

export const TINY: ModelConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 32,
  hidden_size: 64,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 1,
  num_key_value_heads: 1,
  head_dim: 64,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: 1,
  pad_token_id: 0,
};

export const tinyParameters = (seed = 1): Parameters => initialParameters(TINY, random(seed, 'tiny'));
