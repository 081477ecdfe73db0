// What the tests of routes share: an app over real D1 and R2, keys, and a client that reads answers.
/// <reference types="@cloudflare/vitest-plugin/types" />
import { createExecutionContext, waitOnExecutionContext } from 'cloudflare:test';
import { env as bindings } from 'cloudflare:workers';
import { app } from '../../functions/app.ts';
import type { Env } from '../../functions/env.ts';
import { insertKey, makeKey } from '../../functions/store/keys.ts';

export const env = bindings as unknown as Env;

export const ORIGIN = 'http://localhost:8787';

export async function keyOf(kind: 'sk' | 'pk' | 'ek', scopes?: string[], origins = [ORIGIN]): Promise<string> {
  const { plain, row } = await makeKey(kind, scopes, kind === 'pk' ? origins : []);
  await insertKey(env.DB, row);
  return plain;
}

interface Answer {
  status: number;
  headers: Headers;
  text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  json: any;
}

interface Ask {
  key?: string;
  body?: unknown;
  headers?: Record<string, string>;
  /** Other bindings, as another isolate or a wrapped database. */
  env?: Env;
  signal?: AbortSignal;
}

export async function respond(method: string, path: string, ask: Ask = {}): Promise<Response> {
  const raw = typeof ask.body === 'string' || ask.body instanceof Uint8Array;
  const headers: Record<string, string> = {
    ...(ask.key ? { Authorization: `Bearer ${ask.key}` } : {}),
    ...(ask.key?.startsWith('pk_') ? { Origin: ORIGIN } : {}),
    ...(ask.body !== undefined ? { 'Content-Type': 'application/json' } : {}),
    ...ask.headers,
  };
  const body = ask.body === undefined ? null : raw ? (ask.body as string) : JSON.stringify(ask.body);
  const context = createExecutionContext();
  const request = new Request(`http://plumb.test${path}`, { method, headers, body, signal: ask.signal ?? null });
  const response = await app.fetch(request, ask.env ?? env, context);
  void waitOnExecutionContext(context);
  return response;
}

export async function ask(method: string, path: string, asked: Ask = {}): Promise<Answer> {
  const response = await respond(method, path, asked);
  const text = new TextDecoder().decode(await response.arrayBuffer());
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    json = undefined;
  }
  return { status: response.status, headers: response.headers, text, json };
}

/** The bucket, and what is told of each object that is read from it. */
export const watchedBucket = (tell: (key: string) => void): R2Bucket =>
  new Proxy(env.BUCKET, {
    get(target, name) {
      if (name !== 'get') return Reflect.get(target, name).bind(target);
      return (key: string) => {
        tell(key);
        return target.get(key);
      };
    },
  });
