// /openapi.json, made from the routes and the very schemas that check their requests.
import { z } from 'zod';
import { OpenAIError, Problem } from '../schema/wire.ts';
import { isOpenAI } from './error.ts';
import type { AnyRoute } from './route.ts';

const json = (schema: z.ZodType, io: 'input' | 'output') => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' });
  return rest;
};

const ERRORS: Record<number, string> = {
  400: 'malformed',
  401: 'no key, or one that is not known',
  403: 'known, but not allowed',
  404: 'no such thing',
  409: 'in conflict with what is under way',
  410: 'expired, or ended',
  413: 'over 256 KB',
  415: 'not application/json',
  422: 'well formed, but impossible',
  429: 'more requests than the deployment allows in a minute, or than the decoder has room for',
  503: 'not now',
};

function errorsOf(r: AnyRoute): number[] {
  const all = [503, ...(r.errors ?? [])];
  if (!isOpenAI(r.path) || r.body) all.push(400);
  if (r.auth !== 'none') all.push(401, 403);
  if (r.auth !== 'none' && r.auth !== 'job') all.push(429);
  if (r.path.includes(':')) all.push(404);
  if (r.body) all.push(413, 415);
  if (r.body && !isOpenAI(r.path)) all.push(422);
  if (r.idempotent) all.push(409);
  if (r.auth === 'job' || r.path.startsWith('/v1/feedback')) all.push(410);
  return [...new Set(all)].sort((a, b) => a - b);
}

const HEADERS: [applies: (r: AnyRoute) => boolean, name: string, description: string][] = [
  [
    (r) => r.idempotent === true || (r.method === 'post' && r.path === '/v1/feedback'),
    'Idempotency-Key',
    'the same key and body are applied once, and answered alike for 24 hours; not where store is false, nor with an answer above 1.9 MB',
  ],
  [(r) => r.path.endsWith('completions'), 'Plumb-Session', "a browser's session token"],
  [
    (r) => r.path === '/v1/feedback' && r.method === 'post',
    'Plumb-Rater',
    'an HS256 JWT {sub, cohorts?, exp, aud: "plumb"} of the host’s own server',
  ],
  [(r) => r.path === '/v1/feedback/:id', 'Feedback-Token', 'needed with a public key: the vote is its session’s'],
];

function parametersOf(r: AnyRoute) {
  const path = [...r.path.matchAll(/:(\w+)/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }));
  const query = r.query ? (json(r.query, 'input') as { properties?: Record<string, object>; required?: string[] }) : {};
  const inQuery = Object.entries(query.properties ?? {}).map(([name, schema]) => ({
    name,
    in: 'query',
    required: query.required?.includes(name) === true,
    schema,
  }));
  const headers = HEADERS.filter(([applies]) => applies(r)).map(([, name, description]) => ({
    name,
    in: 'header',
    required: false,
    description,
    schema: { type: 'string' },
  }));
  return [...path, ...inQuery, ...headers];
}

function responsesOf(r: AnyRoute) {
  const good = Object.entries(r.answers).map(([status, answer]) => {
    if (typeof answer === 'string') return [status, { description: answer }];
    const content = { [r.media ?? 'application/json']: { schema: json(answer, 'output') } };
    if (r.path.endsWith('completions')) Object.assign(content, { 'text/event-stream': { schema: { type: 'string' } } });
    return [status, { description: r.summary, content }];
  });
  const error = isOpenAI(r.path)
    ? { 'application/json': { schema: { $ref: '#/components/schemas/OpenAIError' } } }
    : { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } };
  const bad = errorsOf(r).map((status) => [status, { description: ERRORS[status], content: error }]);
  return Object.fromEntries([...good, ...bad]);
}

export function openapi(routes: AnyRoute[], origin: string) {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const r of routes) {
    const path = r.path.replace(/:(\w+)/g, '{$1}');
    paths[path] ??= {};
    paths[path][r.method] = {
      summary: r.summary,
      operationId: `${r.method}${r.path.replace(/^\/(v1\/)?/, '/').replace(/[/:.]+(\w?)/g, (_, letter: string) => letter.toUpperCase())}`,
      tags: [r.path.split('/')[r.path.startsWith('/v1/') ? 2 : 1]],
      security: r.auth === 'none' ? [] : [{ [r.auth === 'job' ? 'job' : 'key']: [] }],
      parameters: parametersOf(r),
      ...(r.body
        ? { requestBody: { required: true, content: { 'application/json': { schema: json(r.body, 'input') } } } }
        : {}),
      ...(r.upload
        ? {
            requestBody: {
              required: true,
              content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
            },
          }
        : {}),
      responses: responsesOf(r),
    };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Plumb',
      version: '1',
      description: 'Answers, what people judge of them, and the policies trained on that.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: origin }],
    paths,
    components: {
      schemas: { Problem: json(Problem, 'output'), OpenAIError: json(OpenAIError, 'output') },
      securitySchemes: {
        key: { type: 'http', scheme: 'bearer', description: 'sk_ for servers, pk_ for browsers' },
        job: { type: 'http', scheme: 'bearer', description: "rt_, a run's trainer" },
      },
    },
  };
}
