// Feedback: who judges, and whether they may, is settled here; what a vote is, in the store.
import { verify } from 'hono/jwt';
import { z } from 'zod';
import { Cohorts, listOf, RaterId } from '../../schema/wire.ts';
import { Feedback, FeedbackQuery, impossible, judged, NewFeedback } from '../../schema/wire-feedback.ts';
import { raterId } from '../crypto.ts';
import type { Settings } from '../env.ts';
import { ApiError, at, notFound } from '../error.ts';
import { boundKey } from '../idempotency.ts';
import { type Caller, readIdempotencyKey, route } from '../route.ts';
import { changeVote, isVote, type Judge, listVotes, undoVote, vote } from '../store/feedback.ts';
import { type Claims, readFeedbackToken } from '../token.ts';

const Identity = z.looseObject({ sub: RaterId, cohorts: Cohorts.optional(), exp: z.number(), aud: z.unknown() });

/** Plumb-Rater: what the host's own server says of whoever sits before the page. */
async function readIdentity(set: Settings, header: string) {
  const bad = () =>
    new ApiError(401, 'Plumb-Rater is not valid', { headers: { 'WWW-Authenticate': 'Bearer realm="plumb"' } });
  if (!set.PLUMB_IDENTITY_KEY) throw bad();
  const payload = await verify(header, set.PLUMB_IDENTITY_KEY, { alg: 'HS256', aud: 'plumb' }).catch(() => {
    throw bad();
  });
  const identity = Identity.safeParse(payload);
  if (!identity.success) throw bad();
  return identity.data;
}

async function judgeOf(
  set: Settings,
  caller: Caller,
  body: NewFeedback,
  claims: Claims[],
  header?: string,
): Promise<Judge> {
  const session = claims[0]?.session ?? '';
  if (header !== undefined) {
    const { sub, cohorts } = await readIdentity(set, header);
    return { rater: await raterId(set.PLUMB_PEPPER, sub), kind: 'verified', cohorts, session };
  }
  if (body.rater) {
    const { id, cohorts } = body.rater;
    return { rater: await raterId(set.PLUMB_PEPPER, id), kind: 'asserted', cohorts, session };
  }
  if (caller.kind === 'pk') return { rater: session, kind: 'anonymous', session };
  return { rater: undefined, kind: 'asserted', session };
}

function checkPublic(caller: Caller, body: NewFeedback) {
  if (caller.kind !== 'pk') return;
  if (body.rater) throw new ApiError(403, 'a public key cannot say who the rater is');
  if (body.kind === 'outcome') throw new ApiError(403, 'outcomes come from servers');
}

/** The session whose votes a caller may change: a page's by its token, any by a secret key. */
async function ownSession(set: Settings, caller: Caller, token: string | undefined): Promise<string | undefined> {
  if (caller.kind === 'sk') return undefined;
  if (token === undefined) throw notFound('feedback');
  return (await readFeedbackToken(set, token)).session;
}

/** What a change may not name: a vote stays its rater's and its task's. */
const stays = ({ rater, task_id }: NewFeedback) =>
  rater || task_id ? { path: rater ? 'rater' : 'task_id', message: 'stays what it was' } : undefined;

export const feedbackRoutes = [
  route({
    method: 'post',
    path: '/v1/feedback',
    summary: 'Judge: 201 for a new vote, 200 when it repeats or changes one',
    auth: 'feedback',
    browsers: true,
    body: NewFeedback,
    answers: { 200: Feedback, 201: Feedback },
    async handle({ c, env, set, caller, body, bodyHash }) {
      const key = readIdempotencyKey(c);
      checkPublic(caller, body);
      const tokens = body.token === undefined ? [] : [body.token].flat();
      if (caller.kind === 'pk' && tokens.length === 0) throw at(400, 'token', 'is needed with a public key');
      const claims = await Promise.all(tokens.map((token) => readFeedbackToken(set, token)));
      const judge = await judgeOf(set, caller, body, claims, c.req.header('Plumb-Rater'));
      const wrong = impossible(body);
      if (wrong) throw at(422, wrong.path, wrong.message);
      const drawn = claims.flatMap((claim) => claim.sample_ids);
      const outside = claims.length > 0 && judged(body).find((id) => !drawn.includes(id));
      if (outside) throw at(422, 'token', 'is for other samples');
      if (body.task_id) throw at(422, 'task_id', 'is not a task');

      const bound = key && { key: await boundKey(caller.id, '/v1/feedback', key), body: bodyHash };
      const written = await vote(env.DB, body, judge, bound || undefined);
      return c.json(written.vote, written.status, written.replayed ? { 'Idempotent-Replayed': 'true' } : {});
    },
  }),
  route({
    method: 'get',
    path: '/v1/feedback',
    summary: 'List the votes as they stand',
    auth: 'read',
    query: FeedbackQuery,
    answers: { 200: listOf(Feedback) },
    async handle({ c, env, query }) {
      return c.json(await listVotes(env.DB, query));
    },
  }),
  route({
    method: 'put',
    path: '/v1/feedback/:id',
    summary: 'Another value, of the same kind and samples; a page sends its Feedback-Token',
    auth: 'feedback',
    browsers: true,
    body: NewFeedback,
    answers: { 200: Feedback },
    async handle({ c, env, set, caller, body, param }) {
      checkPublic(caller, body);
      const session = await ownSession(set, caller, c.req.header('Feedback-Token'));
      for (const token of [body.token ?? []].flat()) await readFeedbackToken(set, token);
      const wrong = impossible(body) ?? stays(body);
      if (wrong && (await isVote(env.DB, param('id'), session))) throw at(422, wrong.path, wrong.message);
      const row = wrong ? undefined : await changeVote(env.DB, param('id'), body, session);
      if (!row) throw notFound('feedback');
      return c.json(row);
    },
  }),
  route({
    method: 'delete',
    path: '/v1/feedback/:id',
    summary: 'Undo; the vote is marked, not erased. A page sends its Feedback-Token',
    auth: 'feedback',
    browsers: true,
    answers: { 204: 'undone' },
    async handle({ c, env, set, caller, param }) {
      const session = await ownSession(set, caller, c.req.header('Feedback-Token'));
      if (!(await undoVote(env.DB, param('id'), session))) throw notFound('feedback');
      return c.body(null, 204);
    },
  }),
];
