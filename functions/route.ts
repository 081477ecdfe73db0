// A route, said once: its path, who may call it, and the schemas by which it is checked here and described in
// /openapi.json. Checks come in one order everywhere: 404, 405, 401, 403, 429, 413, 415, 400, then the handler's own.
import type { Context, Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { z } from 'zod';
import type { Scope } from '../schema/wire.ts';
import { sha256 } from './crypto.ts';
import { type Env, type Settings, settings } from './env.ts';
import { ApiError, isOpenAI, malformed } from './error.ts';
import { claim, type Remember } from './idempotency.ts';
import { type Channels, type KeyRow, lookup } from './store/keys.ts';
import { counting } from './store/rates.ts';
import { readJobToken } from './token.ts';

export type App = { Bindings: Env };

export interface Caller {
  id: string;
  kind: KeyRow['kind'];
  scopes: string[];
}

export interface Call<Q, B> {
  c: Context<App>;
  env: Env;
  set: Settings;
  /** Absent on routes that are open to all, and on a trainer's. */
  caller: Caller;
  channels: Channels;
  query: Q;
  body: B;
  /** SHA-256 of the body's bytes. */
  bodyHash: string;
  param(name: string): string;
  /** With an Idempotency-Key: the statement that keeps this answer, for the batch that does the work. */
  remember: Remember;
  /** Frees the Idempotency-Key again: the answer will not be kept. */
  release(): Promise<unknown>;
}

export interface Definition<Q = unknown, B = unknown> {
  method: 'get' | 'post' | 'put' | 'delete';
  path: string;
  summary: string;
  /** `job`: the run's own trainer. A scope: a secret key that has it; with `browsers`, a public key too. */
  auth: 'none' | 'job' | Scope;
  browsers?: boolean;
  channels?: boolean;
  idempotent?: boolean;
  query?: z.ZodType<Q>;
  body?: z.ZodType<B>;
  /** Looks at the parsed JSON before its schema does. */
  prepare?: (json: unknown) => unknown;
  /** What comes is bytes of any length, read by the handler. */
  upload?: boolean;
  answers: Record<number, z.ZodType | string>;
  /** Refusals of its own, beside those that its shape brings along. */
  errors?: number[];
  /** Of the answer, where it isn't JSON. */
  media?: string;
  handle(call: Call<Q, B>): Response | Promise<Response>;
}
// biome-ignore lint/suspicious/noExplicitAny: routes of all shapes in one table
export type AnyRoute = Definition<any, any>;

export const route = <Q extends z.ZodType = z.ZodType<unknown>, B extends z.ZodType = z.ZodType<unknown>>(
  definition: Omit<Definition<z.output<Q>, z.output<B>>, 'query' | 'body'> & { query?: Q; body?: B },
): AnyRoute => definition as AnyRoute;

const unauthorized = (detail: string) =>
  new ApiError(401, detail, { code: 'invalid_api_key', headers: { 'WWW-Authenticate': 'Bearer realm="plumb"' } });
const forbidden = (detail: string) => new ApiError(403, detail);

const NOBODY: Caller = { id: '', kind: 'sk', scopes: [] };

async function authenticate(
  r: AnyRoute,
  c: Context<App>,
  set: Settings,
): Promise<{ caller: Caller; channels: Channels }> {
  if (r.auth === 'none') return { caller: NOBODY, channels: {} };
  const bearer = /^Bearer +(\S+)$/i.exec(c.req.header('Authorization') ?? '')?.[1];
  if (!bearer) throw unauthorized('a key is needed: Authorization: Bearer …');

  if (bearer.startsWith('rt_')) {
    const run = await readJobToken(set, bearer);
    if (!run) throw unauthorized('the key is not known');
    if (r.auth !== 'job' || run !== c.req.param('run'))
      throw forbidden('this key is for the job routes of its own run');
    return { caller: NOBODY, channels: {} };
  }

  const hash = await sha256(bearer);
  const visitor = bearer.startsWith('pk_') ? (c.req.header('CF-Connecting-IP') ?? '') : '';
  const counted = set.PLUMB_RATE_LIMIT > 0 ? counting(c.env.DB, hash, visitor) : undefined;
  const { key, channels, count = 0 } = await lookup(c.env.DB, hash, r.channels === true, counted);
  if (!key) throw unauthorized('the key is not known');
  if (r.auth === 'job') throw forbidden("a run's job routes are its trainer's alone");
  if (key.kind === 'pk') {
    if (!r.browsers) throw forbidden('a public key may not do this');
    // "null" is what a sandboxed page sends: it counts only where it is listed
    if (!key.origins.includes(c.req.header('Origin') ?? ''))
      throw forbidden('the page is not among the origins of this key');
  } else if (key.kind === 'ek') {
    throw forbidden("an evaluator's key may not do this");
  } else if (!key.scopes.includes(r.auth)) {
    throw forbidden(`this key has no scope "${r.auth}"`);
  }
  if (count > set.PLUMB_RATE_LIMIT)
    throw new ApiError(429, `more than ${set.PLUMB_RATE_LIMIT} requests in a minute`, {
      code: 'rate_limit_exceeded',
      headers: { 'Retry-After': String(60 - (Math.floor(Date.now() / 1000) % 60)) },
    });
  return { caller: { id: key.id, kind: key.kind, scopes: key.scopes }, channels };
}

const LIMIT = 256 * 1024;
const limited = bodyLimit({
  maxSize: LIMIT,
  onError: () => {
    throw new ApiError(413, 'the body is over 256 KB');
  },
});

/** Nesting that no schema means would overflow the stack of whatever walks it. */
function tooDeep(json: unknown): boolean {
  let level = [json];
  for (let depth = 0; depth < 64 && level.length > 0; depth++)
    level = level.flatMap((value) => (typeof value === 'object' && value !== null ? Object.values(value) : []));
  return level.length > 0;
}

/** Half a surrogate pair: no text in UTF-8 can hold it, so no export could either. */
function illFormed(json: unknown): boolean {
  if (typeof json === 'string') return !json.isWellFormed();
  if (typeof json !== 'object' || json === null) return false;
  return Object.entries(json).some(([key, value]) => illFormed(key) || illFormed(value));
}

async function readBody(r: AnyRoute, c: Context<App>): Promise<{ body: unknown; bodyHash: string }> {
  let bytes = new Uint8Array();
  await limited(c, async () => {
    bytes = new Uint8Array(await c.req.arrayBuffer());
  });
  if (!/^application\/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?$/i.test(c.req.header('Content-Type') ?? ''))
    throw new ApiError(415, 'the body must be application/json');
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: false }).decode(bytes));
  } catch {
    throw new ApiError(400, 'the body is not JSON in UTF-8');
  }
  if (tooDeep(json)) throw new ApiError(400, 'the body is nested too deeply');
  if (illFormed(json)) throw new ApiError(400, 'the body holds half of a surrogate pair, which is no character');
  const parsed = r.body!.safeParse(r.prepare ? r.prepare(json) : json);
  if (!parsed.success) throw malformed(parsed.error, 'the body is malformed');
  return { body: parsed.data, bodyHash: await sha256(bytes) };
}

