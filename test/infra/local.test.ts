// npm start as its user meets it: processes, ports and signals.
import { spawn } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { freePort } from '../../infra/home.ts';
import { lines, PLUMB, plumb, started } from '../support/plumb.ts';
import { SEED_FOLDER } from '../support/seed.ts';

const homes = mkdtempSync(join(tmpdir(), 'plumb-start-'));
afterAll(() => rmSync(homes, { recursive: true, force: true }));

/** Processes whose environment or command names the data folder. */
const processesOf = (home: string): string[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => {
      try {
        const about = readFileSync(`/proc/${pid}/environ`, 'utf8') + readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        return about.includes(home) && !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
      } catch {
        return false;
      }
    });
const listening = (port: number) =>
  new Promise<boolean>((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(true));
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(false)));
  });

async function nothingLeft(home: string, url: string) {
  await expect.poll(() => processesOf(home), { timeout: 15_000 }).toEqual([]);
  // A process that ends gives its memory back before its sockets.
  await expect.poll(() => listening(Number(new URL(url).port)), { timeout: 5000 }).toBe(false);
}

describe('plumb dev', { timeout: 300_000 }, () => {
  test('says what is where, in words and in dev.json; what is ours its owner alone can read, a folder that was there stays as it is', async () => {
    const home = join(homes, 'first');
    mkdirSync(home);
    chmodSync(home, 0o755);
    const { child, ended, dev, said } = await started(home, await freePort());
    try {
      expect(said()).toContain(`${dev.url}/`);
      for (const secret of [dev.keys.secret, dev.keys.public, home]) expect(said()).toContain(secret);
      for (const name of ['dev.json', 'secrets.json', 'public-keys.json', 'state', 'runs', 'tensorboard'])
        expect([name, statSync(join(home, name)).mode & 0o077]).toEqual([name, 0]);
      expect(statSync(home).mode & 0o777).toBe(0o755);
      const models = await fetch(`${dev.url}/v1/models`, { headers: { authorization: `Bearer ${dev.keys.secret}` } });
      expect(((await models.json()) as { data: { id: string }[] }).data.map(({ id }) => id)).toContain(dev.policy);
      expect(await (await fetch(dev.url)).text()).toContain('<script');

      const port = new URL(dev.url).port;
      const elsewhere = await plumb(['dev', '--port', port], { PLUMB_HOME: join(homes, 'second') }).ended;
      expect(elsewhere.code).toBe(1);
      expect(lines(elsewhere)).toEqual([expect.stringMatching(`port ${port} is in use.*--port`)]);
      expect(existsSync(join(homes, 'second'))).toBe(false);
      const twice = await plumb(['dev', '--port', String(await freePort())], { PLUMB_HOME: home }).ended;
      expect(twice.code).toBe(1);
      expect(lines(twice)).toEqual([expect.stringContaining('already runs on this data')]);
    } finally {
      child.kill('SIGTERM');
      await ended;
    }
    await nothingLeft(home, dev.url);
    expect(existsSync(join(home, 'dev.json'))).toBe(false);
  });

  test('a setting or a folder that cannot be is said in one line; keys that were revoked are made anew', async () => {
    const home = join(homes, 'mended');
    const dev = ['dev', '--port', String(await freePort())];
    const limited = await plumb(dev, { PLUMB_HOME: home, PLUMB_RATE_LIMIT: 'abc' }).ended;
    expect([limited.code, lines(limited)]).toEqual([1, [expect.stringMatching(/PLUMB_RATE_LIMIT=abc/)]]);
    const config = '{"ppo": {"clip": 0}}';
    const odd = await plumb(dev, { PLUMB_HOME: home, PLUMB_RUN_CONFIG: config }).ended;
    expect([odd.code, lines(odd)]).toEqual([1, [expect.stringMatching(/PLUMB_RUN_CONFIG=.* cannot be: ppo\.clip: /)]]);
    expect(existsSync(home)).toBe(false);
    const file = await plumb(dev, { PLUMB_HOME: PLUMB }).ended;
    expect([file.code, lines(file)]).toEqual([1, [expect.stringMatching(/is a file: PLUMB_HOME wants a folder/)]]);

    const damaged = join(homes, 'damaged');
    mkdirSync(damaged);
    writeFileSync(join(damaged, 'secrets.json'), '{"token": ');
    const broken = await plumb(dev, { PLUMB_HOME: damaged }).ended;
    expect([broken.code, lines(broken)]).toEqual([1, [expect.stringMatching(/secrets\.json is damaged/)]]);

    const port = await freePort();
    const first = await started(home, port);
    const key = lines(await plumb(['keys', 'list'], { PLUMB_HOME: home }).ended).find((line) => / sk /.test(line))!;
    expect((await plumb(['keys', 'revoke', key.split(' ')[0]!], { PLUMB_HOME: home }).ended).code).toBe(0);
    first.child.kill('SIGTERM');
    await first.ended;
    const second = await started(home, port);
    try {
      expect(second.dev.keys.secret).not.toBe(first.dev.keys.secret);
      expect(second.dev.keys.public).toBe(first.dev.keys.public);
      expect((await plumb(['keys', 'list'], { PLUMB_HOME: home }).ended).code).toBe(0);
    } finally {
      second.child.kill('SIGTERM');
      await second.ended;
    }
    // a public key is for its own port's pages
    const elsewhere = await started(home, await freePort());
    elsewhere.child.kill('SIGTERM');
    await elsewhere.ended;
    expect(elsewhere.dev.keys.public).not.toBe(first.dev.keys.public);
  });

  test('a port that another takes while it starts is said in one line', async () => {
    const home = join(homes, 'taken');
    const port = await freePort();
    const { ended } = plumb(['dev', '--port', String(port)], { PLUMB_HOME: home });
    // the port has been looked at by then, and the Worker is not started yet
    await expect.poll(() => existsSync(join(home, 'secrets.json')), { timeout: 60_000, interval: 20 }).toBe(true);
    const thief = createServer();
    await new Promise<void>((resolve) => thief.listen(port, '127.0.0.1', resolve));
    const { code, out } = await ended;
    await new Promise((resolve) => thief.close(resolve));
    expect([code, lines({ code, out })]).toEqual([1, [expect.stringMatching(`port ${port} is in use.*--port`)]]);
    await nothingLeft(home, `http://127.0.0.1:${port}`);
  });

  const ends: [NodeJS.Signals, number | null][] = [
    ['SIGINT', 0],
    ['SIGHUP', 0],
    ['SIGKILL', null],
  ];
  test.each(ends)('%s leaves no process and no taken port', async (signal, code) => {
    const home = join(homes, signal);
    const { child, ended, dev } = await started(home, await freePort());
    expect(processesOf(home).length).toBeGreaterThan(1);
    child.kill(signal);
    expect((await ended).code).toBe(code);
    await nothingLeft(home, dev.url);
  });
});

