// Which of a policy's objects in the decoder script a request goes to.
import { afterEach, expect, test, vi } from 'vitest';
import { DecoderBusy } from '../../../functions/policy/choice.ts';
import { ISOLATE_HEADER, remoteDecoder } from '../../../functions/policy/remote.ts';
import type { Complete, CompletionRequest } from '../../../schema/completion.ts';

afterEach(() => vi.useRealTimers());

/**
 * A slot whose first `full` objects have no room; it keeps the names of those that were asked. Each object is in an isolate of its own,
 * or in the one that `isolateOf` says: there the one that `owners` names decodes, and the others say so.
 */
function slot(full: { count: number }, isolateOf = (object: number) => object, owners = new Map<number, number>()) {
  const asked: string[] = [];
  const getByName = (name: string) => ({
    fetch: async () => {
      asked.push(name);
      const object = Number(name.split('/')[1]);
      const isolate = isolateOf(object);
      const headers = { [ISOLATE_HEADER]: `isolate ${isolate}` };
      const refusal = (more: object) => Response.json({ type: 'busy', ...more }, { status: 429, headers });
      const owner = owners.get(isolate) ?? object;
      if (owner !== object) return refusal({ message: 'another decodes here', owner });
      if (object < full.count) return refusal({ message: `${name} is full`, owner });
      return new Response('{"type":"end","index":0,"finishReason":"stop","completionTokens":0}\n', { headers });
    },
  });
  return { asked, namespace: { getByName } as unknown as DurableObjectNamespace };
}

const whole = async (complete: Complete, of = request) => {
  for await (const _ of complete(of, new AbortController().signal));
};
const files = { image: 'i', tokenizer: 't', chatTemplate: '', vocabulary: 1 };
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
  full.count = 0;
  expect(await ask('somebody')).toEqual(['pol_spread/0']);
  vi.advanceTimersByTime(9 * 60_000);
  full.count = 2;
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

test('objects that share an isolate count as one: a session goes to the one that decodes there', async () => {
  const full = { count: 1 };
  const owners = new Map([[0, 0]]);
  const isolates = [0, 0, 0, 1, 1, 1, 1, 1];
  const { asked, namespace } = slot(full, (object) => isolates[object]!, owners);
  const { complete } = remoteDecoder(namespace, 'pol_shared', files);
  const ask = async (session: string) => {
    asked.length = 0;
    await whole(complete, { ...request, session }).catch(({ message }) => asked.push(message));
    return asked.map((name) => name.replace('pol_shared/', ''));
  };
  // full in the isolate of 0 … 2; the next is in another
  expect(await ask('somebody')).toEqual(['0', '1', '2', '3']);
  const sessions = Array.from({ length: 40 }, (_, i) => `session ${i}`);
  full.count = 0;
  const paths = async () => {
    const all: string[] = [];
    for (const session of sessions) all.push((await ask(session)).join(' '));
    return all;
  };
  const apart = await paths();
  expect([...new Set(apart)].sort()).toEqual(['0', '3']);
  full.count = 1;
  expect([...new Set(await paths())].sort()).toEqual(['0 3', '3']); // those that are known before others
  full.count = 0;
  // one that moves to another isolate is still one
  for (isolates[3] = 2; isolates[3] < 6; isolates[3]++) expect(await paths()).toEqual(apart);
  // one of the first isolate's objects took an idle decoder over: it is asked after the one it took it from, and then in its place
  owners.set(0, 2);
  const then = await paths();
  expect(then.filter((path) => path === '0 2')).toHaveLength(1);
  expect([...new Set(then)].sort()).toEqual(['0 2', '2', '3']);
  // that it is another's turn is no reason why there is no room
  owners.set(0, 1);
  full.count = 8;
  for (const path of await paths()) expect(path).toMatch(/ is full$/);
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
