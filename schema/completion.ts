// The one interface behind which a policy decodes: in the Worker, in the trainer's rollouts, or at an upstream server.
import type { Message } from './message.ts';

export interface CompletionRequest {
  /** A chat, rendered by the policy's chat template, or a bare prompt. */
  input: { messages: Message[] } | { prompt: string };
  n: number;
  maxTokens: number;
  temperature: number; // 0 is greedy
  topP: number;
  /** Only among the k likeliest; 0, among all. */
  topK?: number;
  /** Only what is at least this times as likely as the likeliest. */
  minP?: number;
  /** Same seed, same text: choice i draws from a generator seeded by (seed, i). */
  seed: number;
  stop: string[];
  /** How many alternatives to report beside each token's log-probability; undefined reports none. */
  topLogprobs?: number;
  logitBias?: Map<number, number>;
  /** The answer is one JSON object, whole within maxTokens (2 at least). */
  json?: boolean;
  /** Who asks: what was asked before may be held where that was served. */
  session?: string;
}

export interface TokenLogprob {
  token: string;
  bytes: number[];
  logprob: number;
  top: { token: string; bytes: number[]; logprob: number }[];
}

/** One piece of one choice. Text never ends inside a UTF-8 sequence and never holds part of a stop string. */
export type CompletionChunk =
  | { type: 'prompt'; promptTokens: number }
  | { type: 'text'; index: number; text: string; logprobs?: TokenLogprob[] }
  | { type: 'end'; index: number; finishReason: 'stop' | 'length'; completionTokens: number };

export type Complete = (request: CompletionRequest, signal: AbortSignal) => AsyncIterable<CompletionChunk>;
