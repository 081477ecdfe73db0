// The job protocol, for a run's trainer alone.
import { z } from 'zod';
import { Sha256 } from '../../schema/manifest.ts';
import {
  Checkpoint,
  Fail,
  Heartbeat,
  HeartbeatAnswer,
  Job,
  Publish,
  Published,
  SavedCheckpoint,
  UploadAnswer,
  Uploads,
} from '../../schema/wire-runs.ts';
import { ApiError, at, notFound } from '../error.ts';
import { publish } from '../jobs/release.ts';
import { type AnyRoute, type Call, type Definition, route } from '../route.ts';
import { preload } from '../serving.ts';
import { blobKey } from '../store/blobs.ts';
import { activeJob, beat, failRun, readSnapshot, saveCheckpoint, sweep } from '../store/jobs.ts';
import { readManifest } from '../store/policies.ts';

const base = '/v1/jobs/:run';
const job = <Q extends z.ZodType = z.ZodType<unknown>, B extends z.ZodType = z.ZodType<unknown>>(
  definition: Omit<Definition<z.output<Q>, z.output<B>>, 'query' | 'body' | 'auth'> & { query?: Q; body?: B },
): AnyRoute => route({ ...definition, auth: 'job' });

type AnyCall = Pick<Call<unknown, unknown>, 'c' | 'set' | 'param'>;
/** By the address that the trainer was given, or came by. */
const blobUrl = ({ c, set, param }: AnyCall, sha: string) =>
  `${(set.PLUMB_URL ?? new URL(c.req.url).origin).replace(/\/$/, '')}/v1/jobs/${param('run')}/blobs/${sha}`;
const located = <T extends { sha256: string }>(call: AnyCall, files: T[]) =>
  files.map((file) => ({ ...file, url: blobUrl(call, file.sha256) }));

async function jobPolicy(call: Call<unknown, unknown>, policy: string) {
  const manifest = await readManifest(call.env.BUCKET, policy);
  if (!manifest || 'upstream' in manifest) throw new ApiError(409, 'the policy to start from is gone');
  return { policy, manifest, files: located(call, manifest.files) };
}

