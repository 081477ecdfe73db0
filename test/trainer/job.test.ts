import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Worker } from 'node:worker_threads';
import { afterEach, expect, test, vi } from 'vitest';
import { Heartbeat } from '../../schema/wire-runs.ts';
import { client, heartbeats } from '../../trainer/job.ts';
import { startPulse } from '../../trainer/pulse.ts';

afterEach(() => void vi.useRealTimers());
const noPulse = { note: () => {}, beaten: () => {}, stop: () => {} };

/** A Worker that takes beats, and while it is away refuses them or breaks the connection off. */
async function worker() {
  const taken: Heartbeat['metrics'][] = [];
  const state = { away: false, asked: 0, taken };
  const server = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => {
      state.asked++;
      if (state.away && state.asked % 2 === 0) return void request.socket.destroy();
      response.setHeader('content-type', 'application/json');
      if (state.away) return void response.writeHead(503).end('{}');
      taken.push(Heartbeat.parse(JSON.parse(body)).metrics);
      response.end(JSON.stringify({ lease_until: new Date(Date.now() + 60_000).toISOString(), cancel: false }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { state, url, close: () => new Promise((resolve) => server.close(resolve)) };
}

/** Lets so many seconds pass, with what the network does in each of them. */
async function passes(seconds: number, each: (second: number) => unknown = () => {}) {
  for (let second = 0; second < seconds; second++) {
    await each(second);
    await vi.advanceTimersByTimeAsync(1000);
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  }
}

test('a Worker that is away for a minute gets every number that was noted meanwhile, once and in order', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'Date'] });
  const { state, url, close } = await worker();
  const beats = heartbeats(client({ url, run: 'run_1', token: 'rt_1' }), 1, 15_000, noPulse);
  let step = 0;
  const noted = () => {
    step++;
    beats.note({ stage: 'ppo', step, steps: 1000, metrics: { 'objective/score': step, 'objective/kl': -step } });
    void beats.check(); // steps go on while a beat is under way
  };
  await passes(20, noted);
  const before = state.taken.flat().length;
  expect(before).toBeGreaterThan(0);
  state.away = true;
  await passes(60, noted);
  expect(state.asked).toBeGreaterThan(10);
  expect(state.taken.flat().length).toBeLessThanOrEqual(before + 2);
  state.away = false;
  await passes(60, noted);
  const flushed = beats.flush();
  await passes(5);
  await flushed;
  beats.stop();
  expect(state.taken.flat().map(({ value }) => value)).toEqual(
    Array.from({ length: 140 }, (_, i) => [i + 1, -i - 1]).flat(),
  );
  await close();
}, 300_000);

/** Takes beats in a thread of its own, so that the test's may be held up. */
const TAKER = `
const { parentPort } = require('node:worker_threads');
const taken = [];
const server = require('node:http').createServer((request, response) => {
  let body = '';
  request.on('data', (chunk) => (body += chunk));
  request.on('end', () => {
    taken.push({ at: Date.now(), path: request.url, auth: request.headers.authorization, ...JSON.parse(body) });
    response.end('{}');
  });
});
server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
parentPort.on('message', () => parentPort.postMessage(taken));`;

test('while the trainer’s thread is held up, as by a compilation, the lease is kept by another; else that one is silent', async () => {
  const taker = new Worker(TAKER, { eval: true });
  const [port] = await once(taker, 'message');
  const takes = async () => {
    taker.postMessage('');
    return (await once(taker, 'message'))[0] as {
      at: number;
      path: string;
      auth: string;
      stage: string;
      step: number;
    }[];
  };
  const pulse = startPulse({ url: `http://127.0.0.1:${port}`, run: 'run_1', token: 'rt_1', fence: 3, interval: 400 });
  pulse.beaten();
  pulse.note('ppo', 5, 9);
  const from = Date.now();
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4000); // nothing of this thread runs
  const held = await takes();
  expect(held.length).toBeGreaterThanOrEqual(4);
  expect(held[0]).toMatchObject({
    path: '/v1/jobs/run_1/heartbeat',
    auth: 'Bearer rt_1',
    fence: 3,
    stage: 'ppo',
    step: 5,
    steps: 9,
    metrics: [],
  });
  expect(held[0]!.at - from).toBeGreaterThan(350);
  const before = (await takes()).length;
  for (let i = 0; i < 30; i++) {
    pulse.beaten();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  expect((await takes()).length).toBeLessThanOrEqual(before + 1);
  pulse.stop();
  await new Promise((resolve) => setTimeout(resolve, 100));
  const last = (await takes()).length;
  await new Promise((resolve) => setTimeout(resolve, 1200));
  expect(await takes()).toHaveLength(last);
  await taker.terminate();
});

test('a download that is not what was announced is not taken', async () => {
  const server = createServer((_, response) => response.end('these are not the weights'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const { blob } = client({ url, run: 'run_1', token: 'rt_1' });
  const hashOf = (text: string) => createHash('sha256').update(text).digest('hex');
  expect(Buffer.from(await blob(`${url}/x`, hashOf('these are not the weights'))).toString()).toMatch(/^these/);
  await expect(blob(`${url}/x`, hashOf('these are the weights'))).rejects.toThrow(/another hash than announced/);
  server.close();
});

test('what waited goes in beats of what one takes, all of it before the end; of too much the oldest is lost', async () => {
  const taken: number[][] = [];
  let away = true;
  const api = {
    json: async (_schema: unknown, _method: string, _path: string, body?: object) => {
      if (away) throw new Error('away');
      taken.push((body as Heartbeat).metrics.map(({ value }) => value));
      return { lease_until: '', cancel: false };
    },
  };
  const beats = heartbeats(api as never, 1, 15_000, noPulse);
  const note = (from: number, count: number) => {
    for (let i = from; i < from + count; i++) beats.note({ stage: 'sft', step: i, steps: i, metrics: { loss: i } });
  };
  note(0, 9000);
  await beats.check();
  away = false;
  await beats.flush();
  expect(taken.map(({ length }) => length)).toEqual([2000, 2000, 2000, 2000, 1000]);
  expect(taken.flat()).toEqual(Array.from({ length: 9000 }, (_, i) => i));

  away = true;
  taken.length = 0;
  note(0, 100_003);
  await beats.flush();
  away = false;
  await beats.flush();
  beats.stop();
  expect([taken.flat().length, taken[0]![0]]).toEqual([100_000, 3]);
});
