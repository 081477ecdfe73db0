// The whole system on one machine: the Worker in workerd with its D1 and R2, the launcher that starts trainers, and a timer in
// place of the cron. Data lie in one folder (PLUMB_HOME, .plumb in the checkout unless said) and outlive every stop.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { unstable_DevEnv as DevEnv, getPlatformProxy } from 'wrangler';
import { z } from 'zod';
import { settingFault } from '../functions/env.ts';
import { insertKey, isValid, makeKey } from '../functions/store/keys.ts';
import { patient } from '../functions/store/patient.ts';
import { importPolicy } from '../functions/store/policies.ts';
import { newId } from '../schema/ids.ts';
import { type Upstream, UpstreamManifest } from '../schema/manifest.ts';
import { tryLock } from '../trainer/engine/lock.ts';
import { makeFolder, writeWhole } from '../trainer/folder.ts';
import { importFrom } from '../trainer/import/import.ts';
import { UserError } from '../trainer/user-error.ts';
import { type DevFile, devFile, portFree, ROOT } from './home.ts';
import { type Launcher, startLauncher } from './launcher.ts';

/** The embedded default policy. */
const SEED_FOLDER = join(ROOT, 'trainer/seed/policy');

interface Secrets {
  token: string;
  pepper: string;
  side: string;
  /** The secret key made at the first start, in plain: this machine's owner tries things with it. */
  key: string;
}
interface LocalOptions {
  home: string;
  port: number;
  /** Seconds between two firings of the cron. */
  cronSeconds: number;
  /** More of the Worker's PLUMB_ variables. */
  variables?: Record<string, string>;
  /** For the trainers. */
  environment?: Record<string, string>;
}
export interface Local extends DevFile {
  /** What the Worker was given; another copy of it wants the same. */
  bindings: Record<string, string>;
  launcher: Launcher;
  tick(): Promise<void>;
  close(): Promise<void>;
}

// Wrangler is not to ask the network for anything.
Object.assign(process.env, {
  WRANGLER_SEND_METRICS: 'false',
  CLOUDFLARE_CF_FETCH_ENABLED: 'false',
  X_LOCAL_OBSERVABILITY: 'false',
  X_LOCAL_EXPLORER: 'false',
});

export async function startLocal(options: LocalOptions): Promise<Local> {
  const { home } = options;
  // A start that is refused leaves no folder behind; where there is one, it comes first whether somebody runs on it.
  if (!existsSync(home)) await requireStartable(options.port);
  prepareHome(home);
  const unlock = await tryLock(`data ${realpathSync(home)}`);
  if (!unlock) {
    const other = devFile(home);
    throw new UserError(
      `Plumb already runs on this data (${other ? `process ${other.pid}, ${other.url}` : 'it is starting'}): stop it first, or set PLUMB_HOME`,
    );
  }
  try {
    const local = await start(options);
    const close = () => local.close().finally(unlock);
    return { ...local, close };
  } catch (error) {
    await unlock();
    throw error;
  }
}

/** Port and settings, which are looked at before anything is made. */
async function requireStartable(port: number): Promise<void> {
  await requirePort(port);
  for (const name of SETTABLE) {
    const refused = settingFault(name, process.env[name]);
    if (refused) throw new UserError(`${name}=${process.env[name]} cannot be: ${refused}`);
  }
}

async function requirePort(port: number): Promise<void> {
  if (!(await portFree(port)))
    throw new UserError(`port ${port} is in use: stop what listens there, or choose another with --port`);
}

