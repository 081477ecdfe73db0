// A route, said once: its path, who may call it, and the schemas by which it is checked here and described in
// /openapi.json. Checks come in one order everywhere: 404, 405, 401, 403, 429, 413, 415, 400, then the handler's own.
import type { Context, Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { z } from 'zod';
import type { Scope } from '../schema/wire.ts';
import { sha256 } from './crypto.ts';
import { type Env, type Settings, settings } from './env.ts';
import { ApiError, isOpenAI, malformed } from './error.ts';
import { claiming, type Remember } from './idempotency.ts';
import type { Statement } from './store/db.ts';
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

interface Asking {
  /** The key that asks; none on open routes, and for a run's trainer. */
  key?: KeyRow;
  channels: Channels;
  /** Requests of this key in this minute. */
  count: number;
  /** What the statements that went along gave. */
  rest: unknown[][];
}

/**
 * Who asks: read in one round trip, with what else is wanted then.
 * @param hash SHA-256 of the bearer
 */
async function identify(
  r: AnyRoute,
  c: Context<App>,
  set: Settings,
  bearer: string | undefined,
  hash: string,
  also: Statement[],
): Promise<Asking> {
  const nobody = { channels: {}, count: 0, rest: [] };
  if (r.auth === 'none') return nobody;
  if (!bearer) throw unauthorized('a key is needed: Authorization: Bearer …');

  if (bearer.startsWith('rt_')) {
    const run = await readJobToken(set, bearer);
    if (!run) throw unauthorized('the key is not known');
    if (r.auth !== 'job' || run !== c.req.param('run'))
      throw forbidden('this key is for the job routes of its own run');
    return nobody;
  }

  const visitor = bearer.startsWith('pk_') ? (c.req.header('CF-Connecting-IP') ?? '') : '';
  const counted = set.PLUMB_RATE_LIMIT > 0 ? [counting(c.env.DB, hash, visitor)] : [];
  const { key, channels, rest } = await lookup(c.env.DB, hash, r.channels === true, [...counted, ...also]);
  if (!key) throw unauthorized('the key is not known');
  const [counts] = rest.splice(0, counted.length) as { count: number }[][];
  return { key, channels, count: counts?.[0]?.count ?? 0, rest };
}

/** Whether they may. Throws an ApiError. */
function permit(r: AnyRoute, c: Context<App>, set: Settings, { key, count }: Asking): Caller {
  if (!key) return NOBODY;
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
  return { id: key.id, kind: key.kind, scopes: key.scopes };
}

const limited = bodyLimit({ maxSize: 256 * 1024, onError: () => new Response(null, { status: 413 }) });

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

/** The bytes of a body; undefined where it is longer than any may be. */
async function readBytes(c: Context<App>): Promise<Uint8Array | undefined> {
  let bytes: Uint8Array | undefined;
  await limited(c, async () => {
    bytes = new Uint8Array(await c.req.arrayBuffer());
  });
  return bytes;
}

function readBody(r: AnyRoute, c: Context<App>, bytes: Uint8Array | undefined): unknown {
  if (!bytes) throw new ApiError(413, 'the body is over 256 KB');
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
  return parsed.data;
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
  const bearer = /^Bearer +(\S+)$/i.exec(c.req.header('Authorization') ?? '')?.[1];
  const hash = bearer ? await sha256(bearer) : '';
  const bytes = r.body ? await readBytes(c) : undefined;
  const bodyHash = bytes ? await sha256(bytes) : '';
  const header = r.idempotent ? c.req.header('Idempotency-Key') : undefined;
  const claim =
    bearer && bytes && header !== undefined && IDEMPOTENCY_KEY.test(header)
      ? await claiming(c.env.DB, hash, [r.method, r.path, header], bodyHash)
      : undefined;

  const asking = await identify(r, c, set, bearer, hash, claim?.statements ?? []);
  const made = claim?.isMade(asking.rest) === true;
  try {
    const caller = permit(r, c, set, asking);
    const body = r.body ? readBody(r, c, bytes) : undefined;
    const query = isOpenAI(c.req.path) ? {} : readQuery(r, c);
    if (r.idempotent) readIdempotencyKey(c);
    const replay = made ? undefined : claim?.replay(asking.rest);
    if (replay) return replay;
    return await r.handle({
      c,
      env: c.env,
      set,
      caller,
      channels: asking.channels,
      query,
      body,
      bodyHash,
      param: (name) => c.req.param(name) ?? '',
      remember: claim?.remember ?? (() => []),
      release: async () => claim?.release(),
    });
  } catch (error) {
    // A refusal is not kept, even if the client leaves meanwhile.
    const released = made ? claim?.release() : undefined;
    if (released) c.executionCtx.waitUntil(released);
    await released;
    throw error;
  }
}

const IDEMPOTENCY_KEY = /^[\x20-\x7e]{1,255}$/;
export function readIdempotencyKey(c: Context<App>): string | undefined {
  const key = c.req.header('Idempotency-Key');
  if (key !== undefined && !IDEMPOTENCY_KEY.test(key))
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
