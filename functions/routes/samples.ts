// Samples made elsewhere, samples read, and the sessions of browsers.
import { z } from 'zod';
import { newId } from '../../schema/ids.ts';
import { listOf, listQuery, MadeSamples, NewSamples, Sample, Session, Time } from '../../schema/wire.ts';
import { Feedback } from '../../schema/wire-feedback.ts';
import { raterId } from '../crypto.ts';
import { notFound } from '../error.ts';
import { route } from '../route.ts';
import { database, now } from '../store/db.ts';
import { wireVote } from '../store/feedback.ts';
import { type Asked, listSamples, readSample, storing } from '../store/samples.ts';
import { feedbackToken, sessionToken } from '../token.ts';

export const sampleRoutes = [
  route({
    method: 'post',
    path: '/v1/samples',
    summary: 'Store answers made elsewhere, to be judged',
    auth: 'completions',
    idempotent: true,
    body: NewSamples,
    answers: { 201: MadeSamples },
    async handle({ env, set, body, remember }) {
      const user = body.user === undefined ? null : await raterId(set.PLUMB_PEPPER, body.user);
      const session = user ?? newId('rater');
      const rows = body.choices.map(({ text }) => ({
        id: newId('sample'),
        policy: body.model,
        text,
        finish_reason: 'external' as const,
        completion_tokens: 0,
        session,
        user,
        params: {},
        metadata: body.metadata ?? {},
        created_at: now(),
      }));
      const ids = rows.map((row) => row.id);
      const answer = JSON.stringify({
        id: `smpl-${ids[0]!.slice('smp_'.length)}`,
        choices: ids.map((sample_id) => ({ sample_id })),
        feedback_token: await feedbackToken(set, { sample_ids: ids, policy: body.model, session }),
      });
      const asked: Asked = body.messages ? { messages: body.messages } : { prompt: body.prompt! };
      const db = database(env.DB);
      await db.batch([...(await storing(db, set, asked, rows)), ...remember(201, 'application/json', answer)]);
      return new Response(answer, { status: 201, headers: { 'Content-Type': 'application/json' } });
    },
  }),
  route({
    method: 'get',
    path: '/v1/samples',
    summary: 'List the samples',
    auth: 'read',
    query: z.strictObject({
      ...listQuery('sample'),
      policy: z.string().max(256).optional(),
      since: Time.optional(),
      until: Time.optional(),
    }),
    answers: { 200: listOf(Sample) },
    async handle({ c, env, query }) {
      return c.json(await listSamples(env.DB, query, query));
    },
  }),
  route({
    method: 'get',
    path: '/v1/samples/:id',
    summary: 'One sample, with its votes',
    auth: 'read',
    answers: { 200: Sample.extend({ feedback: z.array(Feedback) }) },
    async handle({ c, env, param }) {
      const found = await readSample(env.DB, param('id'));
      if (!found) throw notFound('sample');
      return c.json({ ...found.sample, feedback: found.votes.map((vote) => wireVote(vote)) });
    },
  }),
  route({
    method: 'post',
    path: '/v1/sessions',
    summary: 'A session for a browser, sent back as header Plumb-Session',
    auth: 'completions',
    browsers: true,
    answers: { 201: Session },
    async handle({ c, set }) {
      return c.json(await sessionToken(set, newId('rater')), 201);
    },
  }),
];
