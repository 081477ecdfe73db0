// A policy of the decoder's tests: a tokenizer of the golden files, random weights, and what a stream of chunks comes to.
import { readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { generate } from '../../../functions/policy/generate.ts';
import { loadDecoder } from '../../../functions/policy/node.ts';
import { chatEncoder } from '../../../schema/chat.ts';
import type { CompletionChunk, CompletionRequest, TokenLogprob } from '../../../schema/completion.ts';
import { packEdge } from '../../../schema/edge.ts';
import { loadTokenizer } from '../../../schema/tokenizer.ts';
import { randomModel, tinyConfig } from '../../support/model.ts';

const golden = JSON.parse(readFileSync(`${import.meta.dirname}/../../golden/tokenizer.json`, 'utf8'));
export const tokenizer = loadTokenizer(JSON.stringify(golden.tokenizers[1].file));
export const config = tinyConfig({
  vocab_size: tokenizer.size,
  max_position_embeddings: 256,
  eos_token_id: tokenizer.added.get('<|end|>')!.id,
});
export const image = packEdge(config, randomModel(config, 21));
export const template = '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>';

export const request = (over: Partial<CompletionRequest> = {}): CompletionRequest => ({
  input: { messages: [{ role: 'user', content: 'where is my order 407 ?' }] },
  n: 1,
  maxTokens: 30,
  temperature: 1,
  topP: 1,
  seed: 5,
  stop: [],
  ...over,
});
export const never = new AbortController().signal;

export interface Answer {
  text: string;
  pieces: string[];
  logprobs: TokenLogprob[];
  finishReason?: string;
  completionTokens?: number;
}
export async function collect(chunks: AsyncIterable<CompletionChunk>, seen?: (chunk: CompletionChunk) => void) {
  const answers: Answer[] = [];
  let promptTokens = -1;
  for await (const chunk of chunks) {
    seen?.(chunk);
    if (chunk.type === 'prompt') {
      promptTokens = chunk.promptTokens;
      continue;
    }
    answers[chunk.index] ??= { text: '', pieces: [], logprobs: [] };
    const answer = answers[chunk.index]!;
    expect(answer.finishReason).toBeUndefined(); // nothing comes after the end
    if (chunk.type === 'end') {
      answer.finishReason = chunk.finishReason;
      answer.completionTokens = chunk.completionTokens;
    } else {
      answer.text += chunk.text;
      answer.pieces.push(chunk.text);
      answer.logprobs.push(...(chunk.logprobs ?? []));
    }
  }
  return { promptTokens, answers };
}

export const promptOf = (content: string) => chatEncoder(tokenizer, { template })([{ role: 'user', content }]);
const prompt = promptOf('where is my order 407 ?');
/** What the trainer’s generate gives. */
export const alone = (seed: number, over: { temperature?: number; maxTokens?: number } = {}, ids = prompt) =>
  generate(loadDecoder(image), ids, { maxTokens: 30, temperature: 1, stopIds: [config.eos_token_id], seed, ...over });
