// The local launcher: what AWS Batch is in the cloud. The Worker asks it to start a run's trainer; it starts `plumb job` as a
// process of its own. It listens on loopback, wants the bearer made at its start, and takes nothing but a run's own
// credentials: no command, no path.

import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { LaunchRequest } from '../schema/wire-runs.ts';
import { makeFolder } from '../trainer/folder.ts';

export interface Launcher {
  url: string;
  token: string;
  /** The trainers under way, by run. */
  children: Map<string, ChildProcess>;
  close(): Promise<void>;
}

const MOST_BYTES = 16_384;

/** @param worker where the Worker is known to be, once it is: launches for any other URL are refused */
export async function startLauncher(
  home: string,
  worker: () => string,
  environment: Record<string, string> = {},
): Promise<Launcher> {
  const token = randomBytes(32).toString('base64url');
  const children = new Map<string, ChildProcess>();
  const logs = join(home, 'runs');
  makeFolder(logs);

  const launch = async (request: IncomingMessage, answer: (status: number, body: object) => unknown) => {
    if (request.headers.host !== `127.0.0.1:${port()}`) return answer(403, { detail: 'wrong Host' });
    if (!same(request.headers.authorization ?? '', `Bearer ${token}`))
      return answer(401, { detail: 'wrong or no bearer' });
    if (request.method !== 'POST' || request.url !== '/launch') return answer(404, { detail: 'only POST /launch' });
    const body = LaunchRequest.safeParse(await json(request));
    if (!body.success || body.data.url !== worker()) return answer(400, { detail: 'not a launch of this Worker’s' });
    const { run, fence, token: jobToken } = body.data;
    // A relaunch takes over: the trainer of the old fence can no longer write, and need not go on computing.
    children.get(run)?.kill('SIGTERM');
    const log = openSync(join(logs, `${run}.log`), 'a');
    const child = spawn(process.execPath, [join(import.meta.dirname, 'plumb.mjs'), 'job'], {
      stdio: ['ignore', log, log],
      env: {
        ...process.env,
        ...environment,
        PLUMB_HOME: home,
        PLUMB_URL: body.data.url,
        PLUMB_RUN: run,
        PLUMB_FENCE: String(fence),
        PLUMB_JOB_TOKEN: jobToken,
      },
    });
    closeSync(log);
    children.set(run, child);
    const gone = () => {
      if (children.get(run) === child) children.delete(run);
    };
    // One that could not start never beats, and the cron launches it again.
    child.on('exit', gone).on('error', gone);
    answer(202, { run });
  };
  const server = createServer((request, response) => {
    const answer = (status: number, body: object) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    launch(request, answer).catch((error) => answer(500, { detail: (error as Error).message }));
  });
  const port = () => (server.address() as AddressInfo).port;
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));

  return {
    url: `http://127.0.0.1:${port()}`,
    token,
    children,
    close: async () => {
      server.close();
      await Promise.all(
        [...children.values()].map(
          (child) =>
            new Promise<void>((resolve) => {
              const force = setTimeout(() => child.kill('SIGKILL'), 3000);
              child.once('exit', () => {
                clearTimeout(force);
                resolve();
              });
              child.kill('SIGTERM');
            }),
        ),
      );
    },
  };
}

function same(a: string, b: string): boolean {
  const [one, other] = [Buffer.from(a), Buffer.from(b)];
  return one.length === other.length && timingSafeEqual(one, other);
}

async function json(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > MOST_BYTES) return null;
  }
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
