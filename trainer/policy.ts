// A policy but for its weights: configuration, tokenizer and chat template, read from a folder in Hugging Face's layout, from a
// GGUF file or from files. Needs no training engine: serving and importing go without one.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { policyEncoder } from '../schema/chat.ts';
import { inWords, MalformedFile } from '../schema/malformed.ts';
import { ModelConfig } from '../schema/manifest.ts';
import type { Message } from '../schema/message.ts';
import { loadTokenizer, type Tokenizer } from '../schema/tokenizer.ts';
import { isGguf, openGguf, textsOf } from './import/from-gguf.ts';
import { reading, requireFolder, UserError } from './user-error.ts';

export interface Policy {
  config: ModelConfig;
  tokenizer: ReturnType<typeof loadTokenizer>;
  chatTemplate: string;
  /** The prompt ids of a conversation, up to where the answer begins. */
  encodePrompt: (messages: Message[]) => number[];
  /** The text files as they were read, to be handed on unchanged. */
  files: Record<'tokenizer.json' | 'tokenizer_config.json' | 'generation_config.json', string>;
}

/** RoPE as a configuration describes it: since transformers 5 with its base, before that where it is scaled. */
const Rope = z
  .looseObject({ rope_theta: z.number().optional() })
  .refine(({ rope_type, type, factor }) => (rope_type ?? type ?? 'default') === 'default' && factor === undefined, {
    message: 'scaled RoPE is not supported',
  });
const ARCHITECTURES = ['LlamaForCausalLM', 'MistralForCausalLM', 'Qwen2ForCausalLM', 'Qwen3ForCausalLM'] as const;
const isNone = {
  error: ({ input }: { input: unknown }) =>
    `${JSON.stringify(input)} is not supported; one of ${ARCHITECTURES.join(', ')} is`,
};
/** What the model code does not do, refused where a configuration asks for it. */
const Supported = z.looseObject({
  architectures: z.tuple([z.enum(ARCHITECTURES, isNone)], isNone),
  quantization_config: z.null('quantised weights are not supported').optional(),
  sliding_window: z.int().nullish(),
  use_sliding_window: z.literal(false, 'a sliding window is not supported').optional(),
  rope_scaling: Rope.nullish(),
  rope_parameters: Rope.nullish(),
  hidden_act: z.literal('silu', 'only silu is supported').optional(),
  attention_bias: z.literal(false, 'biases are not supported').optional(),
  mlp_bias: z.literal(false, 'biases are not supported').optional(),
});
const TokenName = z.union([z.string(), z.looseObject({ content: z.string() }).transform(({ content }) => content)]);
/** One, or several by name. */
const ChatTemplate = z.union([
  z.string(),
  z
    .array(z.object({ name: z.string(), template: z.string() }))
    .transform((all) => all.find(({ name }) => name === 'default')?.template)
    .pipe(z.string()),
]);
const TokenizerConfig = z.looseObject({
  chat_template: ChatTemplate,
  eos_token: TokenName.nullish(),
  pad_token: TokenName.nullish(),
});
type TokenizerConfig = z.infer<typeof TokenizerConfig>;
/** Not used here, but handed on to whoever loads the policy elsewhere. */
const Ids = z.union([z.int(), z.array(z.int())]).nullish();
const GenerationConfig = z.looseObject({
  bos_token_id: Ids,
  eos_token_id: Ids,
  pad_token_id: Ids,
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
});

/** A Mistral is a Llama that may look back no further than a window: where that holds all it can be asked, it is one. */
function asLlama({
  model_type,
  architectures,
  sliding_window,
  max_position_embeddings: most,
}: z.infer<typeof Supported>) {
  if (model_type !== 'mistral' || String(architectures) !== 'MistralForCausalLM') return {};
  if (sliding_window && !(Number(most) <= sliding_window))
    throw new MalformedFile(
      `config.json: a sliding_window of ${sliding_window} is not supported; lower max_position_embeddings to it`,
    );
  return { model_type: 'llama', architectures: ['LlamaForCausalLM'] };
}

