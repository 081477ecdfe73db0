// A run as the Worker's job: fetches what to train on, reports as it goes, saves what it has, and publishes what came out.
//
//   PLUMB_URL=… PLUMB_RUN=run_… PLUMB_JOB_TOKEN=rt_… plumb job
//
// The lease is kept by heartbeats. A 410 means that the run is no longer this trainer's: it stops and writes nothing more.

import type { z } from 'zod';
import { ChatTemplateError } from '../schema/chat.ts';
import type { PolicyFile } from '../schema/manifest.ts';
import { PromptRow, type Side, SnapshotRow, type Vote } from '../schema/snapshot.ts';
import {
  type Heartbeat,
  HeartbeatAnswer,
  Job,
  NOT_RELEASED,
  Published,
  SavedCheckpoint,
  UploadAnswer,
} from '../schema/wire-runs.ts';
import { fitStateFromFile, parametersFromFile, ppoStateFromFile, rewardsFromFile, treeToFile } from './checkpoint.ts';
import { runConfig } from './config.ts';
import { compilations, type Tree } from './engine/compile.ts';
import { interrupted } from './interrupt.ts';
import { type Judgement, judgementOf, placed } from './judgements.ts';
import { formOf, type Trained } from './lora.ts';
import { manifestOf, sha256 } from './manifest.ts';
import type { Progress, Report } from './metrics.ts';
import type { Parameters } from './model.ts';
import { drawingShape } from './pack.ts';
import { policyFromFiles } from './policy.ts';
import { policyFiles } from './publish.ts';
import { startPulse } from './pulse.ts';
import { startSampler } from './rollout.ts';
import { type Progressed, runStages, stageCalls } from './run.ts';
import { UserError } from './user-error.ts';
import { weightsFromFile } from './weights.ts';

/** The run is not this trainer's any more (410, or cancelled): stop, write nothing. */
export class Gone extends Error {}

/** The Worker does not take what was sent, however often. */
class Refused extends Error {}

/** The Worker, or what it stands on, cannot be reached for now. */
class Unreachable extends UserError {}

interface JobAccess {
  url: string;
  run: string;
  token: string;
  /** Which launch this is; another one may have taken over before this one came to ask. */
  fence?: number;
}

/** Works a job to its end, and says which. Throws Gone when told to stop; any other failure is reported to the Worker, then thrown. */
export async function workJob(access: JobAccess, local: Report): Promise<string> {
  const api = client(access);
  const job = await api.json(Job, 'GET', '');
  if (access.fence !== undefined && access.fence !== job.fence) throw new Gone('the run was launched again');
  const interval = (1000 * job.lease_seconds) / 4;
  const pulse = startPulse({ ...access, fence: job.fence, interval });
  const beats = heartbeats(api, job.fence, interval, pulse);
  try {
    return await train(api, job, beats, local);
  } catch (error) {
    // Who cannot reach the Worker leaves the run to its lease: the next launch goes on from the last checkpoint.
    if (!(error instanceof Gone || error instanceof Unreachable)) {
      await beats.flush();
      await api
        .send('POST', '/fail', { fence: job.fence, error: (error as Error).message.slice(0, 8000) })
        .catch(() => {});
    }
    throw error;
  } finally {
    beats.stop();
  }
}

