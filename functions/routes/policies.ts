// Policies and releases.
import { z } from 'zod';
import { listOf, listQuery } from '../../schema/wire.ts';
import { NewRelease, Policy, Release, Rollback } from '../../schema/wire-runs.ts';
import { notFound } from '../error.ts';
import { route } from '../route.ts';
import { preload } from '../serving.ts';
import { type Channels, forget } from '../store/keys.ts';
import { listPolicies, listReleases, makeRelease, readPolicy, rollBack, wireRelease } from '../store/policies.ts';

const wire = (row: Awaited<ReturnType<typeof listPolicies>>['data'][number], channels: Channels) => ({
  ...row.manifest,
  withdrawn_at: row.withdrawn_at,
  channels: (['stable', 'canary'] as const).filter((channel) => channels[channel]?.policy === row.id),
});

export const policyRoutes = [
  route({
    method: 'get',
    path: '/v1/policies',
    summary: 'List the policies',
    auth: 'read',
    channels: true,
    query: z.strictObject(listQuery('policy')),
    answers: { 200: listOf(Policy) },
    async handle({ c, env, query, channels }) {
      const list = await listPolicies(env.DB, query);
      return c.json({ ...list, data: list.data.map((row) => wire(row, channels)) });
    },
  }),
  route({
    method: 'get',
    path: '/v1/policies/:id',
    summary: 'One policy: its manifest, and where it came from',
    auth: 'read',
    channels: true,
    answers: { 200: Policy },
    async handle({ c, env, param, channels }) {
      const row = await readPolicy(env.DB, param('id'));
      if (!row) throw notFound('policy');
      return c.json(wire(row, channels));
    },
  }),
  route({
    method: 'get',
    path: '/v1/releases',
    summary: 'List the releases',
    auth: 'read',
    query: z.strictObject({ ...listQuery('release'), channel: z.enum(['stable', 'canary']).optional() }),
    answers: { 200: listOf(Release) },
    async handle({ c, env, query }) {
      const list = await listReleases(env.DB, query, query.channel);
      return c.json({ ...list, data: list.data.map(wireRelease) });
    },
  }),
  route({
    method: 'post',
    path: '/v1/releases',
    summary: 'Release a policy to a channel',
    auth: 'release',
    idempotent: true,
    body: NewRelease,
    answers: { 201: Release },
    async handle({ c, env, caller, body, remember }) {
      const release = await makeRelease(env.DB, caller.id, body, remember);
      forget(env.DB);
      preload(env, body.channel, c.executionCtx);
      return c.json(release, 201);
    },
  }),
  route({
    method: 'post',
    path: '/v1/releases/rollback',
    summary: 'Go back to the last stable policy that was not itself rolled back, and withdraw the present one',
    auth: 'release',
    idempotent: true,
    body: Rollback,
    answers: { 201: Release },
    async handle({ c, env, caller, body, remember }) {
      const release = await rollBack(env.DB, caller.id, body.channel, remember);
      forget(env.DB);
      preload(env, body.channel, c.executionCtx);
      return c.json(release, 201);
    },
  }),
];
