// How the Worker uses its database: few round trips, no full scans, nothing true in one isolate alone.
import { beforeAll, describe, expect, test } from 'vitest';
import { type Env, settings } from '../../functions/env.ts';
import { tick } from '../../functions/jobs/schedule.ts';
import { importPolicy } from '../../functions/store/policies.ts';
import { jobToken } from '../../functions/token.ts';
import { ask, keyOf, env as plain } from './support.ts';
import { type Tiny, tinyPolicy } from './tiny.ts';
import { type Watched, watch } from './watched.ts';

const base: Env = {
  ...plain,
  PLUMB_MIN_FEEDBACK: '1',
  PLUMB_LAUNCHER_URL: 'http://launcher.test/launch',
  PLUMB_LAUNCHER_TOKEN: 'of-the-launcher',
};
/** Another isolate: it shares the database and the bucket, and remembers nothing. */
const isolate = (): { env: Env; watched: Watched } => {
  const watched = watch(plain.DB);
  return { env: { ...base, DB: watched.d1 }, watched };
};

let sk = '';
let pk = '';
let tiny: Tiny;
beforeAll(async () => {
  sk = await keyOf('sk');
  pk = await keyOf('pk');
  tiny = await tinyPolicy();
  await importPolicy(plain.DB, plain.BUCKET, tiny.manifest, tiny.files, 'stable');
});
const chat = { model: 'stable', messages: [{ role: 'user', content: 'the quick' }], max_tokens: 4, n: 4 };

describe('round trips', () => {
  test('a completion reads once before it decodes, not at all with fresh caches, and writes once', async () => {
    const { env, watched } = isolate();
    for (const stream of [false, true]) {
      const was = watched.trips;
      expect((await ask('POST', '/v1/chat/completions', { key: sk, env, body: { ...chat, stream } })).status).toBe(200);
      expect(watched.trips - was).toBe(stream ? 1 : 2);
    }
  });

  test('an Idempotency-Key is claimed in the trip that reads who asks', async () => {
    const { env, watched } = isolate();
    const keyed = (key: string) =>
      ask('POST', '/v1/chat/completions', { key: sk, env, body: chat, headers: { 'Idempotency-Key': key } });
    expect((await keyed('one')).status).toBe(200);
    expect(watched.trips).toBe(2);
    expect((await keyed('one')).headers.get('Idempotent-Replayed')).toBe('true');
    expect(watched.trips).toBe(3);
  });

  test('a rate limit costs no round trip of its own: it is counted where the key is read', async () => {
    const { env, watched } = isolate();
    const limited = { ...env, PLUMB_RATE_LIMIT: '2' };
    // What is counted is a minute of the clock.
    while ((Date.now() / 1000) % 60 > 55) await new Promise((resolve) => setTimeout(resolve, 500));
    const key = await keyOf('sk');
    const asked = async () => (await ask('POST', '/v1/chat/completions', { key, env: limited, body: chat })).status;
    expect(await asked()).toBe(200);
    expect(watched.trips).toBe(2);
    expect(await asked()).toBe(200);
    expect(watched.trips).toBe(4);
    const late = await ask('POST', '/v1/chat/completions', { key, env: limited, body: chat });
    expect([late.status, late.json.error.code]).toEqual([429, 'rate_limit_exceeded']);
    const second = (Date.now() / 1000) % 60;
    const wait = Number(late.headers.get('Retry-After'));
    expect(Math.abs(wait + second - 60)).toBeLessThan(2); // until the next minute of the clock
    // a key that is not known leaves no row; visitors of a page are counted each by their address
    expect((await ask('GET', '/v1/models', { key: 'sk_unknown', env: limited })).status).toBe(401);
    const visitor = async (address: string) => {
      const headers = { 'CF-Connecting-IP': address };
      return (await ask('POST', '/v1/sessions', { key: pk, env: limited, body: {}, headers })).status;
    };
    const first = await visitor('192.0.2.1');
    expect([await visitor('192.0.2.1'), await visitor('192.0.2.1'), await visitor('192.0.2.2')]).toEqual([
      first,
      429,
      first,
    ]);
    const { results } = await plain.DB.prepare('SELECT caller, count FROM rates').all();
    expect(results).toHaveLength(3);
  });

  test('feedback is one batch, of a server and of a page', async () => {
    const { env, watched } = isolate();
    const drawn = (await ask('POST', '/v1/chat/completions', { key: sk, env: base, body: chat })).json;
    const sample_id = drawn.choices[0].sample_id;
    const vote = (key: string, body: object) =>
      ask('POST', '/v1/feedback', { key, env, body: { kind: 'thumb', sample_id, value: 1, ...body } });
    for (const [key, body] of [
      [sk, { rater: { id: 'ann' } }],
      [pk, { token: drawn.feedback_token }],
    ] as const) {
      await vote(key, body);
      const was = watched.trips;
      expect((await vote(key, { ...body, value: -1 })).status).toBe(200);
      expect(watched.trips - was).toBe(1);
    }
  });
});