async function train(api: Client, job: Job, beats: ReturnType<typeof heartbeats>, local: Report): Promise<string> {
  const config = runConfig(job.config);
  // Where the time goes, by stage: what passes until a stage's report is that stage's.
  const seconds: Record<string, number> = {};
  let since = performance.now();
  const report: Report = async (progress) => {
    seconds[progress.stage] = (seconds[progress.stage] ?? 0) + (performance.now() - since) / 1000;
    since = performance.now();
    await local(progress);
    beats.note(progress);
    await beats.check();
  };

  // What to train on: the base, the root of its line, and the snapshot's parts, each checked by its hash.
  const files = await fetched(api, job.base.files);
  const rootFiles = job.root.policy === job.base.policy ? files : await fetched(api, job.root.files);
  const policy = policyFromFiles(files);
  const model = policy.config;
  const parent = weightsFromFile(files.get('model.safetensors')!, model);
  const root = rootFiles === files ? parent : weightsFromFile(rootFiles.get('model.safetensors')!, model);
  const judgements: Record<Side, Judgement[]> = { A: [], B: [], C: [] };
  // What this policy cannot be asked (too long for it, refused by its template) or a fit has no place for is left out and counted.
  const askable = (ids: number[]) => ids.length + LEAST_ROOM <= model.max_position_embeddings;
  const skipped = { judgements: 0, prompts: 0 };
  for (const vote of await standingVotes(api, job)) {
    const judgement = orRefused(() => judgementOf(policy, vote));
    if (judgement === REFUSED || (judgement && !askable(judgement.rows[0]!.prompt))) skipped.judgements++;
    else if (judgement) judgements[vote.side].push(judgement);
  }
  const hasPlace = placed(Object.values(judgements).flat());
  for (const side of ['A', 'B', 'C'] as const) {
    const all = judgements[side];
    judgements[side] = all.filter(hasPlace);
    skipped.judgements += all.length - judgements[side].length;
  }
  const prompts: Record<Side, number[][]> = { A: [], B: [], C: [] };
  for (const row of await promptRows(api, job)) {
    const ids = orRefused(() => policy.encodePrompt(row.prompt));
    if (ids === REFUSED || !askable(ids)) skipped.prompts++;
    else prompts[row.side].push(ids);
  }
  if (judgements.A.length === 0 || prompts.A.length === 0)
    throw new UserError('the snapshot has no judgement to fit a reward model to (side A is empty)');

  const input = { model, root, parent, judgements, prompts };
  const judged = Object.values(judgements).flatMap((side) => side.map(({ rows }) => rows));
  const asked = Object.values(prompts).flat();
  const { maxTokens, shape } = drawingShape(model.max_position_embeddings, judged, asked, config.maxAnswerTokens);
  const calls = stageCalls(model, shape, config);
  const sampler = startSampler(model);
  try {
    const resumed = await savedProgress(api, parent, formOf(model, config.lora, parent));
    let lastSaved = Date.now();
    const keep = async (progressed: Progressed) => {
      // Every finished stage; steps within one as often as half a minute, for each is some megabytes to send; and the last before an end.
      const code = interrupted();
      if ((progressed.ppo || progressed.fit) && Date.now() - lastSaved < 30_000 && code === null) return;
      try {
        await saveProgress(api, job.fence, progressed);
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error; // the next one may come through
      }
      lastSaved = Date.now();
      if (code !== null) process.exit(code);
    };
    const { candidate, gate } = await runStages(input, config, calls, sampler, maxTokens, report, resumed, keep);
    const details = {
      reasons: gate.reasons,
      metrics: gate.metrics,
      compilations: [...compilations],
      seconds,
      shape,
      skipped,
    };
    await beats.flush();
    if (!candidate) {
      await api.send('POST', '/publish', { fence: job.fence, report: details, verdict: 'reject' });
      return 'rejected';
    }

    // A rejected policy is published too, without a release: people may want to look at it.
    const out = policyFiles(policy, candidate);
    const manifest = manifestOf(policy, out, job.base.manifest.name, {
      parent: job.base.policy,
      root: job.root.policy,
      run: job.run,
      snapshot: job.snapshot.id,
      metrics: gate.metrics,
    });
    await report({ stage: 'publish', step: 1, steps: 1, metrics: {} });
    await uploaded(api, [...out.values()]);
    const body = { fence: job.fence, manifest, report: details, verdict: gate.verdict };
    const release = await api.json(Published, 'POST', '/publish', body);
    if (gate.verdict === 'reject') return 'rejected';
    return release ? 'published' : NOT_RELEASED;
  } finally {
    await sampler.close();
  }
}

// ---- the snapshot

/** Tokens that a prompt must leave for its answer. */
const LEAST_ROOM = 16;
const REFUSED = Symbol('refused by the chat template');
function orRefused<T>(encode: () => T): T | typeof REFUSED {
  try {
    return encode();
  } catch (error) {
    if (error instanceof ChatTemplateError) return REFUSED;
    throw error;
  }
}

/** The votes that stand: of each the row with the highest seq, unless that says it is gone. */
async function standingVotes(api: Client, job: Job): Promise<Vote[]> {
  const latest = new Map<string, z.infer<typeof SnapshotRow>>();
  for (const part of job.snapshot.parts) {
    for (const row of lines(await api.blob(part.url, part.sha256), SnapshotRow)) {
      const known = latest.get(row.feedback);
      if (!known || known.seq < row.seq) latest.set(row.feedback, row);
    }
  }
  return [...latest.values()].filter((row): row is Vote => row.kind !== 'gone').sort((a, b) => a.seq - b.seq);
}

