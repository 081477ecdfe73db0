// Runs, policies, releases, and the protocol between the Worker and a run's trainer.
import { z } from 'zod';
import { idSchema } from './ids.ts';
import { Manifest, PolicyFile, Sha256, UpstreamManifest } from './manifest.ts';
import { RunSettings } from './run-config.ts';
import { RUN_STATUS } from './tables.ts';
import { Digits, listQuery, Time } from './wire.ts';

const STAGES = ['sft', 'reward', 'ppo', 'evaluate', 'publish'] as const;
const Config = z.record(z.string(), z.unknown());
const Channel = z.enum(['stable', 'canary']);

export const NewRun = z.strictObject({
  stages: z.array(z.enum(STAGES)).min(1).optional(),
  config: RunSettings.optional(),
  reason: z.string().max(1024).optional(),
});

export const Run = z.object({
  object: z.literal('run'),
  id: idSchema('run'),
  status: z.enum(RUN_STATUS),
  verdict: z.enum(['promote', 'canary', 'reject']).optional(),
  release: z.object({ id: idSchema('release'), channel: Channel }).nullable(),
  stage: z.string().nullable(),
  step: z.int().nullable(),
  steps: z.int().nullable(),
  reason: z.string(),
  snapshot: idSchema('snapshot'),
  base_policy: idSchema('policy'),
  policy: idSchema('policy').optional(),
  report: z.record(z.string(), z.unknown()).optional(),
  error: z.string().optional(),
  created_at: Time,
  started_at: Time.nullable(),
  ended_at: Time.nullable(),
});
export type Run = z.infer<typeof Run>;

export const RunQuery = z.strictObject({ ...listQuery('run'), status: z.enum(RUN_STATUS).optional() });

export const MetricsQuery = z.strictObject({
  after: Digits.transform(Number).optional().meta({ type: 'integer' }),
  limit: listQuery('run').limit,
});
export const Metric = z.object({ id: z.int(), step: z.int(), name: z.string(), value: z.number(), at: Time });

const standing = { withdrawn_at: Time.nullable(), channels: z.array(Channel) };
export const Policy = z.union([Manifest.extend(standing), UpstreamManifest.extend(standing)]);
export type Policy = z.infer<typeof Policy>;

export const Release = z.object({
  object: z.literal('release'),
  id: idSchema('release'),
  channel: Channel,
  policy: idSchema('policy'),
  share: z.number(),
  run: idSchema('run').nullable(),
  rollback_of: idSchema('policy').nullable(),
  created_at: Time,
});
export type Release = z.infer<typeof Release>;

export const NewRelease = z
  .strictObject({ channel: Channel, policy: idSchema('policy'), share: z.number().min(0).max(1).optional() })
  .refine((body) => body.channel === 'canary' || body.share === undefined, {
    message: 'is for canary',
    path: ['share'],
  });
export const Rollback = z.strictObject({ channel: Channel });

// The job protocol

const Fence = z.int().positive();
const PartUrl = z.object({ sha256: Sha256, bytes: z.int(), rows: z.int(), url: z.url() });

/** What the Worker asks of a launcher. */
export const LaunchRequest = z.strictObject({ run: idSchema('run'), fence: Fence, url: z.url(), token: z.string() });
export type LaunchRequest = z.infer<typeof LaunchRequest>;

const JobPolicy = z.object({
  policy: idSchema('policy'),
  manifest: Manifest,
  files: z.array(PolicyFile.extend({ url: z.url() })),
});

export const Job = z.object({
  run: idSchema('run'),
  fence: Fence,
  lease_seconds: z.number(),
  stages: z.array(z.enum(STAGES)).nullable(),
  config: Config,
  snapshot: z.object({
    id: idSchema('snapshot'),
    rows: z.int(),
    parts: z.array(PartUrl),
    prompts: z.array(PartUrl),
  }),
  base: JobPolicy,
  /** The first of the base's line: the judge is fitted from it, and KL is measured to it too. */
  root: JobPolicy,
});
export type Job = z.infer<typeof Job>;

export const Heartbeat = z.strictObject({
  fence: Fence,
  stage: z.string().min(1).max(64),
  step: z.int().nonnegative(),
  steps: z.int().nonnegative(),
  metrics: z
    .array(z.strictObject({ step: z.int().nonnegative(), name: z.string().min(1).max(128), value: z.number() }))
    .max(2000),
});
export type Heartbeat = z.infer<typeof Heartbeat>;
export const HeartbeatAnswer = z.object({ lease_until: Time, cancel: z.boolean() });

export const Uploads = z.strictObject({
  files: z
    .array(z.strictObject({ sha256: Sha256, bytes: z.int().nonnegative() }))
    .min(1)
    .max(64),
});
/** `upload` is where to PUT the file; a file that is there already has none. */
export const UploadAnswer = z.array(z.object({ sha256: Sha256, upload: z.url().optional() }));

/** The trainer's own: which blobs hold its state, at which step. The Worker keeps it as it is. */
export const Checkpoint = z.strictObject({
  fence: Fence,
  stage: z.string().min(1).max(64),
  step: z.int().nonnegative(),
  files: z.array(z.strictObject({ name: z.string().min(1).max(256), sha256: Sha256, bytes: z.int().nonnegative() })),
  state: Config,
});
export type Checkpoint = z.infer<typeof Checkpoint>;
export const SavedCheckpoint = Checkpoint.extend({
  files: z.array(Checkpoint.shape.files.element.extend({ url: z.url() })),
});

export const Publish = z
  .strictObject({
    fence: Fence,
    manifest: Manifest.optional(),
    report: z.record(z.string(), z.unknown()),
    verdict: z.enum(['promote', 'canary', 'reject']),
  })
  .refine((body) => body.verdict === 'reject' || body.manifest, { message: 'is needed', path: ['manifest'] });
export type Publish = z.infer<typeof Publish>;
/** The release, or null where there is none: the run was rejected, or its base is no longer stable. */
export const Published = Release.nullable();

/** What is said of a run that passed its gate and has no release. */
export const NOT_RELEASED = 'published, but not released: what it started from is no longer stable';

export const Fail = z.strictObject({ fence: Fence, error: z.string().min(1).max(8192) });
