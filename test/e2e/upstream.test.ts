// A policy that another server decodes. That server is a second Plumb: it has OpenAI's API.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { publishUpstream, withStore } from '../../infra/local.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';
import { lines, plumb } from '../support/plumb.ts';

const MINUTES = 60_000;
let server: TestLocal;
let local: TestLocal;
let policy = '';

beforeAll(async () => {
  server = await startTestLocal();
  local = await startTestLocal({ PLUMB_UPSTREAM_KEYS: JSON.stringify({ [server.url]: server.keys.secret }) });
  policy = await publishUpstream(local.home, { url: `${server.url}/v1`, model: 'stable' }, 'elsewhere', 'stable');
  const served = async () => expect((await chat(local)).model).toBe(policy);
  await vi.waitFor(served, { timeout: 30_000, interval: 500 });
}, 3 * MINUTES);
afterAll(async () => {
  await local?.close();
  await server?.close();
}, MINUTES);

interface Answer {
  model: string;
  choices: {
    message: { content: string };
    text: string;
    finish_reason: string;
    sample_id: string;
    logprobs: { content: { token: string; logprob: number; top_logprobs: object[] }[] };
  }[];
  usage: { prompt_tokens: number; completion_tokens: number };
  feedback_token: string;
}
function asked(body: object = {}) {
  const messages = [{ role: 'user', content: 'Hello, my order #482 for a kettle has not arrived yet.' }];
  return { model: 'stable', messages, max_tokens: 20, seed: 7, ...body };
}
const chat = (of: TestLocal, body: object = {}) => of.api<Answer>('POST', '/v1/chat/completions', asked(body));
const textsOf = ({ choices }: Answer) => choices.map(({ message }) => message.content);
const post = (body: object, signal?: AbortSignal) => local.ask('POST', '/v1/chat/completions', asked(body), signal);

test(
  'its answers are the server’s, with samples, tokens and judgements of ours',
  async () => {
    const [ours, theirs] = [await chat(local), await chat(server)];
    expect(textsOf(ours)).toEqual(textsOf(theirs));
    expect(ours.usage).toEqual(theirs.usage);
    expect(ours.choices[0]!.finish_reason).toBe(theirs.choices[0]!.finish_reason);
    const sample_id = ours.choices[0]!.sample_id;
    const sample = await local.api<{ text: string; policy: string; completion_tokens: number }>(
      'GET',
      `/v1/samples/${sample_id}`,
    );
    expect(sample).toMatchObject({
      text: textsOf(ours)[0],
      policy,
      completion_tokens: theirs.usage.completion_tokens,
    });
    const vote = { kind: 'thumb', sample_id, value: 1, token: ours.feedback_token, rater: { id: 'ann' } };
    await local.api('POST', '/v1/feedback', vote);

    const many = await chat(local, { n: 3, temperature: 1 });
    expect(new Set(textsOf(many)).size).toBe(3);
    expect(textsOf(many)[1]).toBe(textsOf(await chat(server, { seed: 8, temperature: 1 }))[0]);
  },
  MINUTES,
);

