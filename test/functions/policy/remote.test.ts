// Which of a policy's objects in the decoder script a request goes to.
import { afterEach, expect, test, vi } from 'vitest';
import { DecoderBusy } from '../../../functions/policy/choice.ts';
import { remoteDecoder } from '../../../functions/policy/remote.ts';
import type { Complete, CompletionRequest } from '../../../schema/completion.ts';

afterEach(() => vi.useRealTimers());

/** A slot whose first `full` objects have no room; it keeps the names of those that were asked. */
function slot(full: { count: number }) {
  const asked: string[] = [];
  const getByName = (name: string) => ({
    fetch: async () => {
      asked.push(name);
      if (Number(name.split('/')[1]) < full.count)
        return Response.json({ type: 'busy', message: `${name} is full` }, { status: 429 });
      return new Response('{"type":"end","index":0,"finishReason":"stop","completionTokens":0}\n');
    },
  });
  return { asked, namespace: { getByName } as unknown as DurableObjectNamespace };
}

const whole = async (complete: Complete, of = request) => {
  for await (const _ of complete(of, new AbortController().signal));
};
const files = { image: 'i', tokenizer: 't', chatTemplate: '' };
const request = { n: 1, maxTokens: 1, session: 'somebody' } as CompletionRequest;

test('a full object is passed by for the next, sessions are spread over those there are, and after ten calm minutes there is one less', async () => {
  vi.useFakeTimers();
  const full = { count: 2 };
  const { asked, namespace } = slot(full);
  const { complete } = remoteDecoder(namespace, 'pol_spread', files);
  const ask = async (session: string) => {
    asked.length = 0;
    await whole(complete, { ...request, session });
    return [...asked];
  };
  expect(await ask('somebody')).toEqual(['pol_spread/0', 'pol_spread/1', 'pol_spread/2']);

  full.count = 0;
  const sessions = Array.from({ length: 60 }, (_, i) => `session ${i}`);
  const spread = async () => {
    const seen = new Set<string>();
    for (const session of sessions) for (const name of await ask(session)) seen.add(name);
    return [...seen].sort();
  };
  expect(await spread()).toEqual(['pol_spread/0', 'pol_spread/1', 'pol_spread/2']);
  expect(await ask('somebody')).toEqual(await ask('somebody'));

  vi.advanceTimersByTime(9 * 60_000);
  expect(await spread()).toHaveLength(3);
  vi.advanceTimersByTime(2 * 60_000);
  expect(await spread()).toEqual(['pol_spread/0', 'pol_spread/1']);
  vi.advanceTimersByTime(60 * 60_000);
  expect(await spread()).toEqual(['pol_spread/0']);
});

test('where all are full, who refused first says why', async () => {
  const { asked, namespace } = slot({ count: 100 });
  const { complete } = remoteDecoder(namespace, 'pol_full', files);
  await expect(whole(complete)).rejects.toThrow(new DecoderBusy('pol_full/0 is full'));
  expect(asked).toHaveLength(8);
});

const answering = (fetch: () => Promise<Response>) =>
  remoteDecoder({ getByName: () => ({ fetch }) } as unknown as DurableObjectNamespace, 'pol_one', files).complete;

test('a script that is not there, or an object that the platform has overloaded, is a decoder that is busy', async () => {
  const complete = answering(async () => new Response('overloaded', { status: 503 }));
  await expect(whole(complete)).rejects.toThrow(new DecoderBusy('the decoder script is not there'));
});

test('lines that end since their reader left are no whole answer', async () => {
  const leaving = new AbortController();
  const complete = answering(async () => new Response('{"type":"prompt","promptTokens":3}\n'));
  const answer = async () => {
    for await (const chunk of complete(request, leaving.signal)) if (chunk.type === 'prompt') leaving.abort();
  };
  await expect(answer()).rejects.toThrow('aborted');
});