async function promptRows(api: Client, job: Job): Promise<PromptRow[]> {
  const rows = new Map<string, PromptRow>();
  for (const part of job.snapshot.prompts)
    for (const row of lines(await api.blob(part.url, part.sha256), PromptRow)) rows.set(row.hash, row);
  return [...rows.values()];
}

function lines<T>(bytes: Uint8Array, schema: z.ZodType<T>): T[] {
  const text = new TextDecoder().decode(bytes);
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => schema.parse(JSON.parse(line)));
}

async function fetched(api: Client, files: (PolicyFile & { url: string })[]): Promise<Map<string, Uint8Array>> {
  const wanted = files.filter((file) => file.name !== 'edge.bin');
  return new Map(
    await Promise.all(wanted.map(async (file) => [file.name, await api.blob(file.url, file.sha256)] as const)),
  );
}

// ---- progress

async function saveProgress(api: Client, fence: number, progressed: Progressed): Promise<void> {
  const parts: Record<string, Tree> = {};
  if (progressed.reward?.length) parts.reward = progressed.reward;
  let state: Record<string, number> = {};
  if (progressed.ppo) {
    const { actor, adam, ...scalars } = progressed.ppo;
    parts.ppo = { actor, adam };
    state = scalars;
  }
  if (progressed.fit) {
    const { rm, adam, ...scalars } = progressed.fit;
    parts.fit = { rm, adam };
    state = scalars;
  }
  if (progressed.candidate) parts.candidate = progressed.candidate;
  const files = Object.entries(parts).map(([name, tree]) => ({ name, bytes: treeToFile(tree) }));
  await uploaded(
    api,
    files.map((file) => file.bytes),
  );
  await api.send('PUT', '/checkpoint', {
    fence,
    stage: progressed.candidate ? 'evaluate' : progressed.reward?.length && !progressed.fit ? 'ppo' : 'reward',
    step: progressed.fit?.step ?? progressed.ppo?.iteration ?? 0,
    files: files.map(({ name, bytes }) => ({ name, sha256: sha256(bytes), bytes: bytes.length })),
    state,
  });
}

/** @param like what the stages train: the parent's weights, or adapters */
async function savedProgress(api: Client, parent: Parameters, like: Trained): Promise<Progressed> {
  const saved = await api.found(SavedCheckpoint, '/checkpoint');
  if (!saved) return {};
  const out: Progressed = {};
  for (const file of saved.files) {
    const bytes = await api.blob(file.url, file.sha256);
    if (file.name === 'reward') out.reward = rewardsFromFile(bytes, parent);
    else if (file.name === 'candidate') out.candidate = parametersFromFile(bytes, parent);
    else if (file.name === 'fit') out.fit = fitStateFromFile(bytes, saved.state, like);
    else if (file.name === 'ppo') out.ppo = ppoStateFromFile(bytes, saved.state, like);
  }
  return out;
}

/** Sends the blobs that the Worker has not, and has it hash them. */
async function uploaded(api: Client, blobs: Uint8Array[]): Promise<void> {
  const files = blobs.map((bytes) => ({ sha256: sha256(bytes), bytes: bytes.length }));
  const answer = await api.json(UploadAnswer, 'POST', '/uploads', { files });
  const bySha = new Map(files.map((file, i) => [file.sha256, blobs[i]!]));
  const sent = answer.filter((file) => file.upload);
  for (const { sha256: hash, upload } of sent) await api.put(upload!, bySha.get(hash)!);
  if (sent.length > 0)
    await api.send('POST', '/uploads/complete', {
      files: files.filter((file) => sent.some((s) => s.sha256 === file.sha256)),
    });
}

// ---- talking to the Worker

/** Numbers that one beat takes. */
const BEAT = 2000;
/** Numbers that wait while the Worker is away; beyond them the oldest go. */
const WAITING = 100_000;