export const jobRoutes = [
  job({
    method: 'get',
    path: base,
    summary: 'What to train on, and from what',
    answers: { 200: Job },
    async handle(call) {
      const { c, env, set, param } = call;
      const run = await activeJob(env.DB, param('run'));
      const snapshot = (await readSnapshot(env.DB, run.snapshot))!;
      const policy = await jobPolicy(call, run.base_policy);
      return c.json({
        run: run.id,
        fence: run.fence,
        lease_seconds: set.PLUMB_LEASE,
        stages: run.stages,
        config: run.config,
        snapshot: {
          id: snapshot.id,
          rows: snapshot.parts.reduce((sum, part) => sum + part.rows, 0),
          parts: located(call, snapshot.parts),
          prompts: located(call, snapshot.prompts),
        },
        base: policy,
        root: policy.manifest.root === policy.policy ? policy : await jobPolicy(call, policy.manifest.root),
      });
    },
  }),
  job({
    method: 'post',
    path: `${base}/heartbeat`,
    summary: 'Keeps the lease, and says how far it is',
    body: Heartbeat,
    answers: { 200: HeartbeatAnswer },
    async handle({ c, env, set, body, param }) {
      return c.json(await beat(env.DB, param('run'), body, set.PLUMB_LEASE));
    },
  }),
  job({
    method: 'post',
    path: `${base}/uploads`,
    summary: 'Where to send which files; nothing where it is there',
    body: Uploads,
    answers: { 200: UploadAnswer },
    async handle(call) {
      const { c, env, body, param } = call;
      await activeJob(env.DB, param('run'));
      const answer = body.files.map(async ({ sha256, bytes }) => {
        const head = await env.BUCKET.head(blobKey(sha256));
        return head?.size === bytes ? { sha256 } : { sha256, upload: blobUrl(call, sha256) };
      });
      return c.json(await Promise.all(answer));
    },
  }),
  job({
    method: 'put',
    path: `${base}/blobs/:sha256`,
    summary: 'A file, by its hash; what has another hash is refused as it comes',
    upload: true,
    answers: { 204: 'stored' },
    errors: [422],
    async handle({ c, env, param }) {
      await activeJob(env.DB, param('run'));
      const sha = Sha256.safeParse(param('sha256'));
      if (!sha.success) throw at(400, 'sha256', 'is not a sha256 in lower-case hex');
      try {
        // whose it is, so that a run sweeps up what it brought first, and nothing else
        const owner = { customMetadata: { run: param('run') }, onlyIf: { etagDoesNotMatch: '*' } };
        await env.BUCKET.put(blobKey(sha.data), c.req.raw.body ?? '', { sha256: sha.data, ...owner });
      } catch (error) {
        const text = error instanceof Error ? error.message : '';
        if (/SHA-256|checksum|10037/i.test(text)) throw new ApiError(422, 'what came has another hash');
        if (/known length/i.test(text)) throw new ApiError(400, 'Content-Length is needed');
        throw error;
      }
      return c.body(null, 204);
    },
  }),
  job({
    method: 'get',
    path: `${base}/blobs/:sha256`,
    summary: 'A file, by its hash',
    answers: { 200: 'its bytes' },
    async handle({ env, param }) {
      await activeJob(env.DB, param('run'));
      const object = Sha256.safeParse(param('sha256')).success && (await env.BUCKET.get(blobKey(param('sha256'))));
      if (!object) throw notFound('file');
      return new Response(object.body, {
        headers: { 'Content-Type': 'application/octet-stream', 'Content-Length': String(object.size) },
      });
    },
  }),
  job({
    method: 'post',
    path: `${base}/uploads/complete`,
    summary: 'All was sent: each file is there, and has the hash it was announced with',
    body: Uploads,
    answers: { 200: z.object({ files: z.int() }) },
    async handle({ c, env, body, param }) {
      await activeJob(env.DB, param('run'));
      for (const [i, { sha256, bytes }] of body.files.entries()) {
        // R2 compared the hash when the file came, and stores none that differs
        const head = await env.BUCKET.head(blobKey(sha256));
        if (head?.size !== bytes) throw at(422, `files[${i}]`, 'did not come, or is not what was announced');
      }
      return c.json({ files: body.files.length });
    },
  }),
  job({
    method: 'put',
    path: `${base}/checkpoint`,
    summary: 'What to go on from after a relaunch',
    body: Checkpoint,
    answers: { 204: 'kept' },
    async handle({ c, env, body, param }) {
      const { checkpoint: before } = await activeJob(env.DB, param('run'));
      await saveCheckpoint(env.DB, param('run'), body);
      await sweep(env.BUCKET, param('run'), before, body.files);
      return c.body(null, 204);
    },
  }),
  job({
    method: 'get',
    path: `${base}/checkpoint`,
    summary: 'The latest checkpoint; 404 where there is none',
    answers: { 200: SavedCheckpoint },
    async handle(call) {
      const { c, env, param } = call;
      const run = await activeJob(env.DB, param('run'));
      if (!run.checkpoint) throw notFound('checkpoint');
      const saved = Checkpoint.parse(run.checkpoint);
      return c.json({ ...saved, files: located(call, saved.files) });
    },
  }),
  job({
    method: 'post',
    path: `${base}/publish`,
    summary: 'The end: a verdict, its reasons and the policy',
    body: Publish,
    answers: { 200: Published },
    errors: [409],
    async handle({ c, env, body, param }) {
      const release = await publish(env, param('run'), body);
      if (release) preload(env, release.channel, c.executionCtx);
      return c.json(release);
    },
  }),
  job({
    method: 'post',
    path: `${base}/fail`,
    summary: 'The run failed, and why',
    body: Fail,
    answers: { 204: 'noted' },
    async handle({ c, env, body, param }) {
      await failRun(env.DB, param('run'), body.fence, body.error);
      return c.body(null, 204);
    },
  }),
];
