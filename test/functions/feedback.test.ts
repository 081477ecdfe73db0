import { sign } from 'hono/jwt';
import { beforeAll, describe, expect, test } from 'vitest';
import { settings } from '../../functions/env.ts';
import { feedbackToken } from '../../functions/token.ts';
import { ask, env, keyOf, ORIGIN } from './support.ts';

let sk = '';
let pk = '';
beforeAll(async () => {
  sk = await keyOf('sk');
  pk = await keyOf('pk');
});

let asked = 0;
async function draw(n = 2, more: Record<string, unknown> = {}) {
  const choices = Array.from({ length: n }, (_, i) => ({ text: `answer ${i}` }));
  const body = { prompt: `question ${asked++}`, choices, model: 'elsewhere', ...more };
  const { json, status } = await ask('POST', '/v1/samples', { key: sk, body });
  expect(status).toBe(201);
  return {
    ids: json.choices.map((choice: { sample_id: string }) => choice.sample_id) as string[],
    token: json.feedback_token as string,
  };
}
const judge = (body: unknown, key = sk, headers: Record<string, string> = {}) =>
  ask('POST', '/v1/feedback', { key, body, headers });
const rater = { id: 'ann' };
/** What a host's server says of eve, for Plumb-Rater. */
const identity = (over: object = {}, key = env.PLUMB_IDENTITY_KEY!) =>
  sign(
    { sub: 'eve', cohorts: { team: 'red' }, aud: 'plumb', exp: Math.floor(Date.now() / 1000) + 60, ...over },
    key,
    'HS256',
  );