test('commands write beside a busy server and beside one another: none is refused, and no request', async () => {
  const home = join(homes, 'busy');
  const { child, ended, dev } = await started(home, await freePort());
  const post = async (path: string, body: object) => {
    const response = await fetch(`${dev.url}${path}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${dev.keys.secret}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) refused.push(`${response.status} ${text}`);
    return text;
  };
  const refused: string[] = [];
  let votes = 0;
  let over = false;
  const customer = async () => {
    while (!over) {
      const messages = [{ role: 'user', content: 'where is my order?' }];
      const answer = JSON.parse(await post('/v1/chat/completions', { model: 'stable', messages, max_tokens: 1 }));
      const [choice] = answer.choices as [{ sample_id: string }];
      await post('/v1/feedback', { kind: 'thumb', sample_id: choice.sample_id, value: 1, rater: { id: 'one' } });
      votes++;
    }
  };
  const customers = Promise.all(Array.from({ length: 8 }, customer));
  try {
    for (let round = 0; round < 4; round++) {
      const commands = [0, 1].map(
        (i) => plumb(['import', SEED_FOLDER, '--name', `${round}-${i}`], { PLUMB_HOME: home }).ended,
      );
      for (const { code, out } of await Promise.all(commands))
        expect([code, out]).toEqual([0, expect.stringContaining('pol_')]);
    }
  } finally {
    over = true;
    await customers.catch((error) => refused.push(`${error}`));
    child.kill('SIGTERM');
    await ended;
  }
  expect(refused).toEqual([]);
  expect(votes).toBeGreaterThan(100);
});

describe('npm', { timeout: 300_000 }, () => {
  test('that is killed outright leaves nothing of what it started', async () => {
    const home = join(homes, 'npm');
    const port = await freePort();
    const start = `"${process.execPath}" "${PLUMB}" dev --port ${port} & wait`;
    const npm = spawn('sh', ['-c', start], { env: { ...process.env, PLUMB_HOME: home, npm_lifecycle_event: 'start' } });
    await expect.poll(() => existsSync(join(home, 'dev.json')), { timeout: 60_000 }).toBe(true);
    npm.kill('SIGKILL');
    await nothingLeft(home, `http://127.0.0.1:${port}`);
    expect(existsSync(join(home, 'dev.json'))).toBe(false);
  });
});

