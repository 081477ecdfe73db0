import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Launcher, startLauncher } from '../../infra/launcher.ts';
import { newId } from '../../schema/ids.ts';

const WORKER = 'http://127.0.0.1:9';
const home = mkdtempSync(join(tmpdir(), 'plumb-launcher-'));
let launcher: Launcher;
beforeAll(async () => {
  launcher = await startLauncher(home, () => WORKER);
});
afterAll(async () => {
  await launcher.close();
  rmSync(home, { recursive: true, force: true });
});

const launch = { run: newId('run'), fence: 1, url: WORKER, token: 'rt_of-the-run' };
/** Its status. fetch would not let a test choose the Host. */
const ask = (body: unknown, headers: Record<string, string> = {}, path = '/launch', method = 'POST') =>
  new Promise<number>((resolve, reject) => {
    const sent = { authorization: `Bearer ${launcher.token}`, ...headers };
    request(`${launcher.url}${path}`, { method, headers: sent }, (response) => {
      response.resume();
      resolve(response.statusCode!);
    })
      .on('error', reject)
      // bytes: a string would be sent in one with the headers, and those as UTF-8
      .end(Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)));
  });

test.each([
  ['no bearer', 401, launch, { authorization: '' }],
  ['another bearer', 401, launch, { authorization: 'Bearer x' }],
  ['another bearer as long as the right one', 401, launch, { authorization: `Bearer ${'x'.repeat(43)}` }],
  ['a bearer as long as the right one, but in more bytes', 401, launch, { authorization: `Bearer ${'é'.repeat(43)}` }],
  ['another Host, as a page behind a name that points here would send', 403, launch, { host: 'evil.example' }],
  ['a Host that begins like ours', 403, launch, { host: '127.0.0.1.evil.example' }],
  ['what is not JSON', 400, 'run it', {}],
  ['a path for a run id', 400, { ...launch, run: '../../etc/passwd' }, {}],
  ['a command beside the run id', 400, { ...launch, command: 'rm' }, {}],
  ['another Worker', 400, { ...launch, url: 'http://evil.example' }, {}],
  ['a launch in a long body', 400, JSON.stringify(launch) + ' '.repeat(20_000), {}],
])('refuses %s', async (_, status, body, headers) => {
  expect(await ask(body, headers as Record<string, string>)).toBe(status);
  expect(launcher.children.size).toBe(0);
});

test('takes nothing but launches', async () => {
  expect(await ask(launch, {}, '/')).toBe(404);
  expect(await ask('', {}, '/launch', 'GET')).toBe(404);
});

test('starts one trainer a run, the old one ended by the new, and ends with it', async () => {
  const log = join(home, 'runs', `${launch.run}.log`);
  mkdirSync(join(home, 'runs'), { recursive: true });
  writeFileSync(log, 'what an earlier trainer said\n');
  expect(await ask(launch)).toBe(202);
  const first = launcher.children.get(launch.run)!;
  const ended = new Promise((resolve) => first.once('exit', (_, signal) => resolve(signal)));
  expect(await ask({ ...launch, fence: 2 })).toBe(202);
  expect(await ended).toBe('SIGTERM');
  const second = launcher.children.get(launch.run)!;
  expect(second.pid).not.toBe(first.pid);
  expect(readFileSync(log, 'utf8')).toMatch(/^what an earlier trainer said\n/);
  process.kill(second.pid!, 'SIGSTOP'); // hears no SIGTERM, once it has stopped
  await expect.poll(() => readFileSync(`/proc/${second.pid}/stat`, 'utf8')).toContain(') T ');
  await launcher.close();
  expect(second.signalCode).toBe('SIGKILL');
});
