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
  tokenizer: Tokenizer;
  chatTemplate: string;
  /** The prompt ids of a conversation, up to where the answer begins. */
  encodePrompt: (messages: Message[]) => number[];
  /** The text files as they were read, to be handed on unchanged. */
  files: Record<'tokenizer.json' | 'tokenizer_config.json' | 'generation_config.json', string>;
}

/** What the model code does not do, refused where a configuration asks for it. */
const Supported = z.looseObject({
  rope_scaling: z.null('scaled RoPE is not supported').optional(),
  hidden_act: z.literal('silu', 'only silu is supported').optional(),
  attention_bias: z.literal(false, 'biases are not supported').optional(),
  mlp_bias: z.literal(false, 'biases are not supported').optional(),
});
const TokenizerConfig = z.looseObject({ chat_template: z.string() });
/** Not used here, but handed on to whoever loads the policy elsewhere. */
const Ids = z.union([z.int(), z.array(z.int())]).nullish();
const GenerationConfig = z.looseObject({
  bos_token_id: Ids,
  eos_token_id: Ids,
  pad_token_id: Ids,
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
});

/** Everything of a policy but its weights, from its files' texts. */
export function policyFromTexts(text: (name: string) => string): Policy {
  const json = <T>(name: string, schema: z.ZodType<T>): T => {
    let value: unknown;
    try {
      value = JSON.parse(text(name));
    } catch (error) {
      throw error instanceof SyntaxError ? new MalformedFile(`${name} is not JSON`) : error;
    }
    const parsed = schema.safeParse(value);
    if (!parsed.success) throw new MalformedFile(`${name}: ${inWords(parsed.error)}`);
    return parsed.data;
  };
  json('config.json', Supported);
  const config = json('config.json', ModelConfig);
  const chatTemplate = json('tokenizer_config.json', TokenizerConfig).chat_template;
  json('generation_config.json', GenerationConfig);
  const tokenizer = loadTokenizer(json('tokenizer.json', z.unknown()));
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
    chatTemplate,
    encodePrompt: policyEncoder(tokenizer, config, chatTemplate),
    files: {
      'tokenizer.json': text('tokenizer.json'),
      'tokenizer_config.json': text('tokenizer_config.json'),
      'generation_config.json': text('generation_config.json'),
    },
  };
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
    return readFileSync(file, 'utf8');
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
