// The two spellings of a completion, OpenAI's chat and its older plain text, whole and streamed.
import type { TokenLogprob } from '../../schema/completion.ts';

export interface Choice {
  index: number;
  text: string;
  /** Undefined where none were asked for. */
  logprobs: TokenLogprob[] | undefined;
  finishReason: 'stop' | 'length' | null;
  sampleId: string | undefined;
}

export interface Spelling {
  idPrefix: string;
  object: string;
  streamObject: string;
  whole(choice: Choice): unknown;
  /** `first` opens a choice; a piece with a finish reason closes it. `offset` is how much text came before. */
  piece(choice: Choice, first: boolean, offset: number): unknown;
}

const alternatives = ({ token, logprob, bytes }: Omit<TokenLogprob, 'top'>) => ({ token, logprob, bytes });
const sample = ({ sampleId }: Choice) => (sampleId ? { sample_id: sampleId } : {});

const chatLogprobs = (logprobs: TokenLogprob[] | undefined) =>
  logprobs
    ? { content: logprobs.map((one) => ({ ...alternatives(one), top_logprobs: one.top.map(alternatives) })) }
    : null;

export const CHAT: Spelling = {
  idPrefix: 'chatcmpl',
  object: 'chat.completion',
  streamObject: 'chat.completion.chunk',
  whole: (choice) => ({
    index: choice.index,
    message: { role: 'assistant', content: choice.text, refusal: null },
    logprobs: chatLogprobs(choice.logprobs),
    finish_reason: choice.finishReason,
    ...sample(choice),
  }),
  piece: (choice, first) => ({
    index: choice.index,
    delta: first ? { role: 'assistant', content: '' } : choice.finishReason ? {} : { content: choice.text },
    logprobs: chatLogprobs(choice.logprobs),
    finish_reason: choice.finishReason,
    ...(first || choice.finishReason ? sample(choice) : {}),
  }),
};

function textLogprobs(logprobs: TokenLogprob[] | undefined, offset: number) {
  if (!logprobs) return null;
  let at = offset;
  return {
    tokens: logprobs.map(({ token }) => token),
    token_logprobs: logprobs.map(({ logprob }) => logprob),
    // the token that was drawn is always among them, so that there may be one more than was asked for; of tokens that are spelled alike
    // (parts of characters) the likeliest is
    top_logprobs: logprobs.map(({ top, token, logprob }) => {
      const likeliest = top.filter((one, i) => top.findIndex((other) => other.token === one.token) === i);
      return Object.fromEntries([...likeliest, { token, logprob }].map((one) => [one.token, one.logprob]));
    }),
    text_offset: logprobs.map(({ token }) => {
      at += token.length;
      return at - token.length;
    }),
  };
}

export const TEXT: Spelling = {
  idPrefix: 'cmpl',
  object: 'text_completion',
  streamObject: 'text_completion',
  whole: (choice) => ({
    index: choice.index,
    text: choice.text,
    logprobs: textLogprobs(choice.logprobs, 0),
    finish_reason: choice.finishReason,
    ...sample(choice),
  }),
  piece: (choice, first, offset) => ({
    index: choice.index,
    text: choice.text,
    logprobs: textLogprobs(choice.logprobs, offset),
    finish_reason: choice.finishReason,
    ...(first || choice.finishReason ? sample(choice) : {}),
  }),
};
