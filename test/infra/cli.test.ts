// The commands that ask a running Plumb, as its user types them.
import { spawnSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { sha256 } from '../../functions/crypto.ts';
import { blobKey, putBlob, readBlob } from '../../functions/store/blobs.ts';
import { hashOf, readManifest } from '../../functions/store/policies.ts';
import { freePort } from '../../infra/home.ts';
import { withStore } from '../../infra/local.ts';
import type { Manifest } from '../../schema/manifest.ts';
import { engineFolder } from '../../trainer/engine/setup.ts';
import { lines, plumb, started } from '../support/plumb.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-cli-'));
const home = join(folder, 'home');
const SEED = join(import.meta.dirname, '../../trainer/seed/policy');
let system: Awaited<ReturnType<typeof started>>;
beforeAll(async () => {
  system = await started(home, await freePort());
}, 300_000);
afterAll(async () => {
  system.child.kill('SIGTERM');
  await system.ended;
  rmSync(folder, { recursive: true, force: true });
});
const ask = (...args: string[]) => plumb(args, { PLUMB_HOME: home }).ended;
const models = (key: string) =>
  fetch(`${system.dev.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } }).then(({ status }) => status);

test('keys are made, shown once, listed with what they may do, and revoked', async () => {
  const made = await ask('keys', 'create', '--scopes', 'completions,read', '--name', 'shop');
  expect(made.code).toBe(0);
  const [id, key] = lines(made) as [string, string];
  expect(await models(key)).toBe(200);
  const page = lines(await ask('keys', 'create', '--kind', 'pk', '--origins', 'https://shop.example'))[0]!;
  const listed = await ask('keys', 'list');
  expect(listed.out).not.toContain(key);
  expect(lines(listed).find((line) => line.startsWith(id))).toMatch(/ sk +valid .* completions,read +shop$/);
  expect(lines(listed).find((line) => line.startsWith(page))).toMatch(/ pk +valid .* https:\/\/shop\.example$/);
  expect((await ask('keys', 'revoke', id)).code).toBe(0);
  expect(lines(await ask('keys', 'list')).find((line) => line.startsWith(id))).toMatch(/ sk +revoked /);
}, 300_000);

test('a folder in Hugging Face’s layout becomes a policy, released where it is said', async () => {
  const imported = await ask('import', SEED, '--name', 'twin', '--release', 'canary');
  const id = lines(imported).at(-1)!;
  expect([imported.code, id]).toEqual([0, expect.stringMatching(/^pol_/)]);
  const policies = lines(await ask('policies'));
  expect(policies.find((line) => line.startsWith(system.dev.policy))).toMatch(/ stable /);
  expect(policies.find((line) => line.startsWith(id))).toMatch(/ twin +canary /);
  expect(lines(await ask('runs'))).toEqual(['none yet']);

  const to = join(folder, 'out');
  expect(lines(await ask('export', 'canary', '--to', to))).toEqual([`${id} is in ${to}`]);
  const weights = (of: string) => readFileSync(join(of, 'model.safetensors'));
  expect(weights(to).equals(weights(SEED))).toBe(true);
  const again = await ask('export', id, '--to', to);
  expect([again.code, lines(again)]).toEqual([1, [expect.stringMatching(/out is there already/)]]);
  const nobody = await ask('export', 'pol_01ARZ3NDEKTSV4RRFFQ69G5FAV', '--to', join(folder, 'none'));
  expect([nobody.code, lines(nobody)]).toEqual([1, [expect.stringMatching(/there is no policy pol_.*plumb policies/)]]);
}, 300_000);

test('a policy is imported though what is said to serve this data says nothing', async () => {
  const elsewhere = join(folder, 'mute');
  const mute = createServer(() => {});
  await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(mute.address() as AddressInfo).port}`;
  mkdirSync(elsewhere);
  writeFileSync(join(elsewhere, 'dev.json'), JSON.stringify({ ...system.dev, url }));
  const imported = await plumb(['import', SEED, '--release', 'stable'], { PLUMB_HOME: elsewhere }).ended;
  mute.close();
  expect([imported.code, lines(imported).at(-1)]).toEqual([0, expect.stringMatching(/^pol_/)]);
}, 60_000);