async function start({ home, port, cronSeconds, variables = {}, environment = {} }: LocalOptions): Promise<Local> {
  await requireStartable(port);
  // Ends our children should we be killed: see reaper.mjs.
  const mark = randomBytes(16).toString('hex');
  const reaper = spawn(process.execPath, [join(import.meta.dirname, 'reaper.mjs'), mark], {
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  process.env.PLUMB_OWNER = mark; // the kernel shows what a process was started with: not ours, but our children's
  reaper.unref();
  (reaper.stdin as unknown as Socket).unref();
  const secrets = await readSecrets(home);
  const { policy, publicKey } = await bootstrap(home, port, secrets);

  const url = `http://127.0.0.1:${port}`;
  const launcher = await startLauncher(home, () => url, environment);
  const bindings: Record<string, string> = {
    PLUMB_TOKEN_SECRETS: `a:${secrets.token}`,
    PLUMB_PEPPER: secrets.pepper,
    PLUMB_SIDE_KEY: secrets.side,
    PLUMB_URL: url,
    PLUMB_LAUNCHER_URL: `${launcher.url}/launch`,
    PLUMB_LAUNCHER_TOKEN: launcher.token,
    PLUMB_DEMO: '1',
    PLUMB_DEMO_KEY: publicKey,
    ...Object.fromEntries(
      SETTABLE.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])),
    ),
    ...variables,
  };
  // What a start that was killed left there are addresses that lead nowhere, and would be asked before ours are known.
  rmSync(registryOf(home), { recursive: true, force: true });
  const worker = await startWorker(home, port, bindings);
  const unserved = ({ message, cause }: Error) =>
    console.error(`large policies cannot be served: ${cause instanceof Error ? cause.message : message}`);
  const decoders = Promise.all(SLOTS.map((slot) => startDecoder(home, slot))).then(
    (started) => {
      for (const { failed } of started) failed.catch(unserved);
      return started;
    },
    (error) => {
      unserved(error);
      return [];
    },
  );

  let closed = false;
  const tick = async () => {
    await fetch(`${url}/cdn-cgi/local/scheduled?cron=${encodeURIComponent('* * * * *')}`);
  };
  // One firing at a time: a snapshot may take longer than the interval.
  void (async () => {
    while (!closed) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * cronSeconds).unref());
      if (!closed) await tick().catch(() => {});
    }
  })();

  const close = async () => {
    if (closed) return;
    closed = true;
    rmSync(join(home, 'dev.json'), { force: true });
    // At once: a terminal's Ctrl-C has reached them too, and wrangler warns of a runtime that ends before it was told to.
    const disposed = decoders.then((all) => Promise.all([worker, ...all].map((one) => one.dispose())));
    await launcher.close();
    await disposed;
    reaper.stdin.end();
  };
  try {
    await worker.ready;
    await Promise.race([worker.failed, until(async () => isReady(await fetch(`${url}/readyz`)), 60_000)]);
  } catch (error) {
    await close();
    await requirePort(port); // it was free at first: somebody has taken it meanwhile
    throw error;
  }
  const dev: DevFile = {
    url,
    pid: process.pid,
    keys: { secret: secrets.key, public: publicKey },
    policy,
  };
  writeFileSync(join(home, 'dev.json'), `${JSON.stringify(dev, null, 2)}\n`, { mode: 0o600 });
  return { ...dev, bindings, launcher, tick, close };
}

type WorkerOptions = Parameters<DevEnv['startWorker']>[0];
interface Script {
  url: Promise<URL>;
  ready: Promise<void>;
  /** Rejects where it cannot start: its port is taken, it cannot be bundled, workerd ends. */
  failed: Promise<never>;
  dispose(): Promise<void>;
}

/** A script in workerd. Wrangler's own `ready`, and its `dispose`, wait for ever for one that cannot start. */
async function startScript(options: WorkerOptions): Promise<Script> {
  const env = new DevEnv();
  const { promise: failed, reject } = Promise.withResolvers<never>();
  failed.catch(() => {});
  for (const kind of ['error', 'buildFailed'])
    env.on(kind, (said: Error | { reason: string; cause: Error }) => {
      const why = said instanceof Error ? said.message : `${said.reason}: ${said.cause.message}`;
      reject(new Error(`a script of the Worker did not start: ${why}`));
    });
  const worker = await env.startWorker(options);
  const url = Promise.race([worker.url, failed]);
  const ready = url.then(() => {});
  ready.catch(() => {}); // one that nobody waits for
  // What could not start says so once more as it is torn down.
  const dispose = () =>
    ready.then(
      () => env.teardown(),
      () => env.teardown().catch(() => {}),
    );
  return { url, ready, failed, dispose };
}

