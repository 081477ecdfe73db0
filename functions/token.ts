// Signed capabilities: the feedback token of an answer's samples, the session token of a browser, the token of a run's
// trainer. v1.<kid>.<claims>.<HMAC-SHA-256>, in base64url. The first secret signs and every one is accepted, so that a
// rotation drops nothing.
import { z } from 'zod';
import { idSchema } from '../schema/ids.ts';
import { base64url, fromBase64url, hex, hmac, hmacIs } from './crypto.ts';
import type { Settings } from './env.ts';
import { ApiError } from './error.ts';

const deployment = async (set: Settings) => hex(await hmac(set.PLUMB_PEPPER, 'deployment')).slice(0, 16);

const Claims = z.strictObject({
  deployment: z.string(),
  sample_ids: z.array(idSchema('sample')),
  policy: z.string(),
  session: idSchema('rater'),
  exp: z.int(),
});
export type Claims = z.infer<typeof Claims>;
const SessionClaims = Claims.pick({ deployment: true, session: true, exp: true });

async function sign(set: Settings, claims: Record<string, unknown>): Promise<string> {
  const [kid, secret] = set.PLUMB_TOKEN_SECRETS[0]!;
  const signed = `v1.${kid}.${base64url(new TextEncoder().encode(JSON.stringify(claims)))}`;
  return `${signed}.${base64url(await hmac(secret, signed))}`;
}

async function verify<T extends { deployment: string; exp: number }>(
  set: Settings,
  token: string,
  schema: z.ZodType<T>,
  what: string,
) {
  const bad = () =>
    new ApiError(401, `the ${what} is not valid`, { headers: { 'WWW-Authenticate': 'Bearer realm="plumb"' } });
  const [version, kid, payload, mac, ...rest] = token.split('.');
  if (version !== 'v1' || !kid || !payload || !mac || rest.length > 0) throw bad();
  const secret = set.PLUMB_TOKEN_SECRETS.find(([known]) => known === kid)?.[1];
  const macBytes = fromBase64url(mac);
  const claimBytes = fromBase64url(payload);
  if (!secret || !macBytes || !claimBytes) throw bad();
  if (!(await hmacIs(secret, `v1.${kid}.${payload}`, macBytes))) throw bad();
  const claims = schema.safeParse(JSON.parse(new TextDecoder().decode(claimBytes)));
  if (!claims.success || claims.data.deployment !== (await deployment(set))) throw bad();
  if (claims.data.exp <= Date.now() / 1000) throw new ApiError(410, `the ${what} has expired`);
  return claims.data;
}

const expiry = (set: Settings) => Math.floor(Date.now() / 1000 + set.PLUMB_TOKEN_TTL);

export const feedbackToken = async (set: Settings, of: Pick<Claims, 'sample_ids' | 'policy' | 'session'>) =>
  sign(set, { deployment: await deployment(set), ...of, exp: expiry(set) });
export const readFeedbackToken = (set: Settings, token: string) => verify(set, token, Claims, 'feedback token');

export async function sessionToken(set: Settings, session: string) {
  const exp = expiry(set);
  const token = await sign(set, { deployment: await deployment(set), session, exp });
  return { session_token: token, expires_at: new Date(exp * 1000).toISOString() };
}
export const readSessionToken = async (set: Settings, token: string) =>
  (await verify(set, token, SessionClaims, 'session token')).session;

// A run's trainer is known by a MAC of the run's id alone: it needs no row, and a relaunch finds the same token.

export async function jobToken(set: Settings, run: string): Promise<string> {
  const [, secret] = set.PLUMB_TOKEN_SECRETS[0]!;
  return `rt_${run.slice('run_'.length)}.${base64url(await hmac(secret, `job:${run}`))}`;
}

/** The run that a token stands for, or undefined. */
export async function readJobToken(set: Settings, token: string): Promise<string | undefined> {
  const [, ulid, mac] = /^rt_([0-9A-Z]{26})\.([\w-]{43})$/.exec(token) ?? [];
  const bytes = mac && fromBase64url(mac);
  if (!bytes) return undefined;
  for (const [, secret] of set.PLUMB_TOKEN_SECRETS)
    if (await hmacIs(secret, `job:run_${ulid}`, bytes)) return `run_${ulid}`;
  return undefined;
}
