import { createScheduledController } from 'cloudflare:test';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { sha256 } from '../../functions/crypto.ts';
import { type Env, settings } from '../../functions/env.ts';
import { lost, tick } from '../../functions/jobs/schedule.ts';
import { forget } from '../../functions/store/keys.ts';
import { importPolicy, readManifest, rollBack } from '../../functions/store/policies.ts';
import { activeRun } from '../../functions/store/runs.ts';
import { jobToken } from '../../functions/token.ts';
import worker from '../../functions/worker.ts';
import { newId } from '../../schema/ids.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { PromptRow, SnapshotRow } from '../../schema/snapshot.ts';
import { Job } from '../../schema/wire-runs.ts';
import { ask, keyOf, env as plain, watchedBucket } from './support.ts';
import { type Tiny, tinyPolicy } from './tiny.ts';

const env: Env = {
  ...plain,
  PLUMB_MIN_FEEDBACK: '3',
  PLUMB_LAUNCHER_URL: 'http://launcher.test/launch',
  PLUMB_LAUNCHER_TOKEN: 'of-the-launcher',
};
test('a run starts at 200 judgements, or at any after a day, unless told otherwise', () => {
  expect(settings(plain)).toMatchObject({ PLUMB_MIN_FEEDBACK: 200, PLUMB_MAX_WAIT: 24 * 3600 });
});

const launches = async () =>
  (await (await fetch('http://launcher.test/launches')).json()) as {
    run: string;
    fence: number;
    url: string;
    token: string;
  }[];

let sk = '';
let tiny: Tiny;
let base = '';
beforeAll(async () => {
  sk = await keyOf('sk');
  tiny = await tinyPolicy();
  const withWeights = new TextEncoder().encode('weights');
  tiny.files['model.safetensors'] = new Uint8Array(withWeights);
  tiny.manifest.files.push({ name: 'model.safetensors', sha256: await sha256(withWeights), bytes: withWeights.length });
  base = tiny.manifest.id;
});
beforeEach(async () => {
  for (const table of [
    'runs',
    'snapshots',
    'feedback',
    'revisions',
    'feedback_samples',
    'samples',
    'prompts',
    'releases',
    'policies',
    'run_metrics',
  ])
    await env.DB.prepare(`DELETE FROM ${table}`).run();
  await importPolicy(env.DB, env.BUCKET, tiny.manifest, tiny.files, 'stable');
  forget(env.DB);
});

const get = (path: string) => ask('GET', path, { key: sk, env });
const post = (path: string, body: unknown, headers = {}) => ask('POST', path, { key: sk, env, body, headers });
const runs = async () => (await get('/v1/runs')).json.data;

let asked = 0;
async function draw(n = 1, over: object = {}): Promise<string[]> {
  const choices = Array.from({ length: n }, (_, i) => ({ text: `answer ${i}` }));
  const { json } = await post('/v1/samples', { prompt: `question ${asked++}`, choices, model: 'elsewhere', ...over });
  return json.choices.map((choice: { sample_id: string }) => choice.sample_id);
}
async function thumb(sample_id: string, value = 1, id = 'ann') {
  return (await post('/v1/feedback', { kind: 'thumb', sample_id, value, rater: { id } })).json;
}
async function judgements(n: number) {
  const votes = [];
  for (let i = 0; i < n; i++) votes.push(await thumb((await draw())[0]!));
  return votes;
}

/** What the trainer does. */
const trainer = async (run: string) => {
  const key = await jobToken(settings(env), run);
  const path = `/v1/jobs/${run}`;
  const send = (method: string, to: string, body?: unknown) =>
    ask(method, `${path}${to}`, { key, env, ...(body === undefined ? {} : { body }) });
  return {
    send,
    beat: (fence = 1, over: object = {}) =>
      send('POST', '/heartbeat', { fence, stage: 'ppo', step: 1, steps: 9, metrics: [], ...over }),
    put: (sha: string, body: string) =>
      ask('PUT', `${path}/blobs/${sha}`, { key, env, body, headers: { 'Content-Type': 'application/octet-stream' } }),
    manifest: async (over: Partial<Manifest> = {}): Promise<Manifest> => {
      const job = (await send('GET', '')).json;
      return {
        ...tiny.manifest,
        id: newId('policy'),
        parent: base,
        root: base,
        run,
        snapshot: job.snapshot.id,
        ...over,
      };
    },
  };
};
async function started() {
  await judgements(3);
  await tick(env);
  const [run] = await runs();
  return { id: run.id as string, ...(await trainer(run.id)) };
}
const rows = async (parts: { url: string; sha256: string }[], key: string) => {
  const all = [];
  for (const part of parts) {
    const { text } = await ask('GET', new URL(part.url).pathname, { key, env });
    expect(await sha256(text)).toBe(part.sha256);
    all.push(
      ...text
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line)),
    );
  }
  return all;
};