test(
  'streams, plain prompts, log-probabilities, stop strings and objects go through',
  async () => {
    const [whole] = textsOf(await chat(server));
    const events = (await (await post({ stream: true, stream_options: { include_usage: true } })).text())
      .split('\n\n')
      .filter((event) => event.startsWith('data: {'))
      .map((event) => JSON.parse(event.slice(6)));
    const pieces = events.map(({ choices }) => choices[0]?.delta.content ?? '').filter(Boolean);
    expect(pieces.join('')).toBe(whole);
    expect(pieces.length).toBeGreaterThan(5);
    expect(events.at(-1).usage).toEqual((await chat(server)).usage);

    const cut = await chat(local, { stop: [whole!.slice(4, 7)] });
    expect(textsOf(cut)[0]).toBe(whole!.slice(0, whole!.indexOf(whole!.slice(4, 7))));
    const detail = { logprobs: true, top_logprobs: 2 };
    const [ours, theirs] = [await chat(local, detail), await chat(server, detail)];
    expect(ours.choices[0]!.logprobs).toEqual(theirs.choices[0]!.logprobs);

    const plain = { model: 'stable', prompt: 'Hello', max_tokens: 8, seed: 3, logprobs: 1 };
    const complete = (of: TestLocal) => of.api<Answer>('POST', '/v1/completions', plain);
    const [our, their] = [await complete(local), await complete(server)];
    expect(our.choices[0]!.text).toBe(their.choices[0]!.text);
    expect(our.choices[0]!.logprobs).toMatchObject({
      tokens: (their.choices[0]!.logprobs as unknown as { tokens: string[] }).tokens,
    });
    const object = await chat(local, { response_format: { type: 'json_object' } });
    expect(JSON.parse(textsOf(object)[0]!)).toBeInstanceOf(Object);
    expect(textsOf(object)).toEqual(textsOf(await chat(server, { response_format: { type: 'json_object' } })));
  },
  MINUTES,
);

test(
  'what the server refuses is refused with its words, and what it cannot do is 502',
  async () => {
    const long = await post({ messages: [{ role: 'user', content: 'word '.repeat(2000) }] });
    expect(long.status).toBe(400);
    const refused = (await long.json()) as { error: { message: string } };
    expect(refused.error.message).toMatch(/^the upstream server refuses this: .*tokens/);
    const release = (id: string) => local.api('POST', '/v1/releases', { channel: 'canary', policy: id });
    const breaking = createServer((_, response) => {
      response.write('data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n');
      setTimeout(() => response.destroy(), 50);
    }).listen(0, '127.0.0.1');
    await once(breaking, 'listening');
    const failing = {
      nobody: 'http://127.0.0.1:9/v1',
      stranger: `${server.url.replace('127.0.0.1', 'localhost')}/v1`,
      breaking: `http://127.0.0.1:${(breaking.address() as AddressInfo).port}/v1`,
    };
    const said: Record<string, [number, string | undefined]> = {};
    for (const [name, url] of Object.entries(failing)) {
      const id = await publishUpstream(local.home, { url, model: 'stable' }, name);
      await release(id);
      await expect
        .poll(
          async () => {
            const response = await post({ model: 'canary' });
            const { model, error } = (await response.json()) as { model?: string; error?: { message: string } };
            said[name] = [response.status, error?.message];
            return model;
          },
          { timeout: 30_000, interval: 500 },
        )
        .toBeUndefined();
    }
    expect(said).toEqual({
      nobody: [502, 'the upstream server cannot be reached'],
      stranger: [
        502,
        'the upstream server answered with 401: the key that PLUMB_UPSTREAM_KEYS has for it, if any, is not taken',
      ],
      breaking: [502, 'the upstream server broke off'],
    });
    // a stream has begun by then, and says it itself
    const streamed = await post({ model: 'canary', stream: true });
    expect(await streamed.text()).toContain('data: {"error":{"message":"the upstream server broke off"');
    breaking.close();
  },
  2 * MINUTES,
);

test(
  'who leaves stops the server, too',
  async () => {
    const leaving = new AbortController();
    const response = await post({ stream: true, max_tokens: 200, logit_bias: { 2: -100, 1: -100 } }, leaving.signal);
    const reader = response.body!.getReader();
    await reader.read();
    leaving.abort();
    const aborted = () =>
      withStore(server.home, ({ DB }) =>
        DB.prepare("SELECT count(*) AS n FROM samples WHERE finish_reason = 'abort'").first<{ n: number }>(),
      );
    await expect.poll(async () => (await aborted())!.n, { timeout: 30_000, interval: 500 }).toBeGreaterThan(0);
  },
  MINUTES,
);

