// The decoder script shares its isolate's 128 MB with a model: what it is made of is no more than it needs.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

test('the decoder script holds no other library than the one that fills in chat templates', () => {
  const out = mkdtempSync(join(tmpdir(), 'plumb-script-'));
  const metafile = join(out, 'meta.json');
  const args = ['wrangler', 'deploy', '--dry-run', '--config', 'wrangler.decoder.jsonc', '--outdir', out];
  const { status, stdout } = spawnSync('npx', [...args, '--metafile', metafile], { encoding: 'utf8' });
  expect(status, stdout).toBe(0);
  const { outputs } = JSON.parse(readFileSync(metafile, 'utf8')) as {
    outputs: Record<string, { inputs: Record<string, { bytesInOutput: number }> }>;
  };
  rmSync(out, { recursive: true });
  const [, { inputs }] = Object.entries(outputs).find(([name]) => name.endsWith('decoder.js'))!;
  const libraries = Object.keys(inputs).flatMap((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1] ?? []);
  expect([...new Set(libraries)].filter((name) => !/^(wrangler|unenv)$|^@cloudflare\//.test(name))).toEqual([
    '@huggingface/jinja',
  ]);
  const bytes = Object.values(inputs).reduce((sum, { bytesInOutput }) => sum + bytesInOutput, 0);
  expect(bytes).toBeLessThan(250_000);
});
