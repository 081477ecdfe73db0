// GET /v1/models and /v1/models/:id: the channels that serve, and to servers the policies too.
import { Model, ModelList } from '../../schema/wire-completions.ts';
import { at } from '../error.ts';
import { type Call, route } from '../route.ts';
import { listPolicies, readPolicy } from '../store/policies.ts';

const model = (id: string, created: string | number) => ({
  object: 'model' as const,
  id,
  created: typeof created === 'string' ? Math.floor(Date.parse(created) / 1000) : created,
  owned_by: 'plumb',
});

const channels = ({ channels: serving }: Call<unknown, unknown>) => [
  ...(serving.stable ? [model('stable', 0), model('default', 0)] : []),
  ...(serving.canary ? [model('canary', 0)] : []),
];

const shared = { method: 'get', auth: 'completions', browsers: true, channels: true } as const;

export const modelRoutes = [
  route({
    ...shared,
    path: '/v1/models',
    summary: 'The models: channels, and to servers the latest policies',
    answers: { 200: ModelList },
    async handle(call) {
      const { c, env, caller } = call;
      const policies = caller.kind === 'sk' ? (await listPolicies(env.DB, { limit: 999, order: 'desc' })).data : [];
      const data = [...channels(call), ...policies.map(({ id, created_at }) => model(id, created_at))];
      return c.json({ object: 'list', data });
    },
  }),
  route({
    ...shared,
    path: '/v1/models/:id',
    summary: 'One model',
    answers: { 200: Model },
    async handle(call) {
      const { c, env, caller, param } = call;
      const id = param('id');
      const channel = channels(call).find((known) => known.id === id);
      if (channel) return c.json(channel);
      const policy = caller.kind === 'sk' ? await readPolicy(env.DB, id) : undefined;
      if (!policy) throw at(404, 'model', `"${id}" is not a policy or channel here`, 'model_not_found');
      return c.json(model(policy.id, policy.created_at));
    },
  }),
];
