// The policy manifest: what a policy is, written to policies/<id>/manifest.json once every blob it names is stored.
import { z } from 'zod';
import { idSchema } from './ids.ts';

/**
 * Field names and meanings are those of Hugging Face's LlamaConfig (config.json). Qwen's models are Llamas but for one thing each: those of
 * Qwen 2 add a bias to queries, keys and values, those of Qwen 3 bring each head of queries and keys to the same length (RMSNorm).
 */
export const ModelConfig = z.object({
  architectures: z.tuple([z.enum(['LlamaForCausalLM', 'Qwen2ForCausalLM', 'Qwen3ForCausalLM'])]),
  model_type: z.enum(['llama', 'qwen2', 'qwen3']),
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  /** The layout of an image is a list of them: so many, or a number in a file would take all memory. */
  num_hidden_layers: z.int().positive().max(1024),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive(),
  head_dim: z.int().positive(),
  max_position_embeddings: z.int().positive(),
  rms_norm_eps: z.number().positive(),
  rope_theta: z.number().positive(),
  tie_word_embeddings: z.boolean(),
  bos_token_id: z.int().nullable(),
  eos_token_id: z.int(),
  pad_token_id: z.int(),
});
export type ModelConfig = z.infer<typeof ModelConfig>;

export const Sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'not a sha256 in lower-case hex');

/** The files of a policy; the Hugging Face layout, and edge.bin, the image that the decoder maps. */
const POLICY_FILES = [
  'model.safetensors',
  'config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'generation_config.json',
  'edge.bin',
] as const;
export const PolicyFile = z.strictObject({ name: z.enum(POLICY_FILES), sha256: Sha256, bytes: z.int().nonnegative() });
export type PolicyFile = z.infer<typeof PolicyFile>;

const described = {
  object: z.literal('policy'),
  id: idSchema('policy'),
  name: z.string(),
  created_at: z.iso.datetime(),
  /** The policy it was trained from, and the first of its line (itself, for an import). */
  parent: idSchema('policy').nullable(),
  root: idSchema('policy'),
  run: idSchema('run').nullable(),
  snapshot: idSchema('snapshot').nullable(),
  metrics: z.record(z.string(), z.number()),
};

/** Of a policy whose weights are here. */
export const Manifest = z.strictObject({
  ...described,
  config: ModelConfig,
  /** What turns messages into a prompt: the Jinja chat template of tokenizer_config.json. */
  tokenizer: z.strictObject({ chat_template: z.string() }),
  files: z.array(PolicyFile),
});
export type Manifest = z.infer<typeof Manifest>;

/** Another server with OpenAI's API: what its routes begin with (…/v1), and what it calls the model. */
const Upstream = z.strictObject({ url: z.url({ protocol: /^https?$/ }), model: z.string().min(1) });
export type Upstream = z.infer<typeof Upstream>;

/** Of a policy that another server decodes: its answers are judged as any, its weights cannot be trained. */
export const UpstreamManifest = z.strictObject({ ...described, upstream: Upstream });
export type UpstreamManifest = z.infer<typeof UpstreamManifest>;

export const AnyManifest = z.union([Manifest, UpstreamManifest]);
export type AnyManifest = z.infer<typeof AnyManifest>;