describe('many isolates', () => {
  test('a revoked key is dead in another one within 30 seconds', async () => {
    const { env } = isolate();
    const made = (await ask('POST', '/v1/keys', { key: sk, env: base, body: { kind: 'sk' } })).json;
    expect((await ask('GET', '/v1/keys', { key: made.key, env })).status).toBe(200);
    await ask('DELETE', `/v1/keys/${made.id}`, { key: sk, env: base });
    await expect
      .poll(async () => (await ask('GET', '/v1/keys', { key: made.key, env })).status, {
        timeout: 15_000,
        interval: 500,
      })
      .toBe(401);
  });

  test('a release made in one is served by another within two seconds', async () => {
    const { env } = isolate();
    const model = async () => (await ask('POST', '/v1/chat/completions', { key: sk, env, body: chat })).json.model;
    expect(await model()).toBe(tiny.manifest.id);
    const next = await tinyPolicy(2);
    await importPolicy(plain.DB, plain.BUCKET, next.manifest, next.files);
    await ask('POST', '/v1/releases', { key: sk, env: base, body: { channel: 'stable', policy: next.manifest.id } });
    await expect.poll(model, { timeout: 2000 }).toBe(next.manifest.id);
    await ask('POST', '/v1/releases/rollback', { key: sk, env: base, body: { channel: 'stable' } });
    await expect.poll(model, { timeout: 2000 }).toBe(tiny.manifest.id);
  });
});