function readQuery(r: AnyRoute, c: Context<App>): unknown {
  const all = c.req.queries();
  const repeated = Object.keys(all).find((name) => all[name]!.length > 1);
  if (repeated)
    throw new ApiError(400, `query: ${repeated}: is repeated`, {
      errors: [{ path: repeated, message: 'is repeated' }],
    });
  const query = Object.fromEntries(Object.entries(all).map(([name, values]) => [name, values[0]]));
  const parsed = (r.query ?? z.strictObject({})).safeParse(query);
  if (!parsed.success) throw malformed(parsed.error, 'query');
  return parsed.data;
}

async function serve(r: AnyRoute, c: Context<App>): Promise<Response> {
  // what anybody may ask must answer where the configuration is wrong, too
  const set = r.auth === 'none' ? ({} as Settings) : settings(c.env);
  const { caller, channels } = await authenticate(r, c, set);
  const { body, bodyHash } = r.body ? await readBody(r, c) : { body: undefined, bodyHash: '' };
  const query = isOpenAI(c.req.path) ? {} : readQuery(r, c);
  const call: Call<unknown, unknown> = {
    c,
    env: c.env,
    set,
    caller,
    channels,
    query,
    body,
    bodyHash,
    param: (name) => c.req.param(name) ?? '',
    remember: () => [],
    release: async () => undefined,
  };
  const idempotencyKey = r.idempotent ? readIdempotencyKey(c) : undefined;
  if (!idempotencyKey) return r.handle(call);

  const held = await claim(c.env.DB, [caller.id, r.method, r.path, idempotencyKey], bodyHash);
  if ('replay' in held) return held.replay;
  try {
    return await r.handle({ ...call, remember: held.remember, release: held.release });
  } catch (error) {
    // A refusal is not kept, even if the client leaves meanwhile.
    const released = held.release();
    c.executionCtx.waitUntil(released);
    await released;
    throw error;
  }
}

export function readIdempotencyKey(c: Context<App>): string | undefined {
  const key = c.req.header('Idempotency-Key');
  if (key !== undefined && !/^[\x20-\x7e]{1,255}$/.test(key))
    throw new ApiError(400, 'Idempotency-Key must be 1 to 255 printable ASCII characters');
  return key;
}

export function mount(app: Hono<App>, routes: AnyRoute[]): void {
  for (const r of routes) app.on(r.method.toUpperCase(), r.path, (c) => serve(r, c));
  for (const path of new Set(routes.map((r) => r.path))) {
    const methods = routes.filter((r) => r.path === path).map((r) => r.method.toUpperCase());
    const allow = [...methods, ...(methods.includes('GET') ? ['HEAD'] : []), 'OPTIONS'].join(', ');
    app.all(path, (c) => {
      throw new ApiError(405, `${c.req.method} is not for this path`, { headers: { Allow: allow } });
    });
  }
}