test('a damaged file of a policy is told in a line, and mended by importing it again', async () => {
  const first = lines(await ask('import', SEED, '--name', 'damaged')).at(-1)!;
  await withStore(home, async ({ BUCKET }) => {
    const manifest = (await readManifest(BUCKET, first)) as Manifest;
    const bytes = readFileSync(join(SEED, 'model.safetensors'));
    bytes[bytes.length - 1]! ^= 1;
    await BUCKET.put(blobKey(hashOf(manifest, 'model.safetensors')), new Uint8Array(bytes));
  });
  const to = join(folder, 'mended');
  const damaged = await ask('export', first, '--to', to);
  const told = /^plumb: model\.safetensors of pol_\w+ cannot be read \(\w+ is damaged\): import the policy again$/;
  expect([damaged.code, lines(damaged)]).toEqual([1, [expect.stringMatching(told)]]);
  expect((await ask('import', SEED, '--name', 'damaged')).code).toBe(0);
  expect((await ask('export', first, '--to', to)).code).toBe(0);
}, 300_000);

test('what finds no room on the disk is not begun', async (context) => {
  const small = join(folder, 'small');
  mkdirSync(small);
  context.skip(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64M', 'tmpfs', small]).status !== 0, 'it may not mount');
  try {
    const refused = await plumb(['import', SEED], { PLUMB_HOME: join(small, 'home') }).ended;
    expect([refused.code, lines(refused)]).toEqual([
      1,
      [expect.stringMatching(/has 6\d MB left, and \d\d are needed: free some, or set PLUMB_HOME$/)],
    ]);
    expect(readdirSync(small)).toEqual([]);
  } finally {
    spawnSync('umount', [small]);
  }
}, 300_000);

test('a disk that fills while something is stored ends that; with room it is stored', async (context) => {
  const small = join(folder, 'filling');
  mkdirSync(small);
  context.skip(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=160M', 'tmpfs', small]).status !== 0, 'it may not mount');
  try {
    const filler = join(small, 'filler');
    const bytes = new Uint8Array(40e6);
    const sha = await sha256(bytes);
    const { error } = console;
    // Of the first workerd says that it cannot begin; in the midst of the second it says nothing to who waits.
    for (const left of [0, 20e6]) {
      const stored = withStore(join(small, 'home'), ({ BUCKET }) => {
        const { bavail, bsize } = statfsSync(small);
        writeFileSync(filler, new Uint8Array(bavail * bsize - left));
        return putBlob(BUCKET, sha, bytes);
      });
      await expect(stored).rejects.toThrow(/^the disk of .* has filled meanwhile: free some, /);
      rmSync(filler);
    }
    const again = withStore(join(small, 'home'), async ({ BUCKET }) => {
      await putBlob(BUCKET, sha, bytes);
      return readBlob(BUCKET, sha);
    });
    expect(await again).toHaveLength(bytes.length);
    expect(console.error).toBe(error);
  } finally {
    spawnSync('umount', [small]);
  }
}, 300_000);

test('of more than one answer holds the newest are listed, oldest first', async () => {
  const asked: URLSearchParams[] = [];
  const page = createServer((request, response) => {
    asked.push(new URL(request.url!, 'http://x').searchParams);
    const data = ['new', 'old'].map((id) => ({
      id,
      kind: 'sk',
      name: '',
      channels: [],
      scopes: [],
      status: 'rejected',
      report: {
        reasons: [
          { passed: true, words: 'it is long enough' },
          { passed: false, words: `${id} repeats itself` },
        ],
      },
      created_at: '',
    }));
    response.end(JSON.stringify({ data }));
  });
  const port = await freePort();
  await new Promise<void>((resolve) => page.listen(port, '127.0.0.1', resolve));
  for (const args of [['runs'], ['policies'], ['keys', 'list']]) {
    const listed = await plumb(args, { PLUMB_URL: `http://127.0.0.1:${port}`, PLUMB_KEY: 'sk_x' }).ended;
    expect(lines(listed).map((line) => line.split(' ')[0])).toEqual(['old', 'new']);
    if (args[0] === 'runs') expect(lines(listed)[0]).toMatch(/rejected +old repeats itself$/);
  }
  expect(asked.map((query) => query.get('order'))).toEqual(['desc', 'desc', 'desc']);
  page.close();
}, 300_000);

test('a data folder of a newer Plumb is left alone, and said to be so', async () => {
  const newer = join(folder, 'newer');
  expect((await plumb(['import', SEED], { PLUMB_HOME: newer }).ended).code).toBe(0);
  await withStore(newer, ({ DB }) => DB.prepare("INSERT INTO d1_migrations (name) VALUES ('9999_newer.sql')").run());
  const refused = await plumb(['import', SEED], { PLUMB_HOME: newer }).ended;
  expect([refused.code, lines(refused)]).toEqual([
    1,
    [expect.stringMatching(/a newer Plumb, which knows 9999_newer\.sql: use that one/)],
  ]);
}, 300_000);

test('the engine’s folder may be reached by a link', async () => {
  const link = join(folder, 'cache');
  symlinkSync(dirname(engineFolder()), link);
  const { code, out } = await plumb(['engine'], { PLUMB_ENGINE_HOME: link }).ended;
  expect([code, out]).toEqual([0, expect.stringMatching(/compiled calls work/)]);
});

test('what cannot be done is said in one line', async () => {
  const wrong: [string[], RegExp][] = [
    [['import', join(folder, 'nowhere')], /there is no .*nowhere/],
    [['import', folder], /config\.json/],
    [['import', SEED, '--release', 'best'], /best is not a channel: stable or canary/],
    [['keys', 'revoke', 'key_01ARZ3NDEKTSV4RRFFQ69G5FAV'], /no such key/],
    [['keys', 'create', '--kind', 'pk'], /--origins/],
    [['keys', 'create', '--scopes', 'everything'], /scopes/],
  ];
  for (const [args, words] of wrong) {
    const ended = await ask(...args);
    expect([ended.code, lines(ended)], args.join(' ')).toEqual([1, [expect.stringMatching(words)]]);
  }
  const kind = await ask('keys', 'create', '--kind', 'zz');
  expect([kind.code, lines(kind)[0]]).toEqual([1, expect.stringMatching(/choices are sk, pk\.$/)]);
  const nobody = await plumb(['runs'], { PLUMB_HOME: join(folder, 'empty') }).ended;
  expect([nobody.code, lines(nobody)]).toEqual([1, [expect.stringMatching(/no Plumb runs here/)]]);
  const elsewhere = await plumb(['runs'], { PLUMB_HOME: home, PLUMB_URL: 'http://127.0.0.1:9' }).ended;
  expect([elsewhere.code, lines(elsewhere)]).toEqual([
    1,
    [expect.stringMatching(/wants a key of its own: set PLUMB_KEY/)],
  ]);
  const gone = await plumb(['runs'], { PLUMB_URL: 'http://127.0.0.1:9', PLUMB_KEY: 'sk_x' }).ended;
  expect([gone.code, lines(gone)]).toEqual([1, [expect.stringMatching(/cannot be reached/)]]);
  const other = await plumb(['runs'], { PLUMB_URL: `${system.dev.url}/docs#`, PLUMB_KEY: 'sk_x' }).ended;
  expect([other.code, lines(other)]).toEqual([1, [expect.stringMatching(/is not Plumb: check PLUMB_URL/)]]);
}, 300_000);