/** Where the scripts of a home find one another. */
const registryOf = (home: string) => join(home, 'state/registry');
const workerd = (home: string, port: number) => ({
  server: { hostname: '127.0.0.1', port },
  persist: join(home, 'state'),
  registry: registryOf(home),
  watch: false,
  inspector: false,
  logLevel: 'warn',
});

/** One copy of the Worker over the home's database and bucket. */
export const startWorker = (home: string, port: number, bindings: Record<string, string>) =>
  startScript({
    config: join(ROOT, 'wrangler.jsonc'),
    envFiles: [],
    bindings: {
      ...Object.fromEntries(Object.entries(bindings).map(([name, value]) => [name, { type: 'plain_text', value }])),
      ...Object.fromEntries(
        SLOTS.map((slot) => [
          `DECODER_${slot.toUpperCase()}`,
          { type: 'durable_object_namespace', class_name: 'Decoding', script_name: `plumb-decoder-${slot}` },
        ]),
      ),
    },
    dev: workerd(home, port),
  } as WorkerOptions);

const SLOTS = ['a', 'b'] as const;

/** The decoder script in one slot, over the home's bucket. */
export const startDecoder = (
  home: string,
  slot: (typeof SLOTS)[number],
  { inspector = false, ...more }: { inspector?: { hostname: string; port: number } | false; entrypoint?: string } = {},
) =>
  startScript({
    config: join(ROOT, 'wrangler.decoder.jsonc'),
    name: `plumb-decoder-${slot}`,
    envFiles: [],
    ...more,
    dev: { ...workerd(home, 0), inspector },
  } as WorkerOptions);

/** Variables of the Worker that the environment of `plumb dev` may set. */
const SETTABLE = [
  'PLUMB_TOKEN_TTL',
  'PLUMB_MIN_FEEDBACK',
  'PLUMB_MAX_WAIT',
  'PLUMB_RUN_CONFIG',
  'PLUMB_UPSTREAM_KEYS',
  'PLUMB_IDENTITY_KEY',
  'PLUMB_RATE_LIMIT',
  'PLUMB_LEASE',
  'PLUMB_LAUNCH_PATIENCE',
] as const;

/** Bytes that a start wants: database, the seed policy and a run's checkpoints. */
const LEAST_FREE = 64e6;

const leftOn = (home: string): number => {
  const { bavail, bsize } = statfsSync(home);
  return bavail * bsize;
};

/** With so little left a write has failed for want of room. */
const FULL = 4e6;

/**
 * What `work` comes to, unless the disk fills while it is at it: workerd says so on stderr alone, then gives back what it had taken, and who
 * wrote through its bucket waits for ever or is told that a connection was lost.
 */
async function whileRoom<T>(home: string, work: () => Promise<T>): Promise<T> {
  const { promise: filled, reject } = Promise.withResolvers<never>();
  const full = () =>
    new UserError(`the disk of ${home} has filled meanwhile: free some, or set PLUMB_HOME, and do it again`);
  const { error: print } = console;
  console.error = (...said) => {
    if (/No space left on device|SQLITE_FULL/.test(String(said[0]))) reject(full());
    else if (leftOn(home) >= FULL) print(...said);
  };
  try {
    return await Promise.race([work(), filled]);
  } catch (error) {
    if (error instanceof UserError && leftOn(home) > LEAST_FREE) throw error;
    await Promise.race([filled, new Promise((resolve) => setTimeout(resolve, 300))]); // it may be said a moment later
    throw leftOn(home) < FULL ? full() : error;
  } finally {
    console.error = print;
  }
}

/**
 * The folder; what is ours in it is for its owner alone, and of one that was there before the rest is let be.
 * @param bytes that are to be stored there
 */