describe('the cron', () => {
  test('waits for enough new judgements, then starts one run and launches it', async () => {
    await judgements(2);
    await tick(env);
    expect(await runs()).toEqual([]);
    await judgements(1);
    const fire = () => worker.scheduled(createScheduledController() as ScheduledController, env);
    await Promise.all([fire(), fire()]);
    await tick(env);
    const [run, ...more] = await runs();
    expect(more).toEqual([]);
    expect(run).toMatchObject({ status: 'launched', base_policy: base, release: null, reason: '3 new judgements' });
    expect(await launches()).toContainEqual({
      run: run.id,
      fence: 1,
      url: 'http://plumb.test',
      token: await jobToken(settings(env), run.id),
    });
    expect((await launches()).filter((l) => l.run === run.id)).toHaveLength(1);
  });

  test('gives its runs the settings of PLUMB_RUN_CONFIG, and serves nothing with settings that no run can have', async () => {
    const config = { lora: { rank: 8, on: ['attention'] }, ppo: { episodes: 256 } };
    const set = (given: string): Env => ({ ...env, PLUMB_RUN_CONFIG: given });
    await judgements(3);
    await tick(set(JSON.stringify(config)));
    const [run] = await runs();
    expect((await (await trainer(run.id)).send('GET', '')).json.config).toEqual(config);
    expect(() => settings(set('{"ppo": '))).toThrow('PLUMB_RUN_CONFIG: not JSON');
    expect(() => settings(set('{"ppo": {"clipp": 1}}'))).toThrow('PLUMB_RUN_CONFIG.ppo.clipp: is not known');
  });

  test('votes on answers that were broken off start no run', async () => {
    await judgements(2);
    const [sample] = await draw();
    await thumb(sample!);
    await env.DB.prepare("UPDATE samples SET finish_reason = 'abort' WHERE id = ?").bind(sample).run();
    await tick(env);
    expect(await runs()).toEqual([]);
    await judgements(1);
    await tick(env);
    expect(await runs()).toHaveLength(1);
  });

  test('ratings start a run as other votes do, outcomes none', async () => {
    const said = async (body: object) => {
      const [sample_id] = await draw();
      expect((await post('/v1/feedback', { sample_id, rater: { id: 'ann' }, ...body })).status).toBe(201);
    };
    for (let i = 0; i < 4; i++) await said({ kind: 'outcome', name: 'closed', value: true });
    await tick(env);
    expect(await runs()).toEqual([]);
    for (let i = 0; i < 4; i++) await said({ kind: 'rating', aspect: 'helpful', value: 4 });
    await tick(env);
    expect(await runs()).toMatchObject([{ reason: '3 new judgements' }]);
  });

  test('votes that were undone start no run', async () => {
    const [undone] = await judgements(3);
    await ask('DELETE', `/v1/feedback/${undone.id}`, { key: sk, env });
    await tick(env);
    expect(await runs()).toEqual([]);
    await judgements(1);
    await tick(env);
    expect(await runs()).toMatchObject([{ reason: '3 new judgements' }]);
  });

  test('keeps what was counted in this minute, and forgets older minutes', async () => {
    const minute = Math.floor(Date.now() / 60_000);
    for (const one of [minute - 5, minute, minute + 1]) // the minute may end meanwhile
      await env.DB.prepare("INSERT INTO rates (minute, caller, count) VALUES (?, 'cron', 1)").bind(one).run();
    await tick(env);
    const { results } = await env.DB.prepare("SELECT minute FROM rates WHERE caller = 'cron' ORDER BY minute").all();
    expect(results.map((row) => row.minute)).toEqual([minute, minute + 1]);
  });

  test('starts for any that has waited for long, and not twice for the same ones', async () => {
    await judgements(1);
    await env.DB.prepare("UPDATE feedback SET updated_at = '2020-01-01T00:00:00.000Z'").run();
    await tick(env);
    const [run] = await runs();
    expect(run.reason).toBe('judgements have waited');
    await post(`/v1/runs/${run.id}/cancel`, {});
    await tick(env);
    expect(await runs()).toHaveLength(1);
  });

  test('a launcher that cannot be reached is asked again, until patience ends', async () => {
    await judgements(3);
    const down = { ...env, PLUMB_LAUNCHER_URL: 'http://launcher.test/down' };
    await tick(down);
    const [run] = await runs();
    expect(run).toMatchObject({ status: 'queued', error: expect.stringMatching(/503/) });
    await tick(env);
    expect((await runs())[0]).toMatchObject({ status: 'launched' });
    await env.DB.prepare("UPDATE runs SET status = 'queued', launched_at = '2020-01-01T00:00:00.000Z'").run();
    await tick(down);
    expect((await runs())[0]).toMatchObject({ status: 'failed', error: expect.stringMatching(/503/) });
  });

  test('a lost trainer is launched again under the next fence, three times, then the run has failed', async () => {
    const run = await started();
    expect((await run.beat()).status).toBe(200);
    await tick(env);
    expect((await runs())[0].status).toBe('running');
    for (const fence of [2, 3, 4]) {
      await env.DB.prepare("UPDATE runs SET lease_until = '2020-01-01T00:00:00.000Z'").run();
      await tick(env);
      expect((await launches()).at(-1)).toMatchObject({ run: run.id, fence });
      expect((await run.beat(fence - 1)).status).toBe(410);
      expect((await run.beat(fence)).status).toBe(200);
    }
    await env.DB.prepare("UPDATE runs SET lease_until = '2020-01-01T00:00:00.000Z'").run();
    await tick(env);
    expect((await runs())[0]).toMatchObject({ status: 'failed', error: 'its trainer was lost 4 times' });
    expect((await run.beat(4)).status).toBe(410);
  });

  test('a trainer that was launched before the secret was rotated goes on, and no other secret counts', async () => {
    const { id } = await started();
    const set = settings(env);
    const under = async (secrets: typeof set.PLUMB_TOKEN_SECRETS) =>
      (await ask('GET', `/v1/jobs/${id}`, { key: await jobToken({ ...set, PLUMB_TOKEN_SECRETS: secrets }, id), env }))
        .status;
    expect(set.PLUMB_TOKEN_SECRETS).toHaveLength(2);
    expect(await under(set.PLUMB_TOKEN_SECRETS.toReversed())).toBe(200);
    expect(await under([['new', 'a secret that was never this deployment’s']])).toBe(401);
  });

  test('a tick that was held up does not launch anew what another has launched meanwhile', async () => {
    const run = await started();
    const lose = () => env.DB.prepare("UPDATE runs SET lease_until = '2020-01-01T00:00:00.000Z'").run();
    await run.beat();
    await lose();
    const stale = (await activeRun(env.DB))!;
    await tick(env);
    await run.beat(2);
    await lose();
    expect(await lost(env.DB, settings(env), stale)).toBeUndefined();
    expect(await activeRun(env.DB)).toMatchObject({ status: 'running', fence: 2 });
  });

  test('a trainer that never beats is launched again after ten minutes', async () => {
    await started();
    await env.DB.prepare("UPDATE runs SET launched_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-9 minutes')").run();
    await tick(env);
    expect((await launches()).at(-1)!.fence).toBe(1);
    await env.DB.prepare("UPDATE runs SET launched_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-11 minutes')").run();
    await tick(env);
    expect((await launches()).at(-1)!.fence).toBe(2);
  });
});

