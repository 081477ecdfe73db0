// How completions are spelled for OpenAI's clients, where no policy of the tests can be brought to say it.
import { expect, test } from 'vitest';
import { TEXT } from '../../functions/routes/openai.ts';

test('of tokens that are spelled alike the older kind of completion names the likeliest', () => {
  const part = '\u{fffd}';
  const spelled = (token: string, logprob: number) => ({ token, logprob, bytes: [] });
  const top = [spelled(part, -0.5), spelled('a', -1), spelled(part, -3)];
  const choice = { index: 0, text: 'b', finishReason: 'stop' as const, sampleId: undefined };
  const whole = TEXT.whole({ ...choice, logprobs: [{ ...spelled('b', -4), top }] });
  expect(whole).toMatchObject({ logprobs: { top_logprobs: [{ [part]: -0.5, a: -1, b: -4 }] } });
  // the one that was drawn says what it had itself
  const drawn = TEXT.whole({ ...choice, logprobs: [{ ...spelled(part, -3), top }] });
  expect(drawn).toMatchObject({ logprobs: { top_logprobs: [{ [part]: -3, a: -1 }] } });
});