function prepareHome(home: string, bytes = 0): void {
  const isNew = !existsSync(home);
  try {
    makeFolder(home);
    if (!statSync(home).isDirectory()) throw new UserError(`${home} is a file: PLUMB_HOME wants a folder`);
    const left = leftOn(home);
    if (left < LEAST_FREE + bytes) {
      if (isNew) rmdirSync(home);
      const needed = bytes > 0 ? `, and ${Math.ceil((LEAST_FREE + bytes) / 1e6)} are needed` : '';
      throw new UserError(
        `the disk of ${home} has ${Math.floor(left / 1e6)} MB left${needed}: free some, or set PLUMB_HOME`,
      );
    }
    for (const name of ['state', 'runs', 'tensorboard']) {
      makeFolder(join(home, name));
      chmodSync(join(home, name), 0o700);
    }
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(
      `cannot use ${home} for data: ${(error as NodeJS.ErrnoException).code}; set PLUMB_HOME to a folder of yours`,
    );
  }
}

/** Secrets are made once and kept: tokens and raters' hashes must survive a restart. */
async function readSecrets(home: string): Promise<Secrets> {
  const path = join(home, 'secrets.json');
  if (existsSync(path)) {
    const Kept = z.object({
      token: z.string().min(16),
      pepper: z.string().min(16),
      side: z.string().min(16),
      key: z.string(),
    });
    return readKept(path, Kept);
  }
  const secret = () => randomBytes(24).toString('base64url');
  const secrets: Secrets = { token: secret(), pepper: secret(), side: secret(), key: '' };
  return secrets;
}

interface Bindings {
  DB: D1Database;
  BUCKET: R2Bucket;
}

/**
 * D1 and R2 of this machine, made and brought up to date, for as long as `use` takes.
 * @param bytes that it stores
 */
export async function withStore<T>(home: string, use: (env: Bindings) => Promise<T>, bytes = 0): Promise<T> {
  prepareHome(home, bytes);
  let proxy: Awaited<ReturnType<typeof getPlatformProxy<Bindings>>> | undefined;
  try {
    return await whileRoom(home, async () => {
      proxy = await getPlatformProxy<Bindings>({
        configPath: join(ROOT, 'wrangler.jsonc'),
        persist: { path: join(home, 'state/v3') },
        envFiles: [],
        remoteBindings: false,
      });
      await migrate(patient(proxy.env.DB)).catch((error) => {
        throw new UserError(`the database in ${home} cannot be brought up to date: ${error.message}`);
      });
      return use(proxy.env);
    });
  } finally {
    await proxy?.dispose();
  }
}

/** Applies what is new in schema/migrations, and notes it where `wrangler d1 migrations apply` does, which takes seconds to start. */
async function migrate(DB: D1Database): Promise<void> {
  await DB.prepare(
    'CREATE TABLE IF NOT EXISTS d1_migrations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)',
  ).run();
  const { results } = await DB.prepare('SELECT name FROM d1_migrations').all<{ name: string }>();
  const applied = new Set(results.map(({ name }) => name));
  const folder = join(ROOT, 'schema/migrations');
  const known = readdirSync(folder).filter((name) => name.endsWith('.sql'));
  const newer = [...applied].find((name) => !known.includes(name));
  if (newer) throw new UserError(`it is of a newer Plumb, which knows ${newer}: use that one, or set PLUMB_HOME`);
  for (const name of known.filter((name) => !applied.has(name)).sort()) {
    const statements = readFileSync(join(folder, name), 'utf8').split('--> statement-breakpoint');
    await DB.batch([
      ...statements.map((statement) => DB.prepare(statement)),
      DB.prepare('INSERT INTO d1_migrations (name) VALUES (?)').bind(name),
    ]);
  }
}