describe('snapshots', () => {
  test('hold every standing vote once; the next goes on from them', async () => {
    const [a, b, c] = await judgements(3);
    await thumb(a.sample_id, -1);
    await ask('DELETE', `/v1/feedback/${b.id}`, { key: sk, env });
    const pair = await draw(2);
    const choice = (
      await post('/v1/feedback', {
        kind: 'choice',
        sample_ids: pair,
        winner: pair[1],
        rater: { id: 'eve', cohorts: { team: 'red' } },
      })
    ).json;
    await post('/v1/feedback', { kind: 'comment', sample_id: pair[0], text: 'hm', rater: { id: 'eve' } });
    const outcome = (
      await post('/v1/feedback', {
        kind: 'outcome',
        sample_id: pair[0],
        name: 'closed',
        value: false,
        rater: { id: 'till' },
      })
    ).json;
    await tick(env);
    const first = (await runs())[0].id;
    const one = await trainer(first);
    const job = Job.parse((await one.send('GET', '')).json);
    const key = await jobToken(settings(env), first);
    const votes = (await rows(job.snapshot.parts, key)).map((row) => SnapshotRow.parse(row));
    expect(votes.map((v) => [v.feedback, v.kind])).toEqual([
      [c.id, 'thumb'],
      [a.id, 'thumb'],
      [b.id, 'gone'],
      [choice.id, 'choice'],
      [outcome.id, 'outcome'],
    ]);
    expect(votes[4]).toMatchObject({ name: 'closed', value: false });
    expect(votes[1]).toMatchObject({
      value: -1,
      samples: [{ text: 'answer 0', policy: 'elsewhere' }],
      prompt: [{ role: 'user' }],
    });
    expect(votes[3]).toMatchObject({
      winner: pair[1],
      cohorts: { team: 'red' },
      rater_kind: 'asserted',
      samples: pair.map((id) => ({ id })),
    });
    const prompts = (await rows(job.snapshot.prompts, key)).map((row) => PromptRow.parse(row));
    expect(prompts).toHaveLength(4);
    for (const vote of votes)
      if (vote.kind !== 'gone') expect(prompts.find((p) => p.root === vote.root)!.side).toBe(vote.side);

    await one.beat();
    await one.send('POST', '/publish', { fence: 1, report: {}, verdict: 'reject' });
    await thumb(c.sample_id, -1);
    await judgements(2);
    await tick(env);
    const second = (await runs())[1].id;
    const two = Job.parse((await (await trainer(second)).send('GET', '')).json);
    expect(two.snapshot.parts.slice(0, job.snapshot.parts.length).map((p) => p.sha256)).toEqual(
      job.snapshot.parts.map((p) => p.sha256),
    );
    const all = (await rows(two.snapshot.parts, await jobToken(settings(env), second))).map((row) =>
      SnapshotRow.parse(row),
    );
    const latest = new Map(all.toSorted((x, y) => x.seq - y.seq).map((row) => [row.feedback, row]));
    expect([...latest.values()].filter((row) => row.kind !== 'gone')).toHaveLength(6);
    expect(latest.get(c.id)).toMatchObject({ value: -1 });
    const found = await get(`/v1/feedback?run=${first}`);
    expect(found.json.data.map((v: { id: string }) => v.id)).toEqual([
      a.id,
      c.id,
      choice.id,
      expect.anything(),
      outcome.id,
    ]);
  });

  test('hold a vote as it was at their end, whatever became of it since, and one that was sent twice once', async () => {
    const [changed, ...rest] = await judgements(3);
    const [repeated] = rest;
    const again = { kind: 'thumb', sample_id: repeated.sample_id, value: 1, rater: { id: 'ann' } };
    expect((await post('/v1/feedback', again, { 'Idempotency-Key': 'again' })).status).toBe(200);
    await post('/v1/runs', {});
    await thumb(changed.sample_id, -1);
    await tick(env);
    const [{ id }] = await runs();
    const job = Job.parse((await (await trainer(id)).send('GET', '')).json);
    const votes = await rows(job.snapshot.parts, await jobToken(settings(env), id));
    expect(votes.map((vote) => [vote.feedback, vote.value])).toEqual([changed, ...rest].map((vote) => [vote.id, 1]));
  });

  test('hold nothing of a vote on an answer that was broken off', async () => {
    const [whole, broken, other, last] = await judgements(4);
    await env.DB.prepare("UPDATE samples SET finish_reason = 'abort' WHERE id = ?").bind(broken.sample_id).run();
    await tick(env);
    const [{ id }] = await runs();
    const job = Job.parse((await (await trainer(id)).send('GET', '')).json);
    const votes = await rows(job.snapshot.parts, await jobToken(settings(env), id));
    expect(votes.map((vote) => [vote.feedback, vote.kind])).toEqual([
      [whole.id, 'thumb'],
      [broken.id, 'gone'],
      [other.id, 'thumb'],
      [last.id, 'thumb'],
    ]);
    expect(votes[1]).not.toHaveProperty('samples');
  });

  test('sides are a half, three tenths and two tenths of the conversations, which keep theirs', async () => {
    const chat = (turn: string) => ({
      messages: [
        { role: 'user', content: 'root' },
        { role: 'assistant', content: 'so' },
        { role: 'user', content: turn },
      ],
      prompt: undefined,
    });
    await draw(1, chat('one'));
    await draw(1, chat('two'));
    for (let i = 0; i < 300; i++) await draw();
    const sides = (
      await env.DB.prepare('SELECT side, count(*) AS n FROM prompts GROUP BY side ORDER BY side').all<{
        side: string;
        n: number;
      }>()
    ).results;
    expect(sides.map(({ side }) => side)).toEqual(['A', 'B', 'C']);
    for (const [i, share] of [0.5, 0.3, 0.2].entries()) expect(Math.abs(sides[i]!.n / 302 - share)).toBeLessThan(0.07);
    const same = (await env.DB.prepare("SELECT DISTINCT root, side FROM prompts WHERE body LIKE '%root%'").all())
      .results;
    expect(same).toHaveLength(1);
    // under another system message it is another conversation
    await draw(1, { messages: [{ role: 'system', content: 'be brief' }, ...chat('one').messages], prompt: undefined });
    const roots = await env.DB.prepare("SELECT DISTINCT root FROM prompts WHERE body LIKE '%root%'").all();
    expect(roots.results).toHaveLength(2);
    // two hundred a page: the builder pages through them
    await judgements(3);
    await tick(env);
    const { id } = (await runs())[0];
    const job = Job.parse((await (await trainer(id)).send('GET', '')).json);
    expect(await rows(job.snapshot.prompts, await jobToken(settings(env), id))).toHaveLength(306);
  });

  test('a build that ran out of time goes on from its cursor', async () => {
    await judgements(3);
    await post('/v1/runs', {});
    const [{ id, snapshot }] = await runs();
    const { buildSnapshot } = await import('../../functions/jobs/snapshot.ts');
    expect(await buildSnapshot(env, snapshot, 0)).toBe(false);
    await tick(env);
    expect((await get(`/v1/runs/${id}`)).json.status).toBe('launched');
    expect(await buildSnapshot(env, snapshot, 0)).toBe(true);
  });

  test.each([
    ['votes', 1],
    ['prompts', 3],
  ])('a tick that was held up at its %s takes nothing back that another has built meanwhile', async (_, put) => {
    const votes = await judgements(101);
    // a hundred of them are more than a part holds
    await env.DB.prepare("UPDATE prompts SET body = json_object('prompt', hex(zeroblob(25000)))").run();
    await post('/v1/runs', {});
    const [{ id, snapshot }] = await runs();
    const { buildSnapshot } = await import('../../functions/jobs/snapshot.ts');
    let deadline = Number.POSITIVE_INFINITY;
    let puts = 0;
    const bucket = new Proxy(env.BUCKET, {
      get(target, name) {
        if (name !== 'put') return Reflect.get(target, name).bind(target);
        return async (...args: Parameters<R2Bucket['put']>) => {
          if (++puts === put) {
            await tick(env);
            deadline = 0;
          }
          return target.put(...args);
        };
      },
    });
    const held = { ...env, BUCKET: bucket };
    // time is up once it was held up
    expect(await buildSnapshot(held, snapshot, { valueOf: () => deadline } as never)).toBe(true);
    expect(puts).toBe(put);
    const job = Job.parse((await (await trainer(id)).send('GET', '')).json);
    expect([job.snapshot.parts.length, job.snapshot.prompts.length]).toEqual([2, 2]);
    expect(await rows(job.snapshot.prompts, await jobToken(settings(env), id))).toHaveLength(101);
    const built = await rows(job.snapshot.parts, await jobToken(settings(env), id));
    expect(built.map(({ feedback }) => feedback)).toEqual(votes.map((vote) => vote.id));
  });
});

