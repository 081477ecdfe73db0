// Whether it is alive, whether it is ready, and what it can do.

import { sql } from 'drizzle-orm';
import { html } from 'hono/html';
import { z } from 'zod';
import { settings } from '../env.ts';
import { openapi } from '../openapi.ts';
import { type AnyRoute, route } from '../route.ts';
import { openChannel } from '../serving.ts';
import { database } from '../store/db.ts';
import { forget, lookup } from '../store/keys.ts';

const Part = z.object({ ok: z.boolean(), detail: z.string() });
const Ready = z.object({ ok: z.boolean(), configuration: Part, database: Part, storage: Part, policy: Part });

/** What a check finds, in words. */
async function part(check: () => Promise<string>): Promise<z.infer<typeof Part>> {
  try {
    return { ok: true, detail: await check() };
  } catch (error) {
    return { ok: false, detail: error instanceof Error ? error.message.slice(0, 200) : 'unknown' };
  }
}

export const systemRoutes = (all: () => AnyRoute[]): AnyRoute[] => [
  route({
    method: 'get',
    path: '/healthz',
    summary: 'It is alive',
    auth: 'none',
    answers: { 200: z.object({ ok: z.literal(true) }) },
    handle: ({ c }) => c.json({ ok: true }),
  }),
  route({
    method: 'get',
    path: '/readyz',
    summary: 'Database, storage and policy are ready to serve',
    auth: 'none',
    answers: { 200: Ready, 503: Ready },
    async handle({ c, env }) {
      const parts = {
        configuration: await part(async () => (settings(env) ? 'checked' : '')),
        database: await part(async () => {
          await database(env.DB).run(sql`SELECT seq FROM releases WHERE seq > 0 LIMIT 1`);
          return 'answers, and has its tables';
        }),
        storage: await part(async () => {
          await env.BUCKET.head('policies/');
          return 'answers';
        }),
        policy: await part(async () => {
          forget(env.DB);
          const { channels } = await lookup(env.DB, undefined, true);
          const loaded = await openChannel(env, channels, 'stable', c.executionCtx);
          if (!loaded) throw new Error('no policy is released');
          return loaded.policy;
        }),
      };
      const ok = Object.values(parts).every((checked) => checked.ok);
      return c.json({ ok, ...parts }, ok ? 200 : 503);
    },
  }),
  route({
    method: 'get',
    path: '/openapi.json',
    summary: 'This document',
    auth: 'none',
    answers: { 200: 'OpenAPI 3.1' },
    handle: ({ c }) => c.json(openapi(all(), new URL(c.req.url).origin)),
  }),
  route({
    method: 'get',
    path: '/docs',
    summary: 'The routes, to read',
    auth: 'none',
    answers: { 200: 'a page' },
    handle: ({ c }) => c.html(page(all())),
  }),
];

const who = (r: AnyRoute) =>
  r.auth === 'none' ? 'anybody' : r.auth === 'job' ? 'rt_' : `sk_ with ${r.auth}${r.browsers ? ', pk_' : ''}`;

const page = (all: AnyRoute[]) => html`<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width" />
    <link rel="icon" href="data:," />
    <title>Plumb’s HTTP API</title>
    <style>
      :root { color-scheme: light dark; }
      body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
      li { margin: 0 0 0.75rem; overflow-wrap: anywhere; }
      code { font-size: 0.95em; }
      small { display: block; opacity: 0.75; }
    </style>
  </head>
  <body>
    <h1>Plumb’s HTTP API</h1>
    <p>Every field of requests and answers is in <a href="/openapi.json">/openapi.json</a>, which is made from the checks themselves.</p>
    <ul>
      ${all.map((r) => html`<li><code>${r.method.toUpperCase()} ${r.path}</code><br />${r.summary}<small>${who(r)}</small></li>`)}
    </ul>
  </body>
</html>`;