describe('every kind of feedback', () => {
  test('reads as it was sent, without the token', async () => {
    const { ids } = await draw(3);
    const [a, b, c] = ids as [string, string, string];
    for (const body of [
      { kind: 'thumb', sample_id: a, value: -1, comment: 'no' },
      { kind: 'choice', sample_ids: [a, b], winner: b },
      { kind: 'choice', sample_ids: [a, c], winner: 'both_bad' },
      { kind: 'ranking', sample_ids: ids, order: [[c], [a, b]] },
      { kind: 'rating', sample_id: a, aspect: 'ethics', value: 4 },
      { kind: 'correction', sample_id: a, text: 'better' },
      { kind: 'comment', sample_id: a, text: 'hm' },
      { kind: 'implicit', sample_id: a, signal: 'copy' },
      { kind: 'outcome', sample_id: a, name: 'solved', value: true },
    ]) {
      const { status, json } = await judge({ ...body, rater });
      expect(status, JSON.stringify(json)).toBe(201);
      expect(json).toMatchObject({
        object: 'feedback',
        ...body,
        rater_kind: 'asserted',
        revision: 1,
        policy: 'elsewhere',
      });
      expect(json.rater).toMatch(/^rtr_[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
      expect(Object.keys(json)).not.toContain('token');
    }
    const { json } = await ask('GET', `/v1/samples/${a}`, { key: sk });
    expect(json.feedback).toHaveLength(9);
    expect(json).toMatchObject({ text: 'answer 0', policy: 'elsewhere', prompt: expect.stringMatching(/^question/) });
  });

  test('what is malformed is 400, what cannot be meant 422', async () => {
    const { ids } = await draw(2);
    const { ids: others } = await draw(1);
    const [a, b] = ids as [string, string];
    const malformed = [
      {},
      { kind: 'thumb', sample_id: a, value: 0 },
      { kind: 'thumb', sample_id: 'smp_1', value: 1 },
      { kind: 'rating', sample_id: a, aspect: 'ethics', value: 2.5 },
      { kind: 'choice', sample_ids: [a], winner: a },
      { kind: 'comment', sample_id: a, text: 'é'.repeat(8193) },
      { kind: 'correction', sample_id: a, text: ' \n' },
      { kind: 'thumb', sample_id: a, value: 1, mood: 'good' },
      { kind: 'thumb', sample_id: a, value: 1, comment: null },
      { kind: 'thumb', sample_id: a, value: 1, rater: { id: 'x'.repeat(257) } },
      { kind: 'thumb', sample_id: a, value: 1, rater: { id: 'x', cohorts: { age: 3 } } },
    ];
    for (const body of malformed) expect((await judge({ rater, ...body })).status, JSON.stringify(body)).toBe(400);
    const impossible = [
      { kind: 'choice', sample_ids: [a, b], winner: others[0] },
      { kind: 'choice', sample_ids: [a, a], winner: a },
      { kind: 'choice', sample_ids: [a, others[0]], winner: a },
      { kind: 'ranking', sample_ids: [a, b], order: [[a, b]] },
      { kind: 'ranking', sample_ids: [a, b], order: [[a], [a]] },
      { kind: 'ranking', sample_ids: [a, b], order: [[a], others] },
      { kind: 'correction', sample_id: a, text: 'answer 0' },
      { kind: 'thumb', sample_id: 'smp_01ARZ3NDEKTSV4RRFFQ69G5FAV', value: 1 },
      { kind: 'thumb', sample_id: a, value: 1, task_id: 'tsk_01ARZ3NDEKTSV4RRFFQ69G5FAV' },
    ];
    for (const body of impossible) expect((await judge({ rater, ...body })).status, JSON.stringify(body)).toBe(422);
    expect((await judge({ kind: 'thumb', sample_id: a, value: 1 })).status).toBe(422);
    const { json } = await ask('GET', `/v1/samples/${a}`, { key: sk });
    expect(json.feedback).toEqual([]);
  });
});

describe('one vote', () => {
  test('a change that is refused changes nothing', async () => {
    const { ids } = await draw(1);
    const correct = (text: string) => ({ kind: 'correction', sample_id: ids[0], text });
    const { json } = await judge({ ...correct('better'), rater });
    const put = await ask('PUT', `/v1/feedback/${json.id}`, { key: sk, body: correct('answer 0') });
    expect([put.status, put.json.detail]).toEqual([422, 'text is equal to its original']);
    expect((await ask('GET', `/v1/samples/${ids[0]}`, { key: sk })).json.feedback).toEqual([json]);
  });

  test('another replaces it, the same changes nothing, an undo marks it and a new one revives it', async () => {
    const { ids } = await draw(1);
    const thumb = (value: number) => judge({ kind: 'thumb', sample_id: ids[0], value, rater });
    const first = await thumb(1);
    expect([first.status, first.json.revision]).toEqual([201, 1]);
    const again = await thumb(1);
    expect([again.status, again.json.revision, again.json.id]).toEqual([200, 1, first.json.id]);
    expect(again.json).toEqual(first.json);
    const changed = await thumb(-1);
    expect([changed.status, changed.json.revision, changed.json.id]).toEqual([200, 2, first.json.id]);

    const path = `/v1/feedback/${first.json.id}`;
    expect((await ask('DELETE', path, { key: sk })).status).toBe(204);
    expect((await ask('DELETE', path, { key: sk })).status).toBe(204);
    const listed = async (query = '') =>
      (await ask('GET', `/v1/feedback?limit=1000${query}`, { key: sk })).json.data.find(
        (v: { id: string }) => v.id === first.json.id,
      );
    expect(await listed()).toBeUndefined();
    expect((await listed('&undone=true')).undone_at).toMatch(/Z$/);
    const revived = await thumb(-1);
    expect([revived.status, revived.json.revision]).toEqual([200, 3]);
    expect(await listed()).toEqual(revived.json);

    const put = await ask('PUT', path, { key: sk, body: { kind: 'thumb', sample_id: ids[0], value: 1 } });
    expect([put.status, put.json.revision, put.json.value]).toEqual([200, 4, 1]);
    await ask('DELETE', path, { key: sk });
    const same = await ask('PUT', path, { key: sk, body: { kind: 'thumb', sample_id: ids[0], value: 1 } });
    expect([same.status, same.json.revision]).toEqual([200, 5]);
    expect(await listed()).toEqual(same.json);
    const body = { kind: 'thumb', sample_id: ids[0], value: 1, token: 'v1.new.nonsense' };
    expect((await ask('PUT', path, { key: sk, body })).status).toBe(401);
    const elsewhere = await draw(1);
    const other = await ask('PUT', path, { key: sk, body: { kind: 'thumb', sample_id: elsewhere.ids[0], value: 1 } });
    expect(other.status).toBe(422);
    const { results } = await env.DB.prepare('SELECT op, seq FROM revisions WHERE feedback = ? ORDER BY seq')
      .bind(first.json.id)
      .all();
    expect(results.map((row) => row.op)).toEqual(['create', 'change', 'undo', 'change', 'change', 'undo', 'change']);
  });

  test('without cohorts leaves its rater in those that are known', async () => {
    const { ids } = await draw(1);
    const up = { kind: 'thumb', sample_id: ids[0], value: 1 };
    const cohorts = async (vote: object) => {
      const { json } = await judge({ ...up, ...vote });
      const row = await env.DB.prepare('SELECT cohorts FROM raters WHERE id = ?').bind(json.rater).first();
      return JSON.parse(row!.cohorts as string);
    };
    expect(await cohorts({ rater: { id: 'zoe', cohorts: { team: 'red' } } })).toEqual({ team: 'red' });
    expect(await cohorts({ value: -1, rater: { id: 'zoe' } })).toEqual({ team: 'red' });
    expect(await cohorts({ rater: { id: 'zoe', cohorts: { team: 'blue' } } })).toEqual({ team: 'blue' });
  });

  test('of a rater who was asserted and is now verified says so of the rater too', async () => {
    const { ids, token } = await draw(1);
    const up = { kind: 'thumb', sample_id: ids[0], value: 1 };
    const kind = async ({ json }: Awaited<ReturnType<typeof judge>>) =>
      (await env.DB.prepare('SELECT kind FROM raters WHERE id = ?').bind(json.rater).first())!.kind;
    const asserted = await judge({ ...up, rater: { id: 'kim', cohorts: { team: 'red' } } });
    expect(await kind(asserted)).toBe('asserted');
    const changed = { ...up, value: -1, token };
    const verified = await judge(changed, pk, { 'Plumb-Rater': await identity({ sub: 'kim' }) });
    expect(verified.json.rater).toBe(asserted.json.rater);
    expect(await kind(verified)).toBe('verified');
  });

  test('aspects are votes of their own, and so is the same set in another order not', async () => {
    const { ids } = await draw(2);
    const rate = (aspect: string) => judge({ kind: 'rating', sample_id: ids[0], aspect, value: 3, rater });
    expect((await rate('ethics')).status).toBe(201);
    expect((await rate('tone')).status).toBe(201);
    const choose = (sample_ids: string[], winner: string) => judge({ kind: 'choice', sample_ids, winner, rater });
    expect((await choose(ids, ids[0]!)).status).toBe(201);
    expect((await choose(ids.toReversed(), ids[1]!)).status).toBe(200);
  });

  test("without a rater it is the person's for whom the samples were drawn", async () => {
    const { ids } = await draw(1, { user: 'bob' });
    const own = await judge({ kind: 'thumb', sample_id: ids[0], value: 1 });
    expect(own.status).toBe(201);
    const named = await judge({ kind: 'thumb', sample_id: ids[0], value: 1, rater: { id: 'bob' } });
    expect([named.status, named.json.id]).toEqual([200, own.json.id]);
    const prompt = 'asked by two';
    const [one] = (await draw(1, { prompt, user: 'bob' })).ids;
    const [two] = (await draw(1, { prompt, user: 'cat' })).ids;
    const choice = { kind: 'choice', sample_ids: [one, two], winner: one };
    for (const name of ['bob', 'cat']) expect((await judge({ ...choice, rater: { id: name } })).status).toBe(201);
    expect((await judge(choice)).status).toBe(422);
    const nobodys = (await draw(1, { prompt })).ids[0]!;
    const half = { kind: 'choice', sample_ids: [one, nobodys], winner: one };
    expect((await judge(half)).status).toBe(422);
    expect((await ask('GET', `/v1/samples/${nobodys}`, { key: sk })).json.feedback).toEqual([]);
    const stored = await env.DB.prepare('SELECT * FROM raters').all();
    expect(JSON.stringify(stored.results)).not.toContain('bob');
  });
});

describe('pages', () => {
  test('need a token, their own origin, and neither raters nor outcomes', async () => {
    const { ids, token } = await draw(2);
    const thumb = { kind: 'thumb', sample_id: ids[0], value: 1 };
    expect((await judge(thumb, pk)).status).toBe(400);
    expect((await judge({ ...thumb, token, rater }, pk)).status).toBe(403);
    expect((await judge({ kind: 'outcome', sample_id: ids[0], name: 'x', value: 1, token }, pk)).status).toBe(403);
    for (const Origin of [
      'https://evil.example',
      `${ORIGIN}.evil.example`,
      `${ORIGIN}0`,
      ORIGIN.slice(0, -1),
      'null',
      '',
    ])
      expect((await judge({ ...thumb, token }, pk, { Origin })).status, Origin).toBe(403);
    const voted = await judge({ ...thumb, token }, pk);
    expect([voted.status, voted.json.rater_kind]).toEqual([201, 'anonymous']);
    const outside = await draw(1);
    expect((await judge({ ...thumb, sample_id: outside.ids[0], token }, pk)).status).toBe(422);
  });

  test('need tokens for all that they judge', async () => {
    const prompt = 'drawn twice';
    const [one, two] = [await draw(1, { prompt }), await draw(1, { prompt })];
    const choice = { kind: 'choice', sample_ids: [...one.ids, ...two.ids], winner: 'tie' };
    for (const { token } of [one, two]) expect((await judge({ ...choice, token }, pk)).status).toBe(422);
    expect((await judge({ ...choice, token: [one.token, two.token] }, pk)).status).toBe(201);
  });

  test('without an origin are not those of the listed origin "null"', async () => {
    const sandboxed = await keyOf('pk', undefined, ['null']);
    const headers = { Authorization: `Bearer ${sandboxed}` };
    expect((await ask('POST', '/v1/sessions', { headers })).status).toBe(403);
    expect((await ask('POST', '/v1/sessions', { headers: { ...headers, Origin: 'null' } })).status).toBe(201);
  });

  test('change and undo their own votes by Feedback-Token, and see no others', async () => {
    const { ids, token } = await draw(1);
    const { json } = await judge({ kind: 'thumb', sample_id: ids[0], value: 1, token }, pk);
    const path = `/v1/feedback/${json.id}`;
    const body = { kind: 'thumb', sample_id: ids[0], value: -1 };
    const { token: foreign } = await draw(1);
    const as = (method: string, token?: string) =>
      ask(method, path, {
        key: pk,
        ...(method === 'PUT' ? { body } : {}),
        headers: token ? { 'Feedback-Token': token } : {},
      });
    for (const method of ['PUT', 'DELETE']) {
      expect((await as(method)).status).toBe(404);
      expect((await as(method, foreign)).status).toBe(404);
    }
    const sample = await ask('GET', `/v1/samples/${ids[0]}`, { key: sk });
    expect(sample.json.feedback).toEqual([json]);
    expect((await as('PUT', token)).json).toMatchObject({ value: -1, revision: 2 });
    expect((await as('DELETE', token)).status).toBe(204);
  });

  test('can undo what they asked for last, whether the host’s server voted for the same person before or since', async () => {
    const { ids, token } = await draw(1);
    const vote = (value: number) => ({ kind: 'thumb', sample_id: ids[0], value });
    const inPage = async (value: number) =>
      (await judge({ ...vote(value), token }, pk, { 'Plumb-Rater': await identity() })).json;
    const byServer = async (value: number) => (await judge({ ...vote(value), rater: { id: 'eve' } })).json;
    const undo = async (id: string) =>
      (await ask('DELETE', `/v1/feedback/${id}`, { key: pk, headers: { 'Feedback-Token': token } })).status;
    const { id } = await byServer(1);
    expect(await undo(id)).toBe(404);
    expect(await inPage(1)).toMatchObject({ id, revision: 1 });
    expect(await undo(id)).toBe(204);
    expect((await byServer(-1)).revision).toBe(2);
    expect((await inPage(1)).revision).toBe(3);
    expect((await byServer(-1)).revision).toBe(4);
    expect(await undo(id)).toBe(204);
  });

  test('that say the same in another order change nothing; another winner or order does', async () => {
    const { ids } = await draw(3);
    const [a, b, c] = ids as [string, string, string];
    const revision = async (body: object) => (await judge({ ...body, rater })).json.revision;
    const choice = (sample_ids: string[], winner: string) => ({ kind: 'choice', sample_ids, winner });
    expect(await revision(choice([a, b], 'tie'))).toBe(1);
    expect(await revision(choice([b, a], 'tie'))).toBe(1);
    expect(await revision(choice([b, a], a))).toBe(2);
    const ranking = (order: string[][]) => ({ kind: 'ranking', sample_ids: ids, order });
    expect(await revision(ranking([[a, b], [c]]))).toBe(1);
    expect(await revision(ranking([[b, a], [c]]))).toBe(1);
    expect(await revision(ranking([[c], [a, b]]))).toBe(2);
  });

  test('a bad token is 401, an expired one 410, whatever the key; the old secret still counts', async () => {
    const { ids, token } = await draw(1);
    const set = settings(env);
    const claims = { sample_ids: ids, policy: 'elsewhere', session: 'rtr_01ARZ3NDEKTSV4RRFFQ69G5FAV' };
    const expired = await feedbackToken({ ...set, PLUMB_TOKEN_TTL: -1 }, claims);
    const foreign = await feedbackToken({ ...set, PLUMB_PEPPER: 'another deployment' }, claims);
    const old = await feedbackToken({ ...set, PLUMB_TOKEN_SECRETS: set.PLUMB_TOKEN_SECRETS.toReversed() }, claims);
    const unknownKid = token.replace('v1.new.', 'v1.none.');
    const forged = `${token.slice(0, -4)}AAAA`;
    // the last letter of a MAC has two bits that mean nothing
    const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
    const respelt = token.slice(0, -1) + letters[letters.indexOf(token.at(-1)!) + 1];
    for (const key of [pk, sk]) {
      const status = async (token: string) =>
        (await judge({ kind: 'thumb', sample_id: ids[0], value: 1, token, ...(key === sk ? { rater } : {}) }, key))
          .status;
      for (const bad of [forged, respelt, unknownKid, foreign, 'x', 'v1.new..'])
        expect(await status(bad), bad).toBe(401);
      expect(await status(expired)).toBe(410);
      expect(await status(old)).toBe(201);
    }
  });

  test('Plumb-Rater makes a verified rater, if it is meant for us and signed by the host', async () => {
    const { ids, token } = await draw(1);
    const as = async (jwt: string) =>
      judge({ kind: 'thumb', sample_id: ids[0], value: 1, token }, pk, { 'Plumb-Rater': jwt });
    for (const bad of [
      await identity({}, 'another key entirely'),
      await identity({ aud: 'others' }),
      await identity({ exp: 1 }),
      await identity({ exp: undefined }),
      'x',
    ])
      expect((await as(bad)).status).toBe(401);
    const verified = await as(await identity());
    expect(verified.json).toMatchObject({ rater_kind: 'verified' });
    const row = await env.DB.prepare('SELECT cohorts FROM raters WHERE id = ?').bind(verified.json.rater).first();
    expect(JSON.parse(row!.cohorts as string)).toEqual({ team: 'red' });
  });
});

describe('Idempotency-Key', () => {
  const keyed = (key: string, body: unknown, who = sk) => judge(body, who, { 'Idempotency-Key': key });

  test('gives the same answer again and never applies twice, not even after a later change', async () => {
    const { ids } = await draw(1);
    const up = { kind: 'thumb', sample_id: ids[0], value: 1, rater };
    const first = await keyed('one', up);
    expect([first.status, first.headers.get('Idempotent-Replayed')]).toEqual([201, null]);
    expect((await keyed('two', { ...up, value: -1 })).json.revision).toBe(2);
    const replay = await keyed('one', up);
    expect([replay.status, replay.headers.get('Idempotent-Replayed')]).toEqual([201, 'true']);
    expect(replay.json).toEqual(first.json);
    expect((await judge({ ...up, value: -1 })).json.revision).toBe(2);
    expect((await keyed('one', { ...up, value: -1 })).status).toBe(422);
  });

  test('a repeat that changed nothing uses up its key too', async () => {
    const { ids } = await draw(1);
    const up = { kind: 'thumb', sample_id: ids[0], value: 1, rater };
    await judge(up);
    const quiet = await keyed('quiet', up);
    expect(quiet.status).toBe(200);
    await judge({ ...up, value: -1 });
    const replay = await keyed('quiet', up);
    expect([replay.status, replay.headers.get('Idempotent-Replayed')]).toEqual([200, 'true']);
    expect(replay.json).toEqual(quiet.json);
    await judge(up);
    await keyed('quiet', up);
    const { results } = await env.DB.prepare("SELECT seq FROM revisions WHERE op = 'repeat'").all();
    expect(results).toHaveLength(1);
    await judge({ ...up, value: -1 });
    expect((await judge({ ...up, value: -1 })).json.revision).toBe(4);
  });

  test('is bound to the key, and a refusal is not kept', async () => {
    const { ids } = await draw(1);
    const other = await keyOf('sk');
    const up = { kind: 'thumb', sample_id: ids[0], value: 1, rater };
    expect((await keyed('bound', up)).status).toBe(201);
    expect((await keyed('bound', up, other)).status).toBe(200);
    const same = { kind: 'correction', sample_id: ids[0], text: 'answer 0', rater };
    expect((await keyed('refused', same)).status).toBe(422);
    expect((await keyed('refused', { ...same, text: 'another' })).status).toBe(201);
    expect((await keyed('é', up)).status).toBe(400);
    expect((await keyed('x'.repeat(256), up)).status).toBe(400);
  });

  test('is free for another vote after 24 hours', async () => {
    const { ids } = await draw(1);
    const up = { kind: 'thumb', sample_id: ids[0], value: 1, rater };
    const aged = (hours: number) =>
      env.DB.prepare('UPDATE revisions SET at = ? WHERE idempotency IS NOT NULL')
        .bind(new Date(Date.now() - hours * 3600 * 1000).toISOString())
        .run();
    await keyed('a day', up);
    await aged(23.9);
    expect((await keyed('a day', { ...up, value: -1 })).status).toBe(422);
    await aged(24.1);
    expect((await keyed('a day', { ...up, value: -1 })).json).toMatchObject({ value: -1, revision: 2 });
  });

  test('on samples it stores once', async () => {
    const body = { prompt: 'once', choices: [{ text: 'a' }], model: 'elsewhere' };
    const post = (body: unknown) =>
      ask('POST', '/v1/samples', { key: sk, body, headers: { 'Idempotency-Key': 'sample' } });
    const first = await post(body);
    const again = await post(body);
    expect([again.status, again.text, again.headers.get('Idempotent-Replayed')]).toEqual([201, first.text, 'true']);
    expect((await post({ ...body, prompt: 'twice' })).status).toBe(422);
    const headers = { 'Idempotency-Key': 'sample' };
    const others = await ask('POST', '/v1/samples', { key: await keyOf('sk'), body, headers });
    expect([others.status, others.headers.get('Idempotent-Replayed')]).toEqual([201, null]);
    expect(others.json.choices).not.toEqual(first.json.choices);
    const both = await Promise.all(
      [1, 2, 3].map(() => ask('POST', '/v1/samples', { key: sk, body, headers: { 'Idempotency-Key': 'race' } })),
    );
    for (const { status } of both) expect([201, 409]).toContain(status);
    const { results } = await env.DB.prepare(
      "SELECT s.id FROM samples s JOIN prompts p ON p.hash = s.prompt WHERE p.body LIKE '%once%'",
    ).all();
    expect(results).toHaveLength(3);
  });
});

describe('lists', () => {
  test('filter by kind, policy, rater and time, in the order of commits', async () => {
    const { ids } = await draw(1, { model: 'listed' });
    const votes = [];
    for (const id of ['r1', 'r2', 'r3'])
      votes.push((await judge({ kind: 'thumb', sample_id: ids[0], value: 1, rater: { id } })).json);
    const list = async (query: string) => (await ask('GET', `/v1/feedback?${query}`, { key: sk })).json;
    const found = async (query: string) => (await list(query)).data.map((v: { id: string }) => v.id);
    const all = votes.map((v) => v.id);
    expect(await found('policy=listed')).toEqual(all);
    expect(await found('policy=listed&order=desc')).toEqual(all.toReversed());
    expect(await found(`policy=listed&after=${all[0]}&limit=1`)).toEqual([all[1]]);
    expect((await list(`policy=listed&after=${all[0]}&limit=1`)).has_more).toBe(true);
    expect(await found(`rater=${votes[1].rater}`)).toEqual([all[1]]);
    expect(await found('policy=listed&kind=choice')).toEqual([]);
    expect(await found('policy=listed&since=2100-01-01T00:00:00Z')).toEqual([]);
    expect(await found('policy=listed&until=2100-01-01T00:00:00%2B01:00')).toEqual(all);
    expect((await ask('GET', '/v1/feedback?since=yesterday', { key: sk })).status).toBe(400);
    const samples = await ask('GET', '/v1/samples?policy=listed', { key: sk });
    expect(samples.json.data.map((s: { id: string }) => s.id)).toEqual(ids);
    const sampled = async (query: string) =>
      (await ask('GET', `/v1/samples?policy=listed&${query}`, { key: sk })).json.data.length;
    const [past, future] = ['2000-01-01T00:00:00Z', '2100-01-01T00:00:00Z'];
    expect(
      await Promise.all([`until=${past}`, `since=${past}`, `since=${future}`, `until=${future}`].map(sampled)),
    ).toEqual([0, 1, 0, 1]);
    await ask('DELETE', `/v1/feedback/${all[1]}`, { key: sk });
    const { feedback } = (await ask('GET', `/v1/samples/${ids[0]}`, { key: sk })).json;
    expect(feedback.map((v: { id: string }) => v.id)).toEqual([all[0], all[2]]);
  });
});