describe('runs', () => {
  test('one is active; too little feedback is 422; a second is 409 and names the first', async () => {
    expect((await post('/v1/runs', {})).status).toBe(422);
    await judgements(3);
    const unknown = await post('/v1/runs', { config: { ppo: { lr: 1, minibatch: 0 } } });
    expect([unknown.status, unknown.json.errors.map(({ path }: { path: string }) => path).sort()]).toEqual([
      400,
      ['config.ppo.lr', 'config.ppo.minibatch'],
    ]);
    const first = await post(
      '/v1/runs',
      { reason: 'why not', config: { ppo: { episodes: 512 } } },
      { 'Idempotency-Key': 'run' },
    );
    expect([first.status, first.json.status, first.json.reason]).toEqual([202, 'queued', 'why not']);
    expect(
      (await post('/v1/runs', { reason: 'why not', config: { ppo: { episodes: 512 } } }, { 'Idempotency-Key': 'run' }))
        .text,
    ).toBe(first.text);
    const second = await post('/v1/runs', {});
    expect([second.status, second.json.run]).toEqual([409, first.json.id]);
    expect((await get('/v1/runs?status=queued')).json.data).toHaveLength(1);
    expect((await get('/v1/runs?status=failed')).json.data).toHaveLength(0);
    expect((await get('/v1/runs?status=lost')).status).toBe(400);
    const cancelled = await post(`/v1/runs/${first.json.id}/cancel`, undefined);
    expect([cancelled.status, cancelled.json.status]).toEqual([200, 'cancelled']);
    expect((await post(`/v1/runs/${first.json.id}/cancel`, undefined)).status).toBe(200);
    const racing = await Promise.all([1, 2, 3].map(() => post('/v1/runs', {})));
    expect(racing.map(({ status }) => status).toSorted()).toEqual([202, 409, 409]);
    expect((await get('/v1/runs/run_01ARZ3NDEKTSV4RRFFQ69G5FAV')).status).toBe(404);
  });

  test('takes every stage: a part of the chain is refused, not ignored', async () => {
    const part = await post('/v1/runs', { stages: ['reward'] });
    await judgements(3);
    expect([part.status, part.json.detail]).toEqual([422, expect.stringContaining('stages')]);
    expect((await post('/v1/runs', { stages: ['reward', 'ppo', 'evaluate', 'publish'] })).status).toBe(202);
  });

  test('a cancelled trainer is told so by its heartbeat, and may write nothing more', async () => {
    const run = await started();
    await run.beat();
    await post(`/v1/runs/${run.id}/cancel`, undefined);
    const late = await run.beat(1, { metrics: [{ step: 2, name: 'ppo/kl', value: 1 }] });
    expect(late.json.cancel).toBe(true);
    expect((await get(`/v1/runs/${run.id}/metrics`)).json.data).toEqual([]);
    expect(
      (await run.send('PUT', '/checkpoint', { fence: 1, stage: 'ppo', step: 1, files: [], state: {} })).status,
    ).toBe(410);
    expect((await run.send('POST', '/publish', { fence: 1, report: {}, verdict: 'reject' })).status).toBe(410);
  });
});

