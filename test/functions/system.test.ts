import { describe, expect, test, vi } from 'vitest';
import { asApiError } from '../../functions/error.ts';
import { importPolicy } from '../../functions/store/policies.ts';
import { ask, env } from './support.ts';
import { tinyPolicy } from './tiny.ts';

describe('health', () => {
  test('alive at once; ready once there is a policy that loads', async () => {
    expect((await ask('GET', '/healthz')).json).toEqual({ ok: true });
    const before = await ask('GET', '/readyz');
    expect([before.status, before.json.database.ok, before.json.storage.ok, before.json.policy.ok]).toEqual([
      503,
      true,
      true,
      false,
    ]);
    const { manifest, files } = await tinyPolicy();
    await importPolicy(env.DB, env.BUCKET, manifest, files, 'stable');
    const after = await ask('GET', '/readyz');
    expect([after.status, after.json.policy.detail]).toEqual([200, manifest.id]);
    const wrong = await ask('GET', '/readyz', { env: { ...env, PLUMB_PEPPER: 'short' } });
    expect([wrong.status, wrong.json.configuration.ok]).toEqual([503, false]);
    expect(wrong.json.configuration.detail).toMatch(/PLUMB_PEPPER/);
    expect((await ask('GET', '/v1/keys', { key: 'sk_x', env: { ...env, PLUMB_PEPPER: 'short' } })).status).toBe(503);
  });
});

describe('the document', () => {
  test('describes every route by the schemas that check it', async () => {
    const { json, status } = await ask('GET', '/openapi.json');
    expect(status).toBe(200);
    expect(json.openapi).toBe('3.1.0');
    expect(Object.keys(json.paths)).toEqual(
      expect.arrayContaining([
        '/v1/chat/completions',
        '/v1/feedback/{id}',
        '/v1/jobs/{run}/heartbeat',
        '/v1/datasets/preference',
        '/healthz',
      ]),
    );
    const operations = Object.values(json.paths).flatMap((path) => Object.values(path as object)) as {
      operationId: string;
      responses: object;
    }[];
    expect(new Set(operations.map((operation) => operation.operationId)).size).toBe(operations.length);
    const body = json.paths['/v1/feedback'].post.requestBody.content['application/json'].schema;
    expect(body.oneOf.map((kind: { properties: { kind: { const: string } } }) => kind.properties.kind.const)).toContain(
      'ranking',
    );
    expect(body.oneOf[0].additionalProperties).toBe(false);
    const chat = json.paths['/v1/chat/completions'].post;
    expect(chat.requestBody.content['application/json'].schema.properties.n).toMatchObject({
      minimum: 1,
      maximum: 16,
      default: 1,
    });
    expect(Object.keys(chat.responses)).toEqual(expect.arrayContaining(['200', '400', '401', '413', '415']));
    const limit = json.paths['/v1/keys'].get.parameters.find((p: { name: string }) => p.name === 'limit');
    expect(limit).toMatchObject({ in: 'query', required: false, schema: { minimum: 1, maximum: 1000 } });
  });

  test('and so does the page', async () => {
    const { text, headers } = await ask('GET', '/docs');
    expect(headers.get('Content-Type')).toMatch(/text\/html/);
    expect(text).toContain('/v1/releases/rollback');
  });
});

test('what the database cannot do now is 503 with Retry-After and one line, a mistake in a query is 500', () => {
  const said: string[] = [];
  const log = vi.spyOn(console, 'error').mockImplementation((line) => void said.push(line));
  const wrapped = (message: string) => asApiError(new Error('Failed query', { cause: new Error(message) }));
  for (const message of [
    'D1_ERROR: D1 DB is overloaded. Requests queued for too long.',
    'D1_ERROR: database or disk is full: SQLITE_FULL',
    'internal error; reference = m3g2cu',
    'put: Unspecified error (0)',
  ]) {
    const { status, more } = wrapped(message);
    expect([status, more.headers?.['Retry-After']]).toEqual([503, expect.stringMatching(/^\d+$/)]);
  }
  expect(said.join('\n').split('\n')).toHaveLength(4);
  // a batch is not wrapped: what D1 throws has what SQLite said below it
  const locked = 'database is locked: SQLITE_BUSY (extended: SQLITE_BUSY_SNAPSHOT)';
  expect(asApiError(new Error(`D1_ERROR: ${locked}`, { cause: new Error(locked) })).status).toBe(503);
  expect(wrapped('D1_ERROR: no such column: sed: SQLITE_ERROR').status).toBe(500);
  log.mockRestore();
});
