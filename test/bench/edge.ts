// The Worker as people reach it, over HTTP on this machine: votes a second beside a bare insert into D1 (another workerd of the
// same build, on data of its own), and how long a cold one keeps people waiting. Client and servers share the processors.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type DevFile, devFile, freePort, ROOT } from '../../infra/home.ts';
import { compared, type Pair, pair, ROUNDS } from './pair.ts';

const VOTES = 400;
const AT_ONCE = 16;
const PATIENCE = 60_000;
/** How often a process that starts is asked whether it is there, in milliseconds. */
const POLL = 10;

interface Server {
  url: string;
  /** From the start of the process to its first answer of 2xx. */
  seconds: number;
  stop(): Promise<void>;
}

/** Starts a process and waits until it answers. */
async function start(args: string[], environment: Record<string, string>, url: string, path: string): Promise<Server> {
  const started = performance.now();
  const child = spawn(process.execPath, args, {
    cwd: ROOT,
    stdio: 'ignore',
    env: { ...process.env, WRANGLER_SEND_METRICS: 'false', CLOUDFLARE_CF_FETCH_ENABLED: 'false', ...environment },
  });
  const stop = () => ended(child);
  for (;;) {
    const answer = await fetch(url + path).catch(() => null);
    if (answer?.ok) return { url, seconds: (performance.now() - started) / 1000, stop };
    if (child.exitCode !== null || performance.now() - started > PATIENCE) {
      await stop();
      throw new Error(`${args[0]} did not start`);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

const ended = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) return resolve();
    child.once('exit', () => resolve());
    child.kill('SIGTERM');
  });

async function startPlumb(home: string): Promise<Server & { dev: DevFile }> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const command = [join(ROOT, 'infra/plumb.mjs'), 'dev', '--port', String(port)];
  const server = await start(command, { PLUMB_HOME: home }, url, '/readyz');
  for (;;) {
    const dev = devFile(home);
    if (dev) return { ...server, dev };
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

async function startBare(home: string): Promise<Server> {
  const port = await freePort();
  const config = join(home, 'wrangler.json');
  writeFileSync(
    config,
    JSON.stringify({
      name: 'bare',
      main: join(import.meta.dirname, 'bare.ts'),
      compatibility_date: '2026-11-01',
      d1_databases: [{ binding: 'DB', database_name: 'bare', database_id: 'bare' }],
    }),
  );
  const wrangler = join(ROOT, 'node_modules/wrangler/bin/wrangler.js');
  const command = [wrangler, 'dev', '--config', config, '--port', String(port), '--persist-to', join(home, 'bare')];
  return start(command, { CI: 'true' }, `http://127.0.0.1:${port}`, '/start');
}

/** Requests a second, several at once. */
async function rate(requests: number, send: (i: number) => Promise<Response>): Promise<number> {
  let next = 0;
  const started = performance.now();
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      while (next < requests) {
        const response = await send(next++);
        if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
        await response.arrayBuffer();
      }
    }),
  );
  return (1000 * requests) / (performance.now() - started);
}

const post = ({ url, keys }: DevFile, path: string, body: object): Promise<Response> =>
  fetch(url + path, {
    method: 'POST',
    headers: { authorization: `Bearer ${keys.secret}`, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });

/** Seconds until the first piece of text of a streamed answer. */
async function firstToken(dev: DevFile): Promise<number> {
  const started = performance.now();
  const response = await post(dev, '/v1/chat/completions', {
    model: 'stable',
    messages: [{ role: 'user', content: 'hello , my order 4 7 1 2 has not come .' }],
    max_tokens: 8,
    stream: true,
  });
  let text = '';
  let seconds = Number.NaN;
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    if (Number.isNaN(seconds) && /"content":"[^"]/.test(text)) seconds = (performance.now() - started) / 1000;
  }
  if (Number.isNaN(seconds)) throw new Error(`no token came: ${text.slice(0, 200)}`);
  return seconds;
}

export async function* edge(): AsyncGenerator<Pair> {
  const folder = mkdtempSync(join(tmpdir(), 'plumb-bench-'));
  const running = new Set<Server>();
  const kept = async <S extends Server>(starting: Promise<S>): Promise<S> => {
    const server = await starting;
    running.add(server);
    return server;
  };
  const stopped = async (server: Server) => {
    await server.stop();
    running.delete(server);
  };
  try {
    // Fresh data each time: the database is made, and the seed policy published and released.
    const times = { ours: [] as number[], theirs: [] as number[], cold: [] as number[], warm: [] as number[] };
    for (let round = 0; round < ROUNDS; round++) {
      const plumb = await kept(startPlumb(join(folder, `round ${round}`)));
      times.ours.push(plumb.seconds);
      times.cold.push(1000 * (await firstToken(plumb.dev)));
      times.warm.push(1000 * (await firstToken(plumb.dev)));
      await stopped(plumb);
      const bare = await kept(startBare(folder));
      times.theirs.push(bare.seconds);
      await stopped(bare);
    }
    yield compared({
      name: 'edge/process start to ready',
      unit: 's',
      more: false,
      goal: 0.25,
      ours: times.ours,
      theirs: times.theirs,
      note: 'fresh data, migrated and seeded, beside wrangler dev of a Worker that only inserts',
    });
    yield compared({
      name: 'edge/first token, cold beside warm',
      unit: 'ms',
      more: false,
      goal: 0.2,
      ours: times.cold,
      theirs: times.warm,
      note: 'the first completion of a process beside its second',
    });

    const plumb = await kept(startPlumb(join(folder, 'votes')));
    const bare = await kept(startBare(folder));
    const made = await post(plumb.dev, '/v1/samples', {
      model: 'elsewhere',
      prompt: 'a question',
      choices: Array.from({ length: 8 }, (_, i) => ({ text: `answer ${i}` })),
      user: 'somebody',
    });
    const { choices } = (await made.json()) as { choices: { sample_id: string }[] };
    let rater = 0;
    const vote = (i: number) => ({
      kind: 'thumb',
      sample_id: choices[i % choices.length]!.sample_id,
      value: i % 3 ? 1 : -1,
      rater: { id: `rater ${rater++}` },
    });
    const ours = () => rate(VOTES, (i) => post(plumb.dev, '/v1/feedback', vote(i)));
    const theirs = () =>
      rate(VOTES, (i) => fetch(`${bare.url}/vote`, { method: 'POST', body: JSON.stringify(vote(i)) }));
    await ours();
    await theirs();
    yield await pair({
      name: 'edge/votes over HTTP',
      unit: 'writes/s',
      more: true,
      goal: 0.5,
      ours,
      theirs,
      note: `${AT_ONCE} at once; key, checks, vote and revision beside one bare insert`,
    });
  } finally {
    for (const server of running) await server.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}