test.each([false, true])(
  'who leaves stops a server that takes its time (stream: %s)',
  async (stream) => {
    let open = 0;
    const slow = createServer((_, response) => {
      open++;
      const timer = setInterval(() => response.write('data: {"choices": [{"delta": {"content": "a"}}]}\n\n'), 100);
      response.on('close', () => {
        clearInterval(timer);
        open--;
      });
    }).listen(0, '127.0.0.1');
    await once(slow, 'listening');
    const url = `http://127.0.0.1:${(slow.address() as AddressInfo).port}/v1`;
    const model = await publishUpstream(local.home, { url, model: 'slow' }, `slow ${stream}`);
    const stored = () =>
      withStore(local.home, async ({ DB }) => {
        const { results } = await DB.prepare('SELECT finish_reason FROM samples WHERE policy = ?').bind(model).all();
        return results.map(({ finish_reason }) => finish_reason);
      });
    const answer = post({ model, stream }, AbortSignal.timeout(4_000)).then((response) => response.text());
    await expect(answer).rejects.toThrow();
    await expect.poll(() => open, { timeout: 10_000 }).toBe(0);
    const sent = stream ? ['abort'] : []; // of an answer in one piece nothing was
    await expect.poll(stored, { timeout: 10_000, interval: 500 }).toEqual(sent);
    slow.close();
  },
  MINUTES,
);

test(
  'nothing is trained from it, and its weights cannot be exported',
  async () => {
    const votes = Array.from({ length: 200 }, async (_, i) => {
      const { choices } = await local.api<{ choices: { sample_id: string }[] }>('POST', '/v1/samples', {
        prompt: `question ${i}`,
        choices: [{ text: 'answer' }],
        model: 'elsewhere',
      });
      const vote = { kind: 'thumb', sample_id: choices[0]!.sample_id, value: 1, rater: { id: 'ann' } };
      await local.api('POST', '/v1/feedback', vote);
    });
    await Promise.all(votes);
    await expect(local.api('POST', '/v1/runs', {})).rejects.toThrow(/422.*no weights here to train/);
    await local.tick();
    expect((await local.api<{ data: object[] }>('GET', '/v1/runs')).data).toEqual([]);
    const listed = await local.api<{ upstream: object }>('GET', `/v1/policies/${policy}`);
    expect(listed.upstream).toEqual({ url: `${server.url}/v1`, model: 'stable' });
  },
  MINUTES,
);

test(
  'plumb import takes an address with the name of a model',
  async () => {
    const home = mkdtempSync(join(tmpdir(), 'plumb-upstream-'));
    const run = (...args: string[]) => plumb(args, { PLUMB_HOME: home }).ended;
    const imported = await run('import', 'http://127.0.0.1:9/v1/', '--model', 'llama', '--release', 'stable');
    expect([imported.code, lines(imported).at(-1)]).toEqual([0, expect.stringMatching(/^pol_/)]);
    expect(lines(imported)).toContainEqual(
      expect.stringMatching(/^nothing answers at http:\/\/127\.0\.0\.1:9\/v1 now/),
    );
    const known = await run('import', 'https://me:secret@127.0.0.1/v1', '--model', 'llama');
    expect([known.code, lines(known)]).toEqual([1, [expect.stringMatching(/holds a password.*PLUMB_UPSTREAM_KEYS/)]]);
    const out = await run('export', 'stable', '--to', join(home, 'out'));
    expect([out.code, lines(out)]).toEqual([
      1,
      [expect.stringMatching(/decodes at http:\/\/127\.0\.0\.1:9\/v1: its weights are not here/)],
    ]);
    const unnamed = await run('import', 'http://127.0.0.1:9/v1');
    expect([unnamed.code, lines(unnamed)]).toEqual([1, [expect.stringMatching(/--model says which model/)]]);
    const misplaced = await run('import', home, '--model', 'llama');
    expect([misplaced.code, lines(misplaced)]).toEqual([1, [expect.stringMatching(/give its address/)]]);
    rmSync(home, { recursive: true, force: true });
  },
  2 * MINUTES,
);
