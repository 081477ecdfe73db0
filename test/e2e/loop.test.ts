// The loop, end to end: a click on the widget in the demo page → its row in D1 → in the frozen snapshot, by its id → a run,
// whose trainer is killed and goes on from its checkpoint → past the gate → published → another policy answers in the same
// page. Then a run that the gate rejects, and the policy that was serving still serves.
//
// Real workerd, D1, R2, Chromium, TensorFlow. People beside the one who clicks are simulated, and judge by gold.
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Settings } from '../../functions/env.ts';
import { jobToken } from '../../functions/token.ts';
import { Job, type Run } from '../../schema/wire-runs.ts';
import { random } from '../../trainer/random.ts';
import { judge, RATER_DEFAULTS } from '../../trainer/seed/raters.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { startBrowser } from '../support/browser.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';

const JUDGEMENTS = 240;
/** Small, and enough. From so few judgements answers become shorter than the gate lets pass by default. */
const PROMOTED = {
  maxAnswerTokens: 40,
  ppo: { episodes: 384 },
  gate: { comparisons: 200, lengthRatio: 1.8 },
};
/** No policy is that near to its parent. */
const REJECTED = {
  maxAnswerTokens: 40,
  reward: { epochs: 1 },
  ppo: { episodes: 64 },
  gate: { comparisons: 40, klToParent: -1 },
};
/** Seconds; a step that compiles may take longer, but the cron that would relaunch its trainer is ours to fire. */
const LEASE = 8;
const SECRET = 'the-secret-of-the-loop-test';
const MINUTES = 60_000;

interface Vote {
  id: string;
  kind: string;
  sample_id: string;
  value: number;
  policy: string;
  rater_kind: string;
}
interface Metric {
  id: number;
  name: string;
}

let local: TestLocal;
let browser: Browser;
let page: Page;

beforeAll(async () => {
  local = await startTestLocal({
    // the clicks and the simulated judgements together
    PLUMB_MIN_FEEDBACK: String(JUDGEMENTS),
    PLUMB_LEASE: String(LEASE),
    PLUMB_TOKEN_SECRETS: `a:${SECRET}`,
    // the same sides in every test, the ticket of the page on A
    PLUMB_SIDE_KEY: 'the side key of the loop test',
  });
  browser = await startBrowser();
  page = await browser.newPage();
  await page.goto(local.url);
}, MINUTES);
afterAll(async () => {
  await browser?.close();
  await local?.close();
}, MINUTES);

/** Asks in the page and gives back which policy answered. */
async function ask(): Promise<string> {
  const before = await page.locator('article').count();
  await page.getByRole('button', { name: 'Ask', exact: true }).click();
  await page.locator('article').nth(before).waitFor();
  const newest = page.locator('article').first();
  await newest.locator('plumb-feedback[token]').waitFor();
  return (await newest.getAttribute('data-policy')) ?? '';
}

async function judgeByGold(): Promise<void> {
  const asked = tickets('judging', 77, JUDGEMENTS);
  const one = async (i: number) => {
    const { choices } = await local.api<{ choices: { message: { content: string }; sample_id: string }[] }>(
      'POST',
      '/v1/chat/completions',
      { model: 'stable', messages: [{ role: 'user', content: asked[i]!.text }], n: 4, max_tokens: 39, seed: i },
    );
    const ids = choices.map((choice) => choice.sample_id);
    const texts = choices.map((choice) => choice.message.content);
    const { order } = judge(random(1, `rater ${i}`), asked[i]!, texts, { ...RATER_DEFAULTS, flip: 0 });
    const vote = { kind: 'ranking', sample_ids: ids, order: order.map((place) => [ids[place]]) };
    await local.api('POST', '/v1/feedback', { ...vote, rater: { id: `rater ${i % 9}` } });
  };
  let next = 0;
  const rater = async () => {
    while (next < JUDGEMENTS) await one(next++);
  };
  await Promise.all([rater(), rater(), rater(), rater()]);
}

const runOf = (id: string) => local.api<Run>('GET', `/v1/runs/${id}`);