test('no query of any route, nor of the cron, scans a table', { timeout: 60_000 }, async () => {
  const { env: unlimited, watched } = isolate();
  const env = { ...unlimited, PLUMB_RATE_LIMIT: '1000' };
  const call = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}, key = sk) => {
    const answer = await ask(method, path, { key, env, headers, ...(body === undefined ? {} : { body }) });
    expect(answer.status, `${method} ${path} ${answer.text}`).toBeLessThan(400);
    return answer.json;
  };
  const headers = { 'Idempotency-Key': 'scan' };
  const drawn = await call('POST', '/v1/chat/completions', { ...chat, user: 'ann' }, headers);
  const ids: string[] = drawn.choices.map((choice: { sample_id: string }) => choice.sample_id);
  await call('POST', '/v1/samples', { prompt: 'p', choices: [{ text: 't' }], model: 'm' });
  for (const body of [
    { kind: 'thumb', sample_id: ids[0], value: 1 },
    { kind: 'choice', sample_ids: ids.slice(0, 2), winner: 'tie' },
    { kind: 'correction', sample_id: ids[0], text: 'other', rater: { id: 'eve', cohorts: { a: 'b' } } },
  ])
    await call('POST', '/v1/feedback', body, { 'Idempotency-Key': body.kind });
  const vote = await call('POST', '/v1/feedback', { kind: 'rating', sample_id: ids[0], aspect: 'ethics', value: 3 });
  await call('PUT', `/v1/feedback/${vote.id}`, { kind: 'rating', sample_id: ids[0], aspect: 'ethics', value: 4 });
  await call(
    'PUT',
    `/v1/feedback/${vote.id}`,
    { kind: 'rating', sample_id: ids[0], aspect: 'ethics', value: 5 },
    { 'Feedback-Token': drawn.feedback_token },
  );
  await call('DELETE', `/v1/feedback/${vote.id}`);
  const gone = 'fb_01ARZ3NDEKTSV4RRFFQ69G5FAV';
  const times = 'since=2020-01-01T00:00:00Z&until=2100-01-01T00:00:00Z';
  await tick(env);
  const [run] = (await call('GET', '/v1/runs?status=launched')).data;
  for (const query of [
    '',
    'kind=thumb',
    `policy=${tiny.manifest.id}`,
    `rater=${vote.rater}`,
    `run=${run.id}`,
    times,
    'undone=true',
    'order=desc',
    `after=${vote.id}`,
    `after=${gone}`,
    `after=${gone}&order=desc`,
  ])
    await call('GET', `/v1/feedback?${query}`);
  for (const query of ['', 'policy=m', times, `after=${ids[0]}`]) await call('GET', `/v1/samples?${query}`);
  await call('GET', `/v1/samples/${ids[0]}`);
  for (const kind of ['preference', 'unpaired', 'ranking', 'correction', 'rating'])
    for (const query of ['', `policy=${tiny.manifest.id}&${times}`, `snapshot=${run.snapshot}`, `after=${vote.id}`])
      await call('GET', `/v1/datasets/${kind}?${query}`);
  for (const path of [
    'models',
    `models/${tiny.manifest.id}`,
    'policies',
    `policies/${tiny.manifest.id}`,
    'releases',
    'releases?channel=stable',
    'runs',
    `runs/${run.id}`,
    `runs/${run.id}/metrics`,
    'keys',
  ])
    await call('GET', `/v1/${path}`);
  const key = await jobToken(settings(env), run.id);
  const job = `/v1/jobs/${run.id}`;
  await call('GET', job, undefined, {}, key);
  await call(
    'POST',
    `${job}/heartbeat`,
    { fence: 1, stage: 'ppo', step: 1, steps: 2, metrics: [{ step: 1, name: 'kl', value: 1 }] },
    {},
    key,
  );
  await call('PUT', `${job}/checkpoint`, { fence: 1, stage: 'ppo', step: 1, files: [], state: {} }, {}, key);
  await tick(env);
  const publish = { fence: 1, report: {}, verdict: 'reject' };
  await call('POST', `${job}/publish`, publish, {}, key);
  await call('POST', `${job}/publish`, publish, {}, key);
  await call('POST', '/v1/runs', {}, headers);
  const [active] = (await call('GET', '/v1/runs?status=queued')).data;
  await call('POST', `/v1/runs/${active.id}/cancel`);
  await call('POST', '/v1/releases', { channel: 'canary', policy: tiny.manifest.id }, headers);
  await call('DELETE', `/v1/keys/${(await call('POST', '/v1/keys', { kind: 'sk' })).id}`);
  await call('GET', '/readyz');

  const texts = new Map(watched.statements.map((note) => [note.sql, note.params]));
  expect(texts.size).toBeGreaterThan(60);
  const tables = (
    await plain.DB.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").all<{ name: string }>()
  ).results.map(({ name }) => name);
  const scans: string[] = [];
  for (const [sql, params] of texts) {
    const { results } = await plain.DB.prepare(`EXPLAIN QUERY PLAN ${sql}`)
      .bind(...params)
      .all<{ detail: string }>();
    for (const { detail } of results) {
      const [, name = ''] = /^SCAN (\S+)/.exec(detail) ?? [];
      const alias = new RegExp(`\\b(?:FROM|JOIN) +"?(\\w+)"? +(?:AS +)?"?${name}"?\\b`, 'i').exec(sql)?.[1] ?? '';
      if (tables.includes(name) || (name && tables.includes(alias))) scans.push(`${detail}: ${sql}`);
    }
  }
  expect(scans).toEqual([]);
});