describe('the job protocol', () => {
  test('is the run’s own trainer’s alone', async () => {
    const run = await started();
    const path = `/v1/jobs/${run.id}`;
    expect((await ask('GET', path, { env })).status).toBe(401);
    expect((await ask('GET', path, { key: sk, env })).status).toBe(403);
    const other = await jobToken(settings(env), newId('run'));
    expect((await ask('GET', path, { key: other, env })).status).toBe(403);
    const own = await jobToken(settings(env), run.id);
    expect((await ask('GET', path, { key: `${own.slice(0, -2)}AA`, env })).status).toBe(401);
    expect((await ask('GET', '/v1/runs', { key: own, env })).status).toBe(403);
    const job = Job.parse((await run.send('GET', '')).json);
    expect(job).toMatchObject({
      run: run.id,
      fence: 1,
      lease_seconds: 60,
      base: { policy: base },
      root: { policy: base },
    });
    const tokenizer = job.base.files.find((file) => file.name === 'tokenizer.json')!;
    const { text, headers } = await ask('GET', new URL(tokenizer.url).pathname, { key: own, env });
    expect(await sha256(text)).toBe(tokenizer.sha256);
    expect(headers.get('Content-Length')).toBe(String(tokenizer.bytes));
  });

  test('heartbeats keep the lease, say how far it is and bring metrics', async () => {
    const run = await started();
    const metric = (step: number, value: number) => ({ step, name: 'ppo/kl', value });
    const first = await run.beat(1, { metrics: [metric(1, 0.5), metric(2, 1)] });
    expect(Date.parse(first.json.lease_until) - Date.now()).toBeGreaterThan(55_000);
    expect(first.json.cancel).toBe(false);
    const since = (await get(`/v1/runs/${run.id}`)).json.started_at;
    expect(since).toMatch(/Z$/);
    await new Promise((resolve) => setTimeout(resolve, 5));
    await run.beat(1, { stage: 'evaluate', metrics: [metric(2, 2)] });
    expect((await run.beat(9, { metrics: [metric(2, 9), metric(3, 9)] })).status).toBe(410);
    expect((await run.beat(1, { metrics: [{ ...metric(3, 0), value: null }] })).status).toBe(400);
    expect((await get(`/v1/runs/${run.id}`)).json).toMatchObject({
      status: 'evaluating',
      stage: 'evaluate',
      step: 1,
      steps: 9,
      started_at: since,
    });
    const all = (await get(`/v1/runs/${run.id}/metrics`)).json;
    expect(all.data.map((m: { step: number; value: number }) => [m.step, m.value])).toEqual([
      [1, 0.5],
      [2, 2],
    ]);
    expect((await get(`/v1/runs/${run.id}/metrics?after=${all.first_id}`)).json.data).toHaveLength(1);
  });

  test('uploads go by hash, and what differs is refused', async () => {
    const run = await started();
    const sha = await sha256('what comes');
    const files = [
      { sha256: sha, bytes: 10 },
      ...tiny.manifest.files.slice(0, 1).map(({ sha256, bytes }) => ({ sha256, bytes })),
    ];
    const asked = await run.send('POST', '/uploads', { files });
    expect(asked.json).toEqual([
      { sha256: sha, upload: `http://plumb.test/v1/jobs/${run.id}/blobs/${sha}` },
      { sha256: files[1]!.sha256 },
    ]);
    expect((await run.send('POST', '/uploads/complete', { files })).status).toBe(422);
    expect((await run.put(sha, 'what else comes')).status).toBe(422);
    expect((await run.send('POST', '/uploads/complete', { files })).status).toBe(422);
    expect((await run.put(sha, 'what comes')).status).toBe(204);
    expect((await run.send('POST', '/uploads/complete', { files })).json).toEqual({ files: 2 });
    expect((await run.send('POST', '/uploads', { files })).json).toEqual(files.map(({ sha256 }) => ({ sha256 })));
    expect((await run.put('nonsense', 'x')).status).toBe(400);
    // what is there under a hash, but of another length, is not what was meant
    const torn = await sha256('torn off');
    await env.BUCKET.put(`blobs/sha256/${torn}`, 'torn');
    const again = await run.send('POST', '/uploads', { files: [{ sha256: torn, bytes: 8 }] });
    expect(again.json).toEqual([{ sha256: torn, upload: expect.stringContaining(torn) }]);

    expect((await run.send('GET', '/checkpoint')).status).toBe(404);
    const checkpoint = {
      fence: 1,
      stage: 'ppo',
      step: 7,
      files: [{ name: 'ppo', sha256: sha, bytes: 10 }],
      state: { beta: 0.2 },
    };
    expect((await run.send('PUT', '/checkpoint', { ...checkpoint, fence: 2 })).status).toBe(410);
    expect((await run.send('PUT', '/checkpoint', checkpoint)).status).toBe(204);
    const saved = (await run.send('GET', '/checkpoint')).json;
    expect(saved).toMatchObject({ step: 7, state: { beta: 0.2 }, files: [{ name: 'ppo', url: asked.json[0].upload }] });
  });

  test('a checkpoint’s files go when the next one or the end of the run leaves them behind, a policy’s never', async () => {
    const run = await started();
    const there = async (sha: string) => (await env.BUCKET.head(`blobs/sha256/${sha}`)) !== null;
    const checkpoint = async (...contents: string[]) => {
      const files = await Promise.all(
        contents.map(async (text, i) => ({ name: `part ${i}`, sha256: await sha256(text), bytes: text.length })),
      );
      for (const [i, { sha256: sha }] of files.entries()) await run.put(sha, contents[i]!);
      const body = { fence: 1, stage: 'ppo', step: 1, files, state: {} };
      expect((await run.send('PUT', '/checkpoint', body)).status).toBe(204);
      return files.map((file) => file.sha256);
    };
    const [reward, early] = (await checkpoint('reward model', 'early')) as [string, string];
    const [, late] = (await checkpoint('reward model', 'late')) as [string, string];
    expect([await there(reward), await there(early), await there(late)]).toEqual([true, false, true]);

    // one that names a file of the policy it started from, which another brought, deletes nothing of it
    const weights = tiny.manifest.files.at(-1)!;
    const named = { name: 'x', sha256: weights.sha256, bytes: weights.bytes };
    const kept = { name: 'late', sha256: late, bytes: 4 };
    const body = { fence: 1, stage: 'ppo', step: 2, files: [named, kept], state: {} };
    expect((await run.send('PUT', '/checkpoint', body)).status).toBe(204);
    expect(await there(reward)).toBe(false);
    await run.send('POST', '/fail', { fence: 1, error: 'out of memory' });
    await tick(env);
    expect([await there(weights.sha256), await there(late)]).toEqual([true, false]);
  });

  test('what a run’s own policy is made of stays when its last checkpoint names it too', async () => {
    const run = await started();
    await run.beat();
    const upload = async (name: string, content: string) => {
      const file = { name, sha256: await sha256(content), bytes: content.length };
      await run.put(file.sha256, content);
      return file;
    };
    const own = await upload('model.safetensors', 'weights of its own');
    const files = [own, await upload('optimizer', 'moments')];
    const others = tiny.manifest.files.filter(({ name }) => name !== own.name);
    const manifest = await run.manifest({ files: [...others, own as (typeof others)[0]] });
    const body = { fence: 1, stage: 'publish', step: 1, files, state: {} };
    expect((await run.send('PUT', '/checkpoint', body)).status).toBe(204);
    const published = await run.send('POST', '/publish', { fence: 1, manifest, report: {}, verdict: 'promote' });
    expect(published.status).toBe(200);
    await tick(env);
    const there = async (sha: string) => (await env.BUCKET.head(`blobs/sha256/${sha}`)) !== null;
    expect(await Promise.all(files.map((file) => there(file.sha256)))).toEqual([true, false]);
  });

  test('a failure is kept, and ends the run', async () => {
    const run = await started();
    expect((await run.send('POST', '/fail', { fence: 2, error: 'no' })).status).toBe(410);
    expect((await run.send('POST', '/fail', { fence: 1, error: 'out of memory' })).status).toBe(204);
    expect((await get(`/v1/runs/${run.id}`)).json).toMatchObject({ status: 'failed', error: 'out of memory' });
    expect((await run.send('GET', '')).status).toBe(410);
  });

  test('after a failure the same judgements are tried again, but not within the hour', async () => {
    const run = await started();
    await run.send('POST', '/fail', { fence: 1, error: 'there is no engine' });
    await tick(env);
    expect(await runs()).toHaveLength(1);
    await env.DB.prepare("UPDATE runs SET ended_at = '2020-01-01T00:00:00.000Z'").run();
    await tick(env);
    expect(await runs()).toMatchObject([{ status: 'failed' }, { status: 'launched', reason: '3 new judgements' }]);
  });
});

