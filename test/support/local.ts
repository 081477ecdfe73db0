// The whole system for an end-to-end test: the real Worker in workerd on a free port, with data that go when it ends.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../infra/home.ts';
import { type Local, startLocal } from '../../infra/local.ts';

export interface TestLocal extends Local {
  /** Calls the API with the secret key. */
  ask(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response>;
  /** The same; throws on what isn't 2xx. */
  api<T>(method: string, path: string, body?: unknown): Promise<T>;
  home: string;
}

/** The cron never fires by itself: tests call `tick`. */
export async function startTestLocal(variables: Record<string, string> = {}): Promise<TestLocal> {
  const home = mkdtempSync(join(tmpdir(), 'plumb-test-'));
  const remove = () => rmSync(home, { recursive: true, force: true });
  const local = await startLocal({ home, port: await freePort(), cronSeconds: 86_400, variables }).catch((error) => {
    remove();
    throw error;
  });
  const ask: TestLocal['ask'] = (method, path, body, signal) =>
    fetch(local.url + path, {
      method,
      headers: { authorization: `Bearer ${local.keys.secret}`, 'content-type': 'application/json' },
      body: body === undefined ? null : JSON.stringify(body),
      ...(signal && { signal }),
    });
  return {
    ...local,
    home,
    ask,
    async api<T>(method: string, path: string, body?: unknown): Promise<T> {
      const response = await ask(method, path, body);
      if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
      return (await response.json()) as T;
    },
    close: async () => {
      await local.close();
      remove();
    },
  };
}