/** @param interval milliseconds */
export function heartbeats(
  api: Pick<Client, 'json'>,
  fence: number,
  interval: number,
  pulse: ReturnType<typeof startPulse>,
) {
  let stage = 'start';
  let step = 0;
  let steps = 0;
  let metrics: Heartbeat['metrics'] = [];
  let stopped: Error | null = null;
  let last = 0;
  let underWay: Promise<boolean> | null = null;
  /** Whether what it sent is done with. */
  const send = async (): Promise<boolean> => {
    last = Date.now();
    pulse.beaten();
    const sending = metrics.slice(0, BEAT);
    let done = true;
    try {
      const { cancel } = await api.json(HeartbeatAnswer, 'POST', '/heartbeat', {
        fence,
        stage,
        step,
        steps,
        metrics: sending,
      });
      if (cancel) stopped = new Gone('the run was cancelled');
    } catch (error) {
      // A Worker that cannot be reached for a while is no reason to stop: the lease tells. What it refuses once it always will.
      if (error instanceof Gone) stopped = error;
      done = error instanceof Refused;
    }
    if (done) metrics = metrics.slice(sending.length);
    else metrics = metrics.slice(-WAITING);
    return done;
  };
  /** One at a time: a beat that is tried again for a while must not be overtaken by what was noted after it. */
  const beat = (): Promise<boolean> => {
    underWay ??= send().finally(() => {
      underWay = null;
    });
    return underWay;
  };
  const timer = setInterval(beat, interval);
  return {
    note: (progress: Progress) => {
      ({ stage, step, steps } = progress);
      pulse.note(stage, step, steps);
      for (const [name, value] of Object.entries(progress.metrics))
        metrics.push({ step, name: name.includes('/') ? name : `${stage}/${name}`, value });
    },
    /** Called between steps: beats when one is due (steps block the timer), and stops the run that was told to. */
    check: async () => {
      if (Date.now() - last > interval / 2) await beat();
      if (stopped) throw stopped;
    },
    /** Sends what has not been sent yet: before the run's end, after which no beat is taken. */
    flush: async () => {
      for (let failures = 0; metrics.length > 0 && !stopped && failures < 3; ) if (!(await beat())) failures++;
    },
    stop: () => {
      clearInterval(timer);
      pulse.stop();
    },
  };
}

type Client = ReturnType<typeof client>;

export function client({ url, run, token }: JobAccess) {
  const headers = { authorization: `Bearer ${token}` };
  const request = async (method: string, target: string, body?: Uint8Array | object): Promise<Response> => {
    for (let tries = 1; ; tries++) {
      try {
        const init: RequestInit = {
          method,
          headers: {
            ...headers,
            ...(body && {
              'content-type': body instanceof Uint8Array ? 'application/octet-stream' : 'application/json',
            }),
          },
        };
        if (body) init.body = body instanceof Uint8Array ? (body as never) : JSON.stringify(body);
        const response = await fetch(target, init);
        if (response.status < 500 && response.status !== 429) return response;
        if (tries === 6) return response;
      } catch (error) {
        if (tries === 6) throw new Unreachable(`the Worker at ${url} cannot be reached: ${(error as Error).message}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** tries));
    }
  };
  const checked = async (response: Response, what: string): Promise<Response> => {
    if (response.ok) return response;
    const text = await response.text();
    if (response.status === 410 || (response.status === 409 && text.includes('fence')))
      throw new Gone(`the run is no longer this trainer's (${response.status})`);
    const message = `${what}: ${response.status} ${text.slice(0, 500)}`;
    throw response.status < 500 && response.status !== 429 ? new Refused(message) : new Unreachable(message);
  };
  const base = `${url}/v1/jobs/${run}`;
  const raw = (method: string, path: string, body?: object) => request(method, base + path, body);
  const send = async (method: string, path: string, body?: object) =>
    checked(await raw(method, path, body), `${method} ${path}`);
  return {
    send,
    /** Null where there is none. */
    found: async <T>(schema: z.ZodType<T>, path: string): Promise<T | null> => {
      const response = await raw('GET', path);
      return response.status === 404 ? null : schema.parse(await (await checked(response, `GET ${path}`)).json());
    },
    json: async <T>(schema: z.ZodType<T>, method: string, path: string, body?: object): Promise<T> =>
      schema.parse(await (await send(method, path, body)).json()),
    put: async (target: string, bytes: Uint8Array) => checked(await request('PUT', target, bytes), 'upload'),
    blob: async (target: string, hash: string): Promise<Uint8Array> => {
      const response = await checked(await request('GET', target), 'download');
      const bytes = new Uint8Array(await response.arrayBuffer());
      if (sha256(bytes) !== hash) throw new Error(`a download has another hash than announced (${hash.slice(0, 12)}…)`);
      return bytes;
    },
  };
}