/** Looks at the run until it is as wanted; one that has ended otherwise is not waited for. */
async function follow(id: string, wanted: (run: Run) => boolean, meanwhile?: () => Promise<void>): Promise<Run> {
  for (;;) {
    const run = await runOf(id);
    if (wanted(run)) return run;
    if (run.ended_at) throw new Error(`the run has ended: ${run.status} ${run.error ?? JSON.stringify(run.report)}`);
    await meanwhile?.();
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}
const ended = (run: Run) => run.ended_at !== null;
const why = ({ error, report }: Run) => error ?? JSON.stringify(report, null, 1);

async function metricsAfter(run: string, after: number): Promise<Metric[]> {
  const { data, has_more } = await local.api<{ data: Metric[]; has_more: boolean }>(
    'GET',
    `/v1/runs/${run}/metrics?limit=1000&after=${after}`,
  );
  return has_more ? [...data, ...(await metricsAfter(run, data.at(-1)!.id))] : data;
}

/** What the run's trainer is given, read as it reads it. */
async function jobOf(run: string) {
  const token = await jobToken({ PLUMB_TOKEN_SECRETS: [['a', SECRET]] } as unknown as Settings, run);
  const read = async (url: string) => {
    const response = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
    expect(response.status).toBe(200);
    return response.text();
  };
  return { job: Job.parse(JSON.parse(await read(`${local.url}/v1/jobs/${run}`))), read };
}

describe('the loop', { timeout: 6 * MINUTES }, () => {
  let vote: Vote;
  let run: Run;

  test('a click on the widget is a row in the database', async () => {
    expect(await ask()).toBe(local.policy);
    await page.getByRole('button', { name: 'Good answer' }).click();
    await page.getByText('Thank you, saved.').waitFor();
    const { data } = await local.api<{ data: Vote[] }>('GET', '/v1/feedback');
    expect(data).toHaveLength(1);
    vote = data[0]!;
    expect(vote).toMatchObject({ kind: 'thumb', value: 1, policy: local.policy, rater_kind: 'anonymous' });
    const sample = await local.api<{ text: string; feedback: Vote[] }>('GET', `/v1/samples/${vote.sample_id}`);
    expect(sample.feedback).toMatchObject([{ id: vote.id }]);
    expect(await page.locator('article .text').textContent()).toBe(sample.text);
  });

  test('the row is in the snapshot that a run trains on', async () => {
    await judgeByGold();
    run = await local.api<Run>('POST', '/v1/runs', { config: PROMOTED });
    expect(run).toMatchObject({ status: 'queued', base_policy: local.policy });
    await local.tick();
    await follow(run.id, ({ status }) => status !== 'queued');

    const { job, read } = await jobOf(run.id);
    expect(job.snapshot).toMatchObject({ id: run.snapshot, rows: JUDGEMENTS + 1 });
    const parts = await Promise.all(job.snapshot.parts.map(({ url }) => read(url)));
    const rows = parts.flatMap((part) =>
      part
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    );
    expect(rows.find(({ feedback }) => feedback === vote.id)).toMatchObject({
      kind: 'thumb',
      value: 1,
      side: 'A', // which the reward model is fitted to
      samples: [{ id: vote.sample_id, policy: local.policy }],
    });
  });

  test('a trainer that is killed goes on from its checkpoint, and what it makes passes the gate', async () => {
    await follow(run.id, ({ stage, steps }) => stage === 'ppo' || (stage === 'reward' && steps === 1));
    const first = local.launcher.children.get(run.id)!;
    const exited = new Promise((resolve) => first.once('exit', resolve));
    first.kill('SIGKILL');
    await exited;
    const before = (await metricsAfter(run.id, 0)).at(-1)!.id;

    await follow(run.id, () => local.launcher.children.has(run.id), local.tick);
    const published = await follow(run.id, ended);
    expect(published, why(published)).toMatchObject({
      status: 'published',
      verdict: 'promote',
      release: { channel: 'stable' },
    });
    expect(published.policy).not.toBe(local.policy);
    run = published;
    const { compilations } = published.report as { compilations: { name: string; seconds: number }[] };
    expect(compilations.length).toBeGreaterThan(0);
    expect(compilations.length).toBeLessThanOrEqual(6);

    const since = new Set((await metricsAfter(run.id, before)).map(({ name }) => name));
    expect([...since]).toEqual(expect.arrayContaining(['gate/win_rate', 'judge/loss']));
    // the reward model was in the checkpoint: it is measured again, not fitted
    expect(since.has('reward/accuracy_held_out')).toBe(true);
    expect(since.has('reward/loss')).toBe(false);
  });

  test('another policy answers in the same page', async () => {
    await expect.poll(ask, { interval: 500, timeout: 10_000 }).toBe(run.policy);
    expect(await page.getByText('From here on another policy answers.').count()).toBe(1);
    await page.locator('article').first().getByRole('button', { name: 'Bad answer' }).click();
    await page.locator('article').first().getByText('Thank you, saved.').waitFor();
    const { data } = await local.api<{ data: Vote[] }>('GET', `/v1/feedback?policy=${run.policy}`);
    expect(data).toMatchObject([{ kind: 'thumb', value: -1 }]);
  });

  test('what the gate rejects is not released', async () => {
    const { id } = await local.api<Run>('POST', '/v1/runs', { config: REJECTED });
    await local.tick();
    const rejected = await follow(id, ended);
    expect(rejected).toMatchObject({ status: 'rejected', verdict: 'reject', release: null, base_policy: run.policy });
    const { reasons } = rejected.report as { reasons: { check: string; passed: boolean; words: string }[] };
    expect(reasons.find(({ check }) => check === 'KL to parent')).toMatchObject({ passed: false });
    // later than any isolate needs to notice a release
    await new Promise((resolve) => setTimeout(resolve, 2500));
    expect(await ask()).toBe(run.policy);
    const { data } = await local.api<{ data: { policy: string }[] }>('GET', '/v1/releases?order=desc&limit=1');
    expect(data).toMatchObject([{ policy: run.policy }]);
  });

  test('no trainer is left behind', async () => {
    await expect.poll(() => local.launcher.children.size, { timeout: 10_000 }).toBe(0);
  });
});
