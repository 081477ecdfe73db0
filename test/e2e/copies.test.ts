// Two copies of the Worker over one database and one bucket, as the edge has many: what is true in one is true in the other, for
// nothing that is true of the system lives in a module's variable.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { importPolicy } from '../../functions/store/policies.ts';
import { freePort } from '../../infra/home.ts';
import { startWorker, withStore } from '../../infra/local.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';
import { SEED_FOLDER } from '../support/seed.ts';

let first: TestLocal;
let second: Awaited<ReturnType<typeof startWorker>>;
let other: string;

beforeAll(async () => {
  first = await startTestLocal();
  // A start looks through the database's journal, and ends where the other writes at that moment.
  for (let tries = 1; !second; tries++) {
    const port = await freePort();
    const started = await startWorker(first.home, port, first.bindings);
    other = `http://127.0.0.1:${port}`;
    try {
      await started.ready;
      second = started;
    } catch (error) {
      await started.dispose();
      if (tries === 3 || !`${error}`.includes('SQLITE_BUSY')) throw error;
    }
  }
}, 300_000);
afterAll(async () => {
  await second?.dispose();
  await first?.close();
}, 300_000);

const call = (url: string, key: string, method: string, path: string, body?: object) =>
  fetch(url + path, {
    method,
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: body ? JSON.stringify(body) : null,
  });
const ask = async (url: string, key: string) => {
  const body = { model: 'stable', messages: [{ role: 'user', content: 'Hello' }], max_tokens: 4, user: 'ada' };
  const response = await call(url, key, 'POST', '/v1/chat/completions', body);
  return {
    status: response.status,
    answer: (await response.json()) as { model: string; choices: { sample_id: string }[]; feedback_token: string },
  };
};

test('a key made at one works at the other, and within 30 seconds of its end neither takes it', async () => {
  const made = (await (await call(first.url, first.keys.secret, 'POST', '/v1/keys', { kind: 'sk' })).json()) as {
    id: string;
    key: string;
  };
  // each has seen it, and may remember it
  for (const url of [first.url, other]) expect((await ask(url, made.key)).status).toBe(200);
  expect((await call(other, first.keys.secret, 'DELETE', `/v1/keys/${made.id}`)).status).toBe(204);
  const until = Date.now() + 30_000;
  const statuses = async () => Promise.all([first.url, other].map(async (url) => (await ask(url, made.key)).status));
  let last = await statuses();
  while (last.some((status) => status !== 401) && Date.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    last = await statuses();
  }
  expect(last).toEqual([401, 401]);
}, 300_000);

test('what one answered is judged at the other, once', async () => {
  const { answer } = await ask(first.url, first.keys.secret);
  const vote = { kind: 'thumb', sample_id: answer.choices[0]!.sample_id, value: 1, token: answer.feedback_token };
  const placed = await call(other, first.keys.secret, 'POST', '/v1/feedback', vote);
  expect(placed.status).toBe(201);
  const again = await call(first.url, first.keys.secret, 'POST', '/v1/feedback', vote);
  expect(again.status).toBe(200);
  expect(((await again.json()) as { id: string }).id).toBe(((await placed.json()) as { id: string }).id);
}, 300_000);

test('an idempotency key used at one is known at the other', async () => {
  const { answer } = await ask(other, first.keys.secret);
  const send = (url: string, value: number) =>
    fetch(`${url}/v1/feedback`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${first.keys.secret}`,
        'content-type': 'application/json',
        'idempotency-key': 'copies',
      },
      body: JSON.stringify({
        kind: 'thumb',
        sample_id: answer.choices[0]!.sample_id,
        value,
        token: answer.feedback_token,
      }),
    });
  expect((await send(first.url, 1)).status).toBe(201);
  const replayed = await send(other, 1);
  expect([replayed.status, replayed.headers.get('idempotent-replayed')]).toEqual([201, 'true']);
  expect((await send(other, -1)).status).toBe(422);
}, 300_000);

test('a release made at one is served by the other within two seconds, with no request lost', async () => {
  const { manifest, files } = importFrom(SEED_FOLDER, 'the same under another id');
  await withStore(first.home, ({ DB, BUCKET }) => importPolicy(DB, BUCKET, manifest, Object.fromEntries(files)));
  const released = await call(first.url, first.keys.secret, 'POST', '/v1/releases', {
    channel: 'stable',
    policy: manifest.id,
  });
  expect(released.status).toBe(201);
  const since = Date.now();
  const seen: { status: number; model: string; at: number }[] = [];
  while (Date.now() - since < 4000) {
    const at = Date.now() - since;
    const { status, answer } = await ask(other, first.keys.secret);
    seen.push({ status, model: answer.model, at });
  }
  expect(seen.filter(({ status }) => status !== 200)).toEqual([]);
  const late = seen.filter(({ at }) => at > 2000).map(({ model }) => model);
  expect(new Set(late)).toEqual(new Set([manifest.id]));
}, 300_000);

test('a rate limit counts what both were asked', async () => {
  const LIMIT = 40;
  const ports = [await freePort(), await freePort()];
  const limited = { ...first.bindings, PLUMB_RATE_LIMIT: String(LIMIT) };
  const copies = await Promise.all(ports.map((port) => startWorker(first.home, port, limited)));
  try {
    await Promise.all(copies.map((copy) => copy.ready));
    const made = (await (await call(first.url, first.keys.secret, 'POST', '/v1/keys', { kind: 'sk' })).json()) as {
      key: string;
    };
    // Within one minute of the clock.
    const seconds = () => (Date.now() / 1000) % 60;
    while (seconds() > 50) await new Promise((resolve) => setTimeout(resolve, 500));
    const statuses: number[] = [];
    for (let i = 0; i < LIMIT + 10; i++) {
      const response = await call(`http://127.0.0.1:${ports[i % 2]}`, made.key, 'GET', '/v1/models');
      statuses.push(response.status);
      if (response.status === 429) expect(Number(response.headers.get('retry-after'))).toBeGreaterThan(0);
      await response.arrayBuffer();
    }
    expect(statuses.filter((status) => status === 200)).toHaveLength(LIMIT);
    expect(statuses.slice(LIMIT)).toEqual(Array(10).fill(429));
  } finally {
    await Promise.all(copies.map((copy) => copy.dispose()));
  }
}, 300_000);