describe('what is missing is said in one line', { timeout: 300_000 }, () => {
  test('too old a Node, and the project’s own not installed', async () => {
    const copy = join(homes, 'bare/infra');
    mkdirSync(copy, { recursive: true });
    cpSync(PLUMB, join(copy, 'plumb.mjs'));
    const older = 'data:text/javascript,Object.defineProperty(process.versions,"node",{value:"18.20.8"})';
    const ended = await plumb(['dev'], {}, ['--import', older], join(copy, 'plumb.mjs')).ended;
    expect(ended.code).toBe(1);
    expect(lines(ended)).toEqual([expect.stringMatching(/Node 18\.20\.8 .*run npm ci/)]);
  });

  test('an option that a script left empty', async () => {
    const empty = mkdtempSync(join(homes, 'empty-'));
    for (const args of [
      ['export', 'stable', '--to', ''],
      ['import', empty, '--name', ' '],
      ['keys', 'revoke', ''],
      ['sim', '--seeds', ''],
      ['train', 'sft', '--data', '', '--base', empty, '--out', empty],
    ]) {
      const ended = await plumb(args, { PLUMB_HOME: join(empty, 'home') }).ended;
      expect([args.join(' '), ended.code]).toEqual([args.join(' '), 1]);
      expect(lines(ended)).toEqual([
        expect.stringMatching(/^plumb: (--(to|name|data)|an argument of (revoke|sim)) is empty/),
      ]);
    }
    expect(readdirSync(empty)).toEqual([]);
  });

  const engine = (name: string, environment: Record<string, string>) =>
    plumb(['engine', '--install'], { PLUMB_ENGINE_HOME: join(homes, name), ...environment }).ended;

  test('no Python with pip', async () => {
    const ended = await engine('no pip', { PATH: join(homes, 'nothing here') });
    expect(ended.code).toBe(1);
    expect(lines(ended)).toEqual([expect.stringMatching(/needs Python with pip.*run npx plumb engine --install/)]);
  });

  test('no network', async () => {
    const closed = `http://127.0.0.1:${await freePort()}/`;
    const ended = await engine('no network', {
      npm_config_registry: closed,
      npm_config_fetch_retries: '0',
      npm_config_cache: join(homes, 'npm'),
    });
    expect(ended.code).toBe(1);
    expect(lines(ended).at(-1)).toMatch(/a download failed: check the network/);
    expect(ended.out).not.toMatch(/^\s+at /m);
  });
});
