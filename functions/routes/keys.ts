// GET|POST|DELETE /v1/keys
import { z } from 'zod';
import { Key, listOf, listQuery, MadeKey, NewKey } from '../../schema/wire.ts';
import { at, notFound } from '../error.ts';
import { route } from '../route.ts';
import { forget, insertKey, type KeyRow, listKeys, makeKey, revokeKey } from '../store/keys.ts';

const wire = ({ id, kind, name, scopes, origins, created_at, revoked_at }: KeyRow) => ({
  object: 'key' as const,
  id,
  kind,
  name,
  scopes,
  origins,
  created_at,
  revoked_at,
});

export const keyRoutes = [
  route({
    method: 'get',
    path: '/v1/keys',
    summary: 'List the keys, revoked ones too',
    auth: 'admin',
    query: z.strictObject(listQuery('key')),
    answers: { 200: listOf(Key) },
    async handle({ c, env, query }) {
      const list = await listKeys(env.DB, query);
      return c.json({ ...list, data: list.data.map(wire) });
    },
  }),
  route({
    method: 'post',
    path: '/v1/keys',
    summary: 'Make a key; it is shown this once',
    auth: 'admin',
    body: NewKey,
    answers: { 201: MadeKey },
    async handle({ c, env, caller, body }) {
      if (body.kind === 'ek') throw at(422, 'kind', "ek: nothing takes an evaluator's key yet");
      if (body.kind !== 'sk' && body.scopes) throw at(422, 'scopes', 'are for secret keys');
      if (body.kind !== 'pk' && body.origins) throw at(422, 'origins', 'are for public keys');
      // a page's Origin must be listed, so that one without a list could be used nowhere
      if (body.kind === 'pk' && !body.origins?.length) throw at(422, 'origins', 'are needed for a public key');
      const { plain, row } = await makeKey(body.kind, body.scopes, body.origins, body.name);
      await insertKey(env.DB, row, caller.id);
      return c.json({ ...wire(row), key: plain }, 201);
    },
  }),
  route({
    method: 'delete',
    path: '/v1/keys/:id',
    summary: 'Revoke a key; it is dead everywhere within 30 seconds',
    auth: 'admin',
    answers: { 204: 'revoked' },
    async handle({ c, env, caller, param }) {
      if (!(await revokeKey(env.DB, param('id'), caller.id))) throw notFound('key');
      forget(env.DB);
      return c.body(null, 204);
    },
  }),
];
