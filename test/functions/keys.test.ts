import { beforeAll, describe, expect, test } from 'vitest';
import { ask, env, keyOf, ORIGIN } from './support.ts';

let sk = '';
let pk = '';
beforeAll(async () => {
  sk = await keyOf('sk');
  pk = await keyOf('pk');
});

describe('keys', () => {
  test('a key is made, works, is listed without its text, and is dead once revoked', async () => {
    const made = await ask('POST', '/v1/keys', { key: sk, body: { kind: 'sk', name: 'one', scopes: ['admin'] } });
    expect(made.status).toBe(201);
    expect(made.json.key).toMatch(/^sk_/);
    expect((await ask('GET', '/v1/keys', { key: made.json.key })).status).toBe(200);
    const { json, text } = await ask('GET', '/v1/keys?limit=1000', { key: sk });
    expect(json.data.map((row: { id: string }) => row.id)).toContain(made.json.id);
    expect(text).not.toContain(made.json.key);
    const stored = await env.DB.prepare('SELECT * FROM keys WHERE id = ?').bind(made.json.id).first();
    expect(JSON.stringify(stored)).not.toContain(made.json.key);

    expect((await ask('DELETE', `/v1/keys/${made.json.id}`, { key: sk })).status).toBe(204);
    const trace = () =>
      env.DB.batch([
        env.DB.prepare('SELECT revoked_at FROM keys WHERE id = ?').bind(made.json.id),
        env.DB.prepare("SELECT at FROM audit WHERE action = 'key.revoke' AND subject = ?").bind(made.json.id),
      ]).then((answers) => answers.map(({ results }) => results));
    const once = await trace();
    expect(once.map((rows) => rows.length)).toEqual([1, 1]);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect((await ask('DELETE', `/v1/keys/${made.json.id}`, { key: sk })).status).toBe(204);
    expect(await trace()).toEqual(once);
    expect((await ask('GET', '/v1/keys', { key: made.json.key })).status).toBe(401);
    // nor can it take an idempotency key for itself
    const claims = () => env.DB.prepare('SELECT count(*) AS n FROM requests').first<{ n: number }>();
    const before = await claims();
    for (const key of [made.json.key, `sk_${'x'.repeat(43)}`]) {
      const headers = { 'Idempotency-Key': 'late' };
      const body = { prompt: 'Hi', choices: [{ text: 'Yes.' }], model: 'elsewhere' };
      expect((await ask('POST', '/v1/samples', { key, body, headers })).status).toBe(401);
    }
    expect(await claims()).toEqual(before);
    expect((await ask('DELETE', '/v1/keys/key_01ARZ3NDEKTSV4RRFFQ69G5FAV', { key: sk })).status).toBe(404);
  });

  test('a scope that a key lacks is 403, and so is a public key', async () => {
    const reader = await keyOf('sk', ['read']);
    expect((await ask('GET', '/v1/keys', { key: reader })).status).toBe(403);
    expect((await ask('GET', '/v1/keys', { key: pk })).status).toBe(403);
  });

  test('lists go on after a cursor, also after one whose row is gone', async () => {
    const all = (await ask('GET', '/v1/keys?limit=1000', { key: sk })).json.data.map((row: { id: string }) => row.id);
    const first = await ask('GET', '/v1/keys?limit=1', { key: sk });
    expect(first.json).toMatchObject({ object: 'list', first_id: all[0], last_id: all[0], has_more: true });
    const rest = await ask('GET', `/v1/keys?after=${all[0]}&limit=1000`, { key: sk });
    expect(rest.json.data.map((row: { id: string }) => row.id)).toEqual(all.slice(1));
    const back = await ask('GET', '/v1/keys?order=desc&limit=1000', { key: sk });
    expect(back.json.data.map((row: { id: string }) => row.id)).toEqual(all.toReversed());
    await env.DB.prepare('DELETE FROM keys WHERE id = ?').bind(all.at(-1)).run();
    const gone = await ask('GET', `/v1/keys?after=${all.at(-1)}`, { key: sk });
    expect(gone.json.data).toEqual([]);
    // downwards too, whether others were made since or not
    const below = async () =>
      (await ask('GET', `/v1/keys?order=desc&after=${all.at(-1)}`, { key: sk })).json.data.map(
        (row: { id: string }) => row.id,
      );
    for (let since = 0; since < 3; since++) {
      expect(await below()).toEqual(all.slice(0, -1).toReversed());
      await new Promise((resolve) => setTimeout(resolve, 5));
      await keyOf('sk');
    }
  });
});

describe('kinds of keys', () => {
  test('an evaluator’s key is for its own routes; HEAD is as GET', async () => {
    const ek = await keyOf('ek');
    expect((await ask('GET', '/v1/keys', { key: ek })).status).toBe(403);
    // until there are such routes nobody is handed a key that opens nothing
    expect((await ask('POST', '/v1/keys', { key: sk, body: { kind: 'ek' } })).status).toBe(422);
    const head = await ask('HEAD', '/v1/keys', { key: sk });
    expect([head.status, head.text]).toEqual([200, '']);
  });
});

