// A server with OpenAI's API that is busy, slow, breaks off or talks nonsense. test/e2e/upstream.test.ts has one that works.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { DecoderBusy } from '../../../functions/policy/choice.ts';
import { UpstreamFailure, UpstreamRefusal, upstream } from '../../../functions/policy/upstream.ts';
import type { CompletionRequest } from '../../../schema/completion.ts';
import { collect, never, request } from './answers.ts';

type Handler = (response: ServerResponse, body: Record<string, unknown>, asked: number) => void;
let handle: Handler;
let heard: { body: Record<string, unknown>; path: string | undefined; auth: string | undefined }[] = [];
const server = createServer((incoming: IncomingMessage, response) => {
  let text = '';
  incoming.on('data', (chunk) => {
    text += chunk;
  });
  incoming.on('end', () => {
    const body = JSON.parse(text);
    heard.push({ body, path: incoming.url, auth: incoming.headers.authorization });
    handle(response, body, heard.length);
  });
});
let url = '';
beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
});
afterEach(() => {
  heard = [];
  vi.useRealTimers();
});

const event = (data: object | string) => `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
const said = (content: string, finish_reason: string | null = null) =>
  event({ choices: [{ index: 0, delta: { content }, finish_reason }] });
const complete = (over: Partial<CompletionRequest> = {}, signal = never) =>
  collect(upstream({ url, model: 'theirs' }, 'their-key')(request(over), signal));

test('says what was asked, and nothing of who asks', async () => {
  handle = (response) => response.end(said('a', 'length') + event('[DONE]'));
  await complete({ session: 'rtr_1', topK: 5, minP: 0.1, stop: ['x'], seed: -3, logitBias: new Map([[4, 2]]) });
  const [{ body, path, auth }] = heard as [(typeof heard)[0]];
  expect([path, auth]).toEqual(['/v1/chat/completions', 'Bearer their-key']);
  expect(body).toEqual({
    model: 'theirs',
    messages: [{ role: 'user', content: 'where is my order 407 ?' }],
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: 30,
    temperature: 1,
    top_p: 1,
    top_k: 5,
    min_p: 0.1,
    seed: 2 ** 31 - 3,
    stop: ['x'],
    logit_bias: { 4: 2 },
  });
});

test('a server that says nothing of tokens: they are counted by its pieces, which come in whatever parts', async () => {
  const stream = `: a comment\n\n${said('Grüße')}${said('')}${said(' aus')}${said(' Köln', 'content_filter')}${event('[DONE]')}`;
  handle = async (response) => {
    for (const byte of Buffer.from(stream)) response.write(Buffer.of(byte));
    response.end();
  };
  const { answers, promptTokens } = await complete();
  expect(promptTokens).toBe(0);
  expect(answers).toEqual([
    {
      text: 'Grüße aus Köln',
      pieces: ['Grüße', ' aus', ' Köln'],
      logprobs: [],
      finishReason: 'stop',
      completionTokens: 3,
    },
  ]);
});

test('of several choices all are on their way before anything is said, so that what is wrong with one is a status', async () => {
  handle = (response, _, asked) => {
    if (asked < 3) response.end(said('a', 'stop') + event('[DONE]'));
    else setTimeout(() => response.writeHead(400).end('{"error":{"message":"no"}}'), 100);
  };
  const chunks = upstream({ url, model: 'theirs' }, undefined)(request({ n: 3 }), never);
  await expect(chunks[Symbol.asyncIterator]().next()).rejects.toThrow(UpstreamRefusal);
});

test('of several choices each says how many tokens its prompt had: it is told once', async () => {
  const usage = { prompt_tokens: 7, completion_tokens: 1, total_tokens: 8 };
  handle = (response) => response.end(said('a', 'stop') + event({ choices: [], usage }) + event('[DONE]'));
  const told: number[] = [];
  for await (const chunk of upstream({ url, model: 'theirs' }, undefined)(request({ n: 3 }), never))
    if (chunk.type === 'prompt' && chunk.promptTokens > 0) told.push(chunk.promptTokens);
  expect([heard.length, told]).toEqual([3, [7]]);
});

test('one that is busy is asked again after as long as it says, and in the end is said to be busy', async () => {
  handle = (response, _, asked) =>
    asked < 3
      ? response.writeHead(asked === 1 ? 429 : 503, { 'retry-after': '1' }).end()
      : response.end(said('a', 'stop'));
  const from = performance.now();
  expect((await complete()).answers[0]!.text).toBe('a');
  expect(heard).toHaveLength(3);
  expect(performance.now() - from).toBeGreaterThan(1900);
  heard = [];
  handle = (response) => response.writeHead(503, { 'retry-after': '0.01' }).end();
  await expect(complete()).rejects.toThrow(DecoderBusy);
  expect(heard).toHaveLength(4);

  // what is no time to wait for leaves it to us
  for (const odd of ['-5', 'soon', 'Fri, 31 Dec 1999 23:59:59 GMT']) {
    heard = [];
    handle = (response, _, asked) =>
      asked === 1 ? response.writeHead(429, { 'retry-after': odd }).end() : response.end(said('a', 'stop'));
    const asked = performance.now();
    await complete();
    expect([heard.length, performance.now() - asked > 100], odd).toEqual([2, true]);
  }

  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  heard = [];
  handle = (response, _, asked) =>
    asked === 1 ? response.writeHead(429, { 'retry-after': '3600' }).end() : response.end(said('a', 'stop'));
  const patient = complete();
  await expect.poll(() => heard.length).toBe(1);
  for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate);
  await vi.advanceTimersByTimeAsync(5_000); // nobody waits for an hour
  expect((await patient).answers[0]!.text).toBe('a');
});

test('a request that it does not take is refused with its reason; other answers are its failure, once', async () => {
  const told = async (status: number, body: string) => {
    handle = (response) => response.writeHead(status).end(body);
    const error: Error = await complete().then(
      () => expect.unreachable(),
      (thrown) => thrown,
    );
    return [error.constructor, error.message];
  };
  expect(await told(400, '{"error": {"message": "too long"}}')).toEqual([
    UpstreamRefusal,
    'the upstream server refuses this: too long',
  ]);
  expect(await told(422, '{"detail": "no"}')).toEqual([UpstreamRefusal, 'the upstream server refuses this: no']);
  expect(await told(422, '{"detail": [{"loc": ["n"]}]}')).toEqual([
    UpstreamRefusal,
    'the upstream server refuses this: [{"loc":["n"]}]',
  ]);
  for (const empty of ['', ' ']) expect((await told(400, empty))[1]).toBe('the upstream server refuses this');
  expect(await told(404, '{"error": {"message": "no such model"}}')).toEqual([
    UpstreamFailure,
    'the upstream server answered with 404: no such model',
  ]);
  expect(await told(500, 'secret trace')).toEqual([UpstreamFailure, 'the upstream server answered with 500']);
  expect(heard).toHaveLength(7);
});

test('one that sends elsewhere is not followed: the key is its own', async () => {
  handle = (response) => response.writeHead(307, { location: `${url}/elsewhere` }).end();
  await expect(complete()).rejects.toThrow('the upstream server answered with 307');
  expect(heard).toHaveLength(1);
});

test('fields that are null are fields that are not there', async () => {
  const part = {
    index: 0,
    delta: { content: 'a' },
    logprobs: { content: [{ token: 'a', logprob: -1, top_logprobs: null }] },
  };
  handle = (response) =>
    response.end(event({ choices: [part], error: null }) + event({ choices: null }) + said('b', 'stop'));
  const { answers } = await complete({ topLogprobs: 0 });
  expect(answers[0]).toMatchObject({ text: 'ab', logprobs: [{ token: 'a', logprob: -1, top: [] }] });
});

test('one that breaks off, fails half way or talks nonsense has failed; no half answer counts as one', async () => {
  const endings: [string, string, boolean?][] = [
    [said('a'), 'broke off'],
    [said('a'), 'broke off', true],
    [said('a') + event({ error: { message: 'out of memory' } }), 'failed: out of memory'],
    [event('{"choices": '), 'answered with what is no completion'],
    [event({ choices: 'none' }), 'answered with what is no completion'],
    ['<html>', 'ended without a word'],
    ['', 'ended without a word: does it stream, and is the prompt within its context?'],
  ];
  for (const [stream, message, cut] of endings) {
    handle = (response) => {
      response.write(stream, () => (cut ? response.destroy() : response.end()));
    };
    await expect(complete(), stream).rejects.toThrow(`the upstream server ${message}`);
  }
});

test('of several choices one that fails ends the others', async () => {
  let closed = 0;
  handle = (response, { seed }) => {
    response.on('close', () => closed++);
    if (seed === 6) return void response.writeHead(500).end();
    response.write(said('a'));
  };
  await expect(complete({ n: 3 })).rejects.toThrow('answered with 500');
  await expect.poll(() => closed).toBe(3);
});

test('one that takes its time is waited for as long as it goes on', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  let answering: ServerResponse | undefined;
  handle = (response) => {
    answering = response;
    response.write(said('a'));
  };
  const pieces: string[] = [];
  const slow = collect(upstream({ url, model: 'theirs' }, undefined)(request(), never), (chunk) => {
    if (chunk.type === 'text') pieces.push(chunk.text);
  });
  await expect.poll(() => pieces).toEqual(['a']);
  for (const next of ['b', 'c', 'd']) {
    await vi.advanceTimersByTimeAsync(40_000);
    answering!.write(said(next));
    await expect.poll(() => pieces.at(-1)).toBe(next);
  }
  answering!.end(said('', 'stop'));
  expect((await slow).answers[0]!.text).toBe('abcd');
});

test('one that says nothing for a minute is given up; who leaves is not waited for', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  handle = (response) => void response.write(said('a'));
  const silent = complete();
  const expected = expect(silent).rejects.toThrow('said nothing for 60 s');
  await expect.poll(() => heard.length).toBe(1);
  for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate);
  await vi.advanceTimersByTimeAsync(59_000);
  for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate);
  await vi.advanceTimersByTimeAsync(2_000);
  await expected;
  vi.useRealTimers();
  const leaving = new AbortController();
  const left = complete({}, leaving.signal);
  await expect.poll(() => heard.length).toBe(2);
  leaving.abort(new Error('left'));
  await expect(left).rejects.toThrow('left');
});
