import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { engineFolder, setUpEngine } from '../../../trainer/engine/setup.ts';
import { download } from '../../../trainer/engine/wheel.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-setup-'));
let served = '';
const server = createServer((_, response) => void response.end(served)).listen(0, '127.0.0.1');
afterAll(() => {
  server.close();
  rmSync(folder, { recursive: true, force: true });
});

test('a wheel of another hash than the pinned one is thrown away; the next try takes the right one', async () => {
  const pip = join(folder, 'python');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/wheel`;
  const answer = JSON.stringify({ install: [{ download_info: { url } }] });
  writeFileSync(pip, `#!/bin/sh\necho '${answer}'\n`, { mode: 0o755 });
  const work = mkdtempSync(join(folder, 'work-'));
  const wheel = { requirement: 'tensorflow==0', sha256: createHash('sha256').update('the wheel').digest('hex') };
  const fetched = () => download(pip, wheel, work, 'it', () => {});

  served = 'the whee1';
  await expect(fetched()).rejects.toThrow('was thrown away');
  expect(readdirSync(work)).toEqual([]);
  served = 'the wheel';
  expect(readFileSync(await fetched(), 'utf8')).toBe('the wheel');
});

test('a package of the npm registry of another hash than package-lock.json’s is refused, and not unpacked', async () => {
  const programs = join(folder, 'programs');
  mkdirSync(join(programs, 'package'), { recursive: true });
  writeFileSync(join(programs, 'package/package.json'), '{}');
  const tarball = join(programs, 'other.tgz');
  execFileSync('tar', ['czf', tarball, '-C', programs, 'package']);
  const npm = `while [ $# -gt 1 ]; do [ "$1" = --pack-destination ] && cp '${tarball}' "$2"; shift; done; echo other.tgz`;
  writeFileSync(join(programs, 'npm'), `#!/bin/sh\n${npm}\n`, { mode: 0o755 });
  writeFileSync(join(programs, 'python3'), '#!/bin/sh\necho pip 24.0\n', { mode: 0o755 });
  vi.stubEnv('PATH', `${programs}:${process.env.PATH}`);
  vi.stubEnv('PLUMB_ENGINE', '');
  vi.stubEnv('PLUMB_ENGINE_HOME', join(folder, 'home'));
  try {
    await expect(setUpEngine()).rejects.toThrow(
      /^@tensorflow\/tfjs-node@\S+ does not have the hash of package-lock\.json: sha512-/,
    );
    expect(readdirSync(join(engineFolder(), 'work'))).toEqual(['other.tgz']);
  } finally {
    vi.unstubAllEnvs();
  }
});