/** Keys for trying (anew where they were revoked), and at the first start the seed policy published and released. */
async function bootstrap(home: string, port: number, secrets: Secrets): Promise<{ policy: string; publicKey: string }> {
  return withStore(home, async ({ DB, BUCKET }) => {
    if (!(await isValid(DB, secrets.key))) {
      const key = await makeKey('sk', undefined, [], 'made at a start');
      await insertKey(DB, key.row);
      secrets.key = key.plain;
      keep(join(home, 'secrets.json'), secrets);
    }
    const publicKey = await publicKeyOf(DB, home, port);
    const stable = await DB.prepare(
      "SELECT policy FROM releases WHERE channel = 'stable' ORDER BY seq DESC LIMIT 1",
    ).first<{ policy: string }>();
    if (stable) return { policy: stable.policy, publicKey };
    const { manifest, files } = importFrom(SEED_FOLDER, 'plumb-seed');
    await importPolicy(DB, BUCKET, manifest, Object.fromEntries(files), 'stable');
    return { policy: manifest.id, publicKey };
  });
}

/** Publishes a policy that another server decodes. @returns its id */
export async function publishUpstream(
  home: string,
  upstream: Upstream,
  name: string,
  channel?: 'stable' | 'canary',
): Promise<string> {
  const id = newId('policy');
  const nothing = { parent: null, root: id, run: null, snapshot: null, metrics: {} };
  const manifest = UpstreamManifest.parse({
    object: 'policy',
    id,
    name,
    created_at: new Date().toISOString(),
    upstream,
    ...nothing,
  });
  await withStore(home, ({ DB, BUCKET }) => importPolicy(DB, BUCKET, manifest, {}, channel));
  return id;
}

/** Publishes a policy from a folder or a GGUF file, released to a channel if one is named. @returns its id */
export async function publish(
  home: string,
  path: string,
  name: string,
  channel?: 'stable' | 'canary',
): Promise<string> {
  const { manifest, files } = importFrom(path, name);
  const bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
  const store = ({ DB, BUCKET }: Bindings) => importPolicy(DB, BUCKET, manifest, Object.fromEntries(files), channel);
  await withStore(home, store, bytes);
  return manifest.id;
}

/** The public key names its origins, and they hold the port: each port has its own. */
async function publicKeyOf(DB: D1Database, home: string, port: number): Promise<string> {
  const path = join(home, 'public-keys.json');
  const known = existsSync(path) ? readKept(path, z.record(z.string(), z.string())) : {};
  const own = known[port];
  if (own && (await isValid(DB, own))) return own;
  const origins = [`http://127.0.0.1:${port}`, `http://localhost:${port}`];
  const { plain, row } = await makeKey('pk', undefined, origins, `pages of port ${port}`);
  await insertKey(DB, row);
  keep(path, { ...known, [port]: plain });
  return plain;
}

/** A file of ours beside the database, for its owner alone. */
const keep = (path: string, value: object) =>
  writeWhole(path, new TextEncoder().encode(JSON.stringify(value, null, 2)), 0o600);

function readKept<T>(path: string, schema: z.ZodType<T>): T {
  try {
    return schema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    throw new UserError(`${path} is damaged: put it back from a copy, or set PLUMB_HOME to another folder`);
  }
}

/** False while the Worker starts; what it says is wrong with its data would stay so. */
async function isReady(answer: Response): Promise<boolean> {
  if (answer.status === 200) return true;
  const parts = (await answer.json().catch(() => ({}))) as Record<string, { ok: boolean; detail: string } | boolean>;
  for (const [name, part] of Object.entries(parts))
    if (typeof part === 'object' && !part.ok)
      throw new UserError(
        `the Worker is not ready: ${name}: ${part.detail}; mend the data folder${name === 'policy' ? ' (npx plumb import --release stable stores its files anew, or releases another)' : ''}, or set PLUMB_HOME to another`,
      );
  return false;
}

async function until(done: () => Promise<boolean>, milliseconds: number): Promise<void> {
  const end = Date.now() + milliseconds;
  let last: unknown = 'not ready';
  while (Date.now() < end) {
    try {
      if (await done()) return;
    } catch (error) {
      if (error instanceof UserError) throw error;
      last = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`the Worker did not become ready within ${milliseconds / 1000} s (${last})`);
}
