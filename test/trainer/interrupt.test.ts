// What a signal does to a process that trains.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { GRACE } from '../../trainer/interrupt.ts';
import { SEED_FOLDER } from '../support/seed.ts';

const trainer = JSON.stringify(`${import.meta.dirname}/../../trainer`);

test('a signal ends what computes without a pause, and is counted from when it came', async () => {
  expect(GRACE).toBeLessThan(10);
  const script = `
    const { endInTime } = await import(${trainer} + '/engine/tf.ts');
    const { saveOnSignals } = await import(${trainer} + '/interrupt.ts');
    saveOnSignals();
    endInTime(1);
    console.log('listens');
    for (const began = Date.now(); Date.now() < began + 60_000; );
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
  let said = '';
  child.stderr.on('data', (chunk) => {
    said += chunk;
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const asked = performance.now();
  child.kill('SIGTERM');
  const code = await new Promise((resolve) => child.on('close', resolve));
  expect(code).toBe(143);
  expect(performance.now() - asked).toBeLessThan(20_000);
  expect(said).toMatch(/^ended while it computed, before it could save: .*\n$/);
});

test('a stage on files that computes without a pause ends within ten seconds, too', async () => {
  const out = mkdtempSync(join(tmpdir(), 'plumb-interrupt-'));
  const script = `
    const { savepoint } = await import(${trainer} + '/savepoint.ts');
    const { readPolicy } = await import(${trainer} + '/policy.ts');
    const [out, base] = ${JSON.stringify([out, SEED_FOLDER])};
    await savepoint('sft', { out, base }, [], readPolicy(base).config);
    console.log('listens');
    for (const began = Date.now(); Date.now() < began + 60_000; );
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'ignore'] });
  const closed = new Promise((resolve) => child.on('close', resolve));
  await Promise.race([closed, new Promise((resolve) => child.stdout.once('data', resolve))]);
  const asked = performance.now();
  child.kill('SIGTERM');
  expect(await closed).toBe(143);
  const seconds = (performance.now() - asked) / 1000;
  expect(seconds).toBeGreaterThan(GRACE - 1); // it has that time to save
  expect(seconds).toBeLessThan(30); // not the minute
  rmSync(out, { recursive: true });
}, 90_000);

test('a second signal ends what still saves at once, but not the echo of the first', async () => {
  const script = `
    const { saveOnSignals } = await import(${trainer} + '/interrupt.ts');
    saveOnSignals();
    setInterval(() => {}, 1000);
    console.log('listens');
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
  let code: number | null = null;
  const closed = new Promise((resolve) => child.on('close', resolve));
  child.on('close', (own) => {
    code = own;
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  child.kill('SIGINT');
  child.kill('SIGTERM'); // as a terminal's Ctrl-C comes twice
  await new Promise((resolve) => setTimeout(resolve, 1500));
  expect(code).toBeNull();
  const asked = performance.now();
  child.kill('SIGTERM');
  await closed;
  expect(code).toBe(143);
  expect(performance.now() - asked).toBeLessThan((1000 * GRACE) / 2);
});