describe('the order of checks', () => {
  const create = (over: Parameters<typeof ask>[2]) =>
    ask('POST', '/v1/keys', { key: sk, body: { kind: 'sk' }, ...over });

  test('404 before 405 before 401', async () => {
    const lost = await ask('POST', '/v1/nowhere');
    expect(lost.status).toBe(404);
    expect(lost.headers.get('Content-Type')).toBe('application/problem+json');
    expect(lost.json).toMatchObject({ title: 'Not Found', status: 404 });
    const wrong = await ask('PUT', '/v1/keys');
    expect(wrong.status).toBe(405);
    expect(wrong.headers.get('Allow')).toBe('GET, POST, HEAD, OPTIONS');
  });

  test('401 says how, 403 comes before the body is looked at', async () => {
    for (const headers of [{}, { Authorization: 'Bearer sk_nobody' }, { Authorization: 'Basic abc' }]) {
      const none = await ask('POST', '/v1/keys', { body: '{', headers });
      expect(none.status).toBe(401);
      expect(none.headers.get('WWW-Authenticate')).toMatch(/^Bearer/);
    }
    expect((await ask('POST', '/v1/keys', { key: pk, body: 'x'.repeat(300_000) })).status).toBe(403);
  });

  test('413 before 415 before 400', async () => {
    const headers = { 'Content-Type': 'text/plain' };
    expect((await create({ body: 'x'.repeat(300_000), headers })).status).toBe(413);
    expect((await create({ body: '{', headers })).status).toBe(415);
    expect(
      (await create({ body: new TextEncoder().encode('{}') as never, headers: { 'Content-Type': '' } })).status,
    ).toBe(415);
    expect((await create({ body: '{' })).status).toBe(400);
    expect((await create({ body: '' })).status).toBe(400);
    expect((await create({ body: new Uint8Array([0x22, 0xff, 0x22]) })).status).toBe(400);
  });

  test('unknown and impossible fields are named by their path', async () => {
    const unknown = await create({ body: { kind: 'sk', scoops: [] } });
    expect(unknown.status).toBe(400);
    expect(unknown.json.errors).toEqual([{ path: 'scoops', message: 'is not known' }]);
    expect((await create({ body: { kind: 'sk', name: null } })).status).toBe(400);
    for (const origin of ['https://a.example/path', 'ftp://a.example', 'a.example'])
      expect((await create({ body: { kind: 'pk', origins: [origin] } })).json.errors[0].path).toBe('origins[0]');
    expect((await create({ body: { kind: 'pk', scopes: ['admin'] } })).status).toBe(422);
    const secret = await create({ body: { kind: 'sk', origins: ['https://shop.example'] } });
    expect([secret.status, secret.json.detail]).toEqual([422, 'origins are for public keys']);
    for (const body of [{ kind: 'pk' }, { kind: 'pk', origins: [] }]) {
      const nowhere = await create({ body });
      expect([nowhere.status, nowhere.json.detail]).toEqual([422, 'origins are needed for a public key']);
    }
  });

  test('nothing that comes is a 500', async () => {
    for (const body of [
      '['.repeat(100_000),
      `${'['.repeat(100_000)}${']'.repeat(100_000)}`,
      'null',
      '1',
      '"x"',
      '{"kind":{}}',
      '{"__proto__":1}',
    ]) {
      expect((await create({ body })).status, body.slice(0, 20)).toBe(400);
      expect((await ask('POST', '/v1/chat/completions', { key: sk, body })).status, body.slice(0, 20)).toBe(400);
    }
    for (const path of ['/v1/samples/%E0%A4', '/v1/samples/..%2f', '/v1/keys/%00', '/v1/feedback/x'])
      expect((await ask('DELETE', path, { key: sk })).status, path).toBeLessThan(500);
  });

  test('a body nested more than 64 deep is 400 and told so', async () => {
    const nested = (depth: number) => `{"name":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)}}`;
    const detail = 'the body is nested too deeply';
    for (const depth of [65, 5000]) {
      const { status, json } = await create({ body: nested(depth) });
      expect([status, json.detail]).toEqual([400, detail]);
      const chat = await ask('POST', '/v1/chat/completions', { key: sk, body: nested(depth) });
      expect([chat.status, chat.json.error.message]).toEqual([400, detail]);
    }
    const within = await create({ body: nested(64) });
    expect([within.status, within.json.detail === detail]).toEqual([400, false]);
  });

  test('unknown, repeated and malformed query parameters are 400', async () => {
    for (const query of ['x=1', 'limit=1&limit=2', 'limit=0', 'limit=1001', 'limit=x', 'after=pol_x', 'order=up'])
      expect((await ask('GET', `/v1/keys?${query}`, { key: sk })).status, query).toBe(400);
  });

  test('a preflight is answered to any origin; errors can be read by pages too', async () => {
    const preflight = await ask('OPTIONS', '/v1/keys', {
      headers: {
        Origin: 'https://a.example',
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'authorization,plumb-session,x-stainless-os',
      },
    });
    expect(preflight.status).toBe(204);
    // OpenAI's SDK in a page sends headers that nobody here knows
    expect(preflight.headers.get('Access-Control-Allow-Headers')).toBe('authorization,plumb-session,x-stainless-os');
    expect(preflight.headers.get('Access-Control-Allow-Origin')).toBe('*');
    expect(preflight.headers.get('Access-Control-Allow-Credentials')).toBeNull();
    const refused = await ask('GET', '/v1/keys', { headers: { Origin: ORIGIN } });
    expect(refused.headers.get('Access-Control-Allow-Origin')).toBe('*');
  });
});
