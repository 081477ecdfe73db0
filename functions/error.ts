// The one error that routes throw on purpose, and the one mapper that makes an answer of whatever was thrown.
import type { Context } from 'hono';
import type { z } from 'zod';
import { faults, inWords } from '../schema/malformed.ts';
import { Misconfigured } from './env.ts';

interface More {
  errors?: { path: string; message: string }[];
  code?: string;
  headers?: Record<string, string>;
  /** Further members of the problem, as the id of the run that is in the way. */
  extra?: Record<string, unknown>;
}

export class ApiError extends Error {
  override name = 'ApiError';
  readonly status: number;
  readonly more: More;
  constructor(status: number, detail: string, more: More = {}) {
    super(detail);
    this.status = status;
    this.more = more;
  }
}

export const at = (status: number, path: string, message: string, code?: string) =>
  new ApiError(status, `${path} ${message}`, { errors: [{ path, message }], ...(code ? { code } : {}) });
export const notFound = (what: string) => new ApiError(404, `there is no such ${what}`);
export const busy = (detail: string, seconds: number) =>
  new ApiError(503, detail, { headers: { 'Retry-After': String(seconds) } });

/** A failed parse as a 400 that names each path. */
export function malformed(error: z.ZodError, where: string): ApiError {
  return new ApiError(400, `${where}: ${inWords(error)}`, { errors: faults(error) });
}

const TITLES: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  409: 'Conflict',
  410: 'Gone',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
};

const OPENAI_TYPES: Record<number, string> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  429: 'rate_limit_error',
  500: 'server_error',
  502: 'server_error',
  503: 'server_error',
};

export const isOpenAI = (path: string) => /^\/v1\/(chat\/completions|completions|models)(\/|$)/.test(path);

export function openAIError(error: ApiError): { status: number; body: object } {
  const status = error.status === 422 ? 400 : error.status;
  const { errors, code } = error.more;
  const type = OPENAI_TYPES[status] ?? 'invalid_request_error';
  return {
    status,
    body: { error: { message: error.message, type, param: errors?.[0]?.path || null, code: code ?? null } },
  };
}

/** Says where it happened, without the message: that may quote people. */
export function logUnexpected(thrown: unknown): void {
  const stack = thrown instanceof Error ? (thrown.stack ?? '').split('\n').filter((line) => /^\s+at /.test(line)) : [];
  console.error(`unexpected ${thrown instanceof Error ? thrown.name : typeof thrown}\n${stack.slice(0, 8).join('\n')}`);
}

/** Whatever was thrown, as an ApiError. */
export function asApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiError) return thrown;
  if (thrown instanceof Error && thrown.name === 'AbortError') return busy('the client left', 1);
  // drizzle wraps what D1 throws, and D1 what SQLite says; a mistake of ours names SQLite, an overloaded or restarted database doesn't
  const chain = [thrown, thrown instanceof Error ? thrown.cause : null].filter((error) => error instanceof Error);
  const message = chain.find((error) => error.message.startsWith('D1_ERROR'))?.message ?? chain.at(-1)?.message ?? '';
  if (/^D1_ERROR/.test(message) && !/SQLITE_(?!FULL|BUSY)|syntax/.test(message)) {
    console.error(`the database failed: ${message}`);
    return busy('the database is busy', 1);
  }
  // workerd's words for what lies outside of the Worker, such as a full disk; the bucket's on one machine, where another process writes to it
  if (/^internal error; reference|: Unspecified error \(0\)/.test(message)) {
    console.error(`database or storage failed: ${message}`);
    return busy('the database cannot be written to now', 5);
  }
  logUnexpected(thrown);
  if (thrown instanceof Misconfigured) return busy('this deployment is not configured', 30);
  return new ApiError(500, 'something unexpected went wrong');
}

export function answer(c: Context, error: ApiError): Response {
  const { errors, headers, extra } = error.more;
  if (isOpenAI(c.req.path)) {
    const { status, body } = openAIError(error);
    return Response.json(body, { status, headers: headers ?? {} });
  }
  const problem = {
    type: 'about:blank',
    title: TITLES[error.status] ?? 'Error',
    status: error.status,
    detail: error.message,
    ...(errors ? { errors } : {}),
    ...extra,
  };
  return Response.json(problem, {
    status: error.status,
    headers: { ...headers, 'Content-Type': 'application/problem+json' },
  });
}