describe('publishing', () => {
  const publish = (run: Awaited<ReturnType<typeof started>>, body: object) =>
    run.send('POST', '/publish', { fence: 1, report: { reasons: ['good'] }, verdict: 'promote', ...body });

  test('promotes: policy, release and the end of the run; asked again it is the same answer', async () => {
    const run = await started();
    await run.beat();
    const manifest = await run.manifest();
    const done = await publish(run, { manifest });
    expect(done.json).toMatchObject({ object: 'release', channel: 'stable', policy: manifest.id, run: run.id });
    expect((await publish(run, { manifest })).json).toEqual(done.json);
    expect((await publish(run, { manifest: { ...manifest, id: newId('policy') } })).status).toBe(410);
    expect((await get(`/v1/runs/${run.id}`)).json).toMatchObject({
      status: 'published',
      verdict: 'promote',
      policy: manifest.id,
      release: { id: done.json.id, channel: 'stable' },
      report: { reasons: ['good'] },
    });
    expect((await get(`/v1/policies/${manifest.id}`)).json).toMatchObject({
      parent: base,
      run: run.id,
      channels: ['stable'],
      withdrawn_at: null,
    });
    expect((await get('/v1/policies')).json.data.map((p: { id: string }) => p.id)).toEqual([base, manifest.id]);

    // the next run starts from it, and is held against the first of its line
    await judgements(3);
    await tick(env);
    const next = (await runs()).find(({ id }: { id: string }) => id !== run.id);
    const job = (await (await trainer(next.id)).send('GET', '')).json;
    expect([job.base.policy, job.root.policy]).toEqual([manifest.id, base]);
  });

  test.each(['promote', 'canary'])(
    'what a run releases (%s) begins to load before anybody asks for it',
    async (verdict) => {
      const run = await started();
      await run.beat();
      const read: string[] = [];
      const watched = { ...env, BUCKET: watchedBucket((key) => read.push(key)) };
      const manifest = await run.manifest();
      const body = { fence: 1, report: {}, verdict, manifest };
      const key = await jobToken(settings(env), run.id);
      expect((await ask('POST', `/v1/jobs/${run.id}/publish`, { key, env: watched, body })).status).toBe(200);
      const image = tiny.manifest.files.find(({ name }) => name === 'edge.bin')!;
      await expect.poll(() => read.at(-1)).toBe(`blobs/sha256/${image.sha256}`);
      // once to see that it is not there yet, once to load it
      expect(read.filter((key) => key.includes(manifest.id))).toHaveLength(2);
    },
  );

  test('what no Worker has room for is refused with the arithmetic', async () => {
    const run = await started();
    await run.beat();
    const manifest = await run.manifest();
    const large = { hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 22, num_attention_heads: 32 };
    const { status, json } = await publish(run, {
      manifest: { ...manifest, config: { ...manifest.config, ...large } },
    });
    expect(status).toBe(422);
    expect(json.errors[0]).toMatchObject({ path: 'manifest.config' });
    expect(json.errors[0].message).toMatch(/its 4-bit image of \d+\.\d MB, .* and a Worker has 128\.0 MB/);
    expect((await publish(run, { manifest })).status).toBe(200);
  });

  test('without the fence or the lease nothing is written', async () => {
    const run = await started();
    await run.beat();
    const manifest = await run.manifest();
    expect((await publish(run, { manifest, fence: 2 })).status).toBe(409);
    await env.DB.prepare("UPDATE runs SET lease_until = '2020-01-01T00:00:00.000Z'").run();
    expect((await publish(run, { manifest })).status).toBe(409);
    expect((await get('/v1/policies')).json.data).toHaveLength(1);
    expect((await get('/v1/releases')).json.data).toHaveLength(1);
    expect((await get(`/v1/runs/${run.id}`)).json.status).toBe('running');
  });

  test('a rejected run releases nothing; its policy may be kept to be looked at', async () => {
    const run = await started();
    await run.beat();
    expect((await publish(run, {})).status).toBe(400);
    const manifest = await run.manifest();
    expect((await publish(run, { verdict: 'reject', manifest })).json).toBeNull();
    expect((await get(`/v1/runs/${run.id}`)).json).toMatchObject({
      status: 'rejected',
      release: null,
      policy: manifest.id,
    });
    expect((await get('/v1/releases')).json.data).toHaveLength(1);
  });

  test('a manifest must be this run’s, and its files be there', async () => {
    const run = await started();
    await run.beat();
    for (const over of [
      { run: newId('run') },
      { parent: null },
      { snapshot: null },
      { root: newId('policy') },
      ...['edge.bin', 'tokenizer.json', 'model.safetensors'].map((name) => ({
        files: tiny.manifest.files.filter((file) => file.name !== name),
      })),
    ])
      expect((await publish(run, { manifest: await run.manifest(over) })).status, JSON.stringify(over)).toBe(422);
    const files = tiny.manifest.files.map((file) => ({ ...file, bytes: file.bytes + 1 }));
    expect((await publish(run, { manifest: await run.manifest({ files }) })).status).toBe(422);
    const taken = await publish(run, { manifest: await run.manifest({ id: base }) });
    expect([taken.status, taken.json.detail]).toEqual([422, 'manifest.id is another policy']);
    expect((await readManifest(env.BUCKET, base))!.run).toBeNull();
  });

  test('a run whose base is no longer stable publishes without a release; canary is a channel of its own', async () => {
    const run = await started();
    await run.beat();
    const other = await tinyPolicy(7);
    await importPolicy(env.DB, env.BUCKET, other.manifest, other.files, 'stable');
    const manifest = await run.manifest();
    expect((await publish(run, { manifest })).json).toBeNull();
    expect((await get(`/v1/runs/${run.id}`)).json).toMatchObject({
      status: 'published',
      release: null,
      policy: manifest.id,
    });
    const canary = await post('/v1/releases', { channel: 'canary', policy: manifest.id, share: 0.5 });
    expect([canary.status, canary.json.share]).toEqual([201, 0.5]);
    expect((await post('/v1/releases', { channel: 'stable', policy: manifest.id, share: 0.5 })).status).toBe(400);
  });

  test('nor does one whose base was withdrawn release anything', async () => {
    const run = await started();
    await run.beat();
    await env.DB.prepare("UPDATE policies SET withdrawn_at = '2020-01-01T00:00:00.000Z' WHERE id = ?").bind(base).run();
    expect((await publish(run, { manifest: await run.manifest() })).json).toBeNull();
    expect((await get('/v1/releases')).json.data).toHaveLength(1);
    expect((await get(`/v1/runs/${run.id}`)).json.error).toMatch(/not released: .* no longer stable/);
  });

  test('one that is queued when its base is withdrawn is never launched', async () => {
    await judgements(3);
    const { json } = await post('/v1/runs', {});
    await env.DB.prepare("UPDATE policies SET withdrawn_at = '2020-01-01T00:00:00.000Z' WHERE id = ?").bind(base).run();
    await tick(env);
    expect((await get(`/v1/runs/${json.id}`)).json).toMatchObject({
      status: 'failed',
      error: 'its base was withdrawn before it was launched',
    });
  });
});