/** A configuration with what Hugging Face's LlamaConfig takes where it says nothing; of several ends of an answer the tokenizer's own. */
function filledIn(given: z.infer<typeof Supported>, tokenizer: Tokenizer, { eos_token, pad_token }: TokenizerConfig) {
  const idOf = (name: string | null | undefined) => tokenizer.added.get(name ?? '')?.id;
  const { num_attention_heads: heads, hidden_size, eos_token_id: ends } = given;
  const end = idOf(eos_token);
  const eos = !Array.isArray(ends) ? (ends ?? end) : ends.includes(end) ? end : ends[0];
  return {
    ...given,
    ...asLlama(given),
    num_key_value_heads: given.num_key_value_heads ?? heads,
    head_dim: given.head_dim ?? (given.model_type === 'qwen3' ? 128 : Number(hidden_size) / Number(heads)),
    max_position_embeddings: given.max_position_embeddings ?? 2048,
    rms_norm_eps: given.rms_norm_eps ?? 1e-6,
    rope_theta: given.rope_theta ?? given.rope_parameters?.rope_theta ?? 10_000,
    tie_word_embeddings: given.tie_word_embeddings ?? false,
    bos_token_id: given.bos_token_id ?? null,
    eos_token_id: eos,
    pad_token_id: given.pad_token_id ?? idOf(pad_token) ?? eos,
  };
}

/** Everything of a policy but its weights, from its files' texts. */
export function policyFromTexts(text: (name: string) => string): Policy {
  const read = <T>(name: string, parse: (json: string) => T): T => {
    try {
      return parse(text(name));
    } catch (error) {
      throw error instanceof SyntaxError ? new MalformedFile(`${name} is not JSON`) : error;
    }
  };
  const json = <T>(name: string, schema: z.ZodType<T>): T => {
    const parsed = schema.safeParse(read(name, JSON.parse));
    if (!parsed.success) throw new MalformedFile(`${name}: ${inWords(parsed.error)}`);
    return parsed.data;
  };
  const given = json('config.json', Supported);
  const names = json('tokenizer_config.json', TokenizerConfig);
  json('generation_config.json', GenerationConfig);
  const tokenizer = read('tokenizer.json', loadTokenizer);
  const config = json(
    'config.json',
    z.preprocess(() => filledIn(given, tokenizer, names), ModelConfig),
  );
  const [architecture] = config.architectures;
  if (architecture.toLowerCase() !== `${config.model_type}forcausallm`)
    throw new MalformedFile(`config.json: a ${config.model_type} is no ${architecture}`);
  const { vocab_size, bos_token_id, eos_token_id, pad_token_id } = config;
  if (tokenizer.size > vocab_size)
    throw new MalformedFile(
      `tokenizer.json has ids up to ${tokenizer.size - 1}, config.json a vocab_size of ${vocab_size}`,
    );
  for (const [name, id] of Object.entries({ bos_token_id: bos_token_id ?? 0, eos_token_id, pad_token_id }))
    if (id < 0 || id >= vocab_size)
      throw new MalformedFile(`config.json: ${name} is ${id}, not one of the ${vocab_size} ids that vocab_size says`);
  return {
    config,
    tokenizer,
    chatTemplate: names.chat_template,
    encodePrompt: policyEncoder(tokenizer, config, names.chat_template),
    files: {
      'tokenizer.json': text('tokenizer.json'),
      'tokenizer_config.json': text('tokenizer_config.json'),
      'generation_config.json': text('generation_config.json'),
    },
  };
}

/** tokenizer_config.json with the chat template in it, which transformers writes beside it since version 4.52. */
function withTemplate(content: string, template: string): string {
  if (!existsSync(template)) return content;
  try {
    return `${JSON.stringify({ ...JSON.parse(content), chat_template: readFileSync(template, 'utf8') }, null, 2)}\n`;
  } catch (error) {
    if (error instanceof SyntaxError) return content; // whoever parses it says so
    throw error;
  }
}

/** Everything of a policy but its weights, from a folder or a GGUF file. */
export function readPolicy(path: string): Policy {
  if (isGguf(path)) {
    const gguf = openGguf(path);
    return reading(path, () => {
      const texts = textsOf(gguf);
      return policyFromTexts((name) => texts[name]!);
    });
  }
  requireFolder(path);
  const text = (name: string) => {
    const file = join(path, name);
    if (!existsSync(file)) throw new UserError(`${path} is not a policy: it has no ${name}`);
    const content = readFileSync(file, 'utf8');
    return name === 'tokenizer_config.json' ? withTemplate(content, join(path, 'chat_template.jinja')) : content;
  };
  return reading(path, () => policyFromTexts(text));
}

export function policyFromFiles(files: Map<string, Uint8Array>): Policy {
  return policyFromTexts((name) => {
    const bytes = files.get(name);
    if (!bytes) throw new UserError(`the policy has no ${name}`);
    return new TextDecoder().decode(bytes);
  });
}
