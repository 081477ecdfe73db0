// A policy but for its weights: configuration, tokenizer and chat template, read from a folder in Hugging Face's layout or from
// files. Needs no training engine: serving and importing go without one.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { policyEncoder } from '../schema/chat.ts';
import { ModelConfig } from '../schema/manifest.ts';
import type { Message } from '../schema/message.ts';
import { loadTokenizer, type Tokenizer } from '../schema/tokenizer.ts';
import { UserError } from './user-error.ts';

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
    encodePrompt: policyEncoder(tokenizer, config, chatTemplate),
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