test('a manifest that is there stays as it is: a policy is immutable', async () => {
  await importPolicy(env.DB, env.BUCKET, { ...tiny.manifest, name: 'another' }, tiny.files);
  expect(await readManifest(env.BUCKET, base)).toEqual(tiny.manifest);
});

describe('rollback', () => {
  test('of the canary never withdraws what is stable', async () => {
    const next = await tinyPolicy(7);
    await importPolicy(env.DB, env.BUCKET, next.manifest, next.files, 'canary');
    expect((await post('/v1/releases', { channel: 'stable', policy: next.manifest.id })).status).toBe(201);
    const back = await post('/v1/releases/rollback', { channel: 'canary' });
    expect([back.status, back.json.detail]).toEqual([409, expect.stringContaining('roll stable back')]);
    expect((await get('/v1/models/stable')).status).toBe(200);
    expect((await get('/v1/models/canary')).status).toBe(200);
    expect((await post('/v1/releases/rollback', { channel: 'stable' })).status).toBe(201);
    // what was withdrawn is served by no channel
    expect((await get('/v1/models/canary')).status).toBe(404);
    const chat = { model: 'canary', messages: [{ role: 'user', content: 'hi' }], max_tokens: 1 };
    expect((await post('/v1/chat/completions', chat)).status).toBe(404);
  });

  test('does not go back to what another rollback withdraws meanwhile', async () => {
    for (const [seed, channel] of [
      [7, 'stable'],
      [8, 'canary'],
    ] as const) {
      const { manifest, files } = await tinyPolicy(seed);
      await importPolicy(env.DB, env.BUCKET, manifest, files, channel);
    }
    const meanwhile = new Proxy(env.DB, {
      get(d1, name) {
        if (name !== 'batch') return Reflect.get(d1, name).bind(d1);
        return async (statements: D1PreparedStatement[]) => {
          expect((await post('/v1/releases/rollback', { channel: 'stable' })).status).toBe(201);
          return d1.batch(statements);
        };
      },
    });
    await expect(rollBack(meanwhile, 'test', 'canary', () => [])).rejects.toThrow('came between');
    expect((await get('/v1/releases?channel=canary')).json.data).toHaveLength(1);
  });

  test('goes back to the last that was not rolled back itself, and withdraws the other for good', async () => {
    const others: string[] = [];
    for (const seed of [2, 3]) {
      const { manifest, files } = await tinyPolicy(seed);
      others.push(manifest.id);
      await importPolicy(env.DB, env.BUCKET, manifest, files, 'stable');
    }
    const [second, third] = others as [string, string];
    const back = () => post('/v1/releases/rollback', { channel: 'stable' });
    expect((await back()).json).toMatchObject({ channel: 'stable', policy: second, rollback_of: third });
    expect((await back()).json).toMatchObject({ policy: base, rollback_of: second });
    expect((await back()).status).toBe(409);
    expect((await post('/v1/releases', { channel: 'stable', policy: third })).status).toBe(422);
    expect((await get(`/v1/policies/${third}`)).json.withdrawn_at).toMatch(/Z$/);
    expect((await get(`/v1/policies/${base}`)).json.channels).toEqual(['stable']);
  });
});
