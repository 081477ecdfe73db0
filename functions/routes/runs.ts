// Runs: started, followed, cancelled.
import { listOf } from '../../schema/wire.ts';
import { Metric, MetricsQuery, NewRun, Run, RunQuery } from '../../schema/wire-runs.ts';
import { ApiError, at, notFound } from '../error.ts';
import { route } from '../route.ts';
import { cancelRun, createRun, listMetrics, listRuns, newJudgements, readRun } from '../store/runs.ts';

const CHAIN = ['reward', 'ppo', 'evaluate', 'publish'] as const;

export const runRoutes = [
  route({
    method: 'post',
    path: '/v1/runs',
    summary: 'Start a run on all that was judged; one at a time',
    auth: 'train',
    channels: true,
    idempotent: true,
    body: NewRun,
    answers: { 202: Run },
    async handle({ c, env, set, body, channels, remember }) {
      const { stages, config, reason } = body;
      if (stages && (stages.includes('sft') || CHAIN.some((stage) => !stages.includes(stage))))
        throw at(422, 'stages', `must be ${CHAIN.join(', ')}, or left out: a run takes them all`);
      if (!channels.stable) throw new ApiError(422, 'no policy is released to start from');
      const minimum = set.PLUMB_MIN_FEEDBACK;
      const { count } = await newJudgements(env.DB, 0, minimum);
      if (count < minimum) throw new ApiError(422, `too little feedback: ${count} judgements, of ${minimum} at least`);
      const run = { stages: stages ?? null, config: config ?? {}, reason: reason ?? 'asked for' };
      return c.json(await createRun(env.DB, run, channels.stable.policy, remember), 202);
    },
  }),
  route({
    method: 'get',
    path: '/v1/runs',
    summary: 'List the runs',
    auth: 'read',
    query: RunQuery,
    answers: { 200: listOf(Run) },
    async handle({ c, env, query }) {
      return c.json(await listRuns(env.DB, query, query.status));
    },
  }),
  route({
    method: 'get',
    path: '/v1/runs/:id',
    summary: 'One run',
    auth: 'read',
    answers: { 200: Run },
    async handle({ c, env, param }) {
      const found = await readRun(env.DB, param('id'));
      if (!found) throw notFound('run');
      return c.json(found.wire);
    },
  }),
  route({
    method: 'get',
    path: '/v1/runs/:id/metrics',
    summary: "A run's metrics as they came; one sent again for its step comes again",
    auth: 'read',
    query: MetricsQuery,
    answers: { 200: listOf(Metric) },
    async handle({ c, env, param, query }) {
      if (!(await readRun(env.DB, param('id')))) throw notFound('run');
      return c.json(await listMetrics(env.DB, param('id'), query.after ?? 0, query.limit));
    },
  }),
  route({
    method: 'post',
    path: '/v1/runs/:id/cancel',
    summary: 'Cancel a run; its trainer is told by its next heartbeat',
    auth: 'train',
    answers: { 200: Run },
    errors: [409],
    async handle({ c, env, param }) {
      const run = await cancelRun(env.DB, param('id'));
      if (!run) throw notFound('run');
      return c.json(run);
    },
  }),
];
