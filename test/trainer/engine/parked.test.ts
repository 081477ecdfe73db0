// Weights of a large model lie in a file while they are idle. In a process of its own, whose memory is counted.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';

const folder = mkdtempSync('/var/tmp/plumb-test-');
afterAll(() => rmSync(folder, { recursive: true }));
const engine = join(import.meta.dirname, '../../../trainer/engine');
const inProcess = (body: string, { limits = 'true', ...environment }: Record<string, string> = {}) => {
  const script = `
    const { expectWeights, tf } = await import('${engine}/tf.ts');
    const { parked } = await import('${engine}/parked.ts');
    const { twin } = await import('${engine}/ops.ts');
    const { readdirSync } = await import('node:fs');
    const told = {};
    const megabytes = () => process.memoryUsage.rss() / 1e6;
    const settled = async () => { gc(); await new Promise((resolve) => setTimeout(resolve, 50)); gc(); };
    const refused = (read) => { try { read(); return false; } catch { return true; } };
    ${body}
    console.log(JSON.stringify(told));`;
  const run = `${limits}; exec "$0" --expose-gc --input-type=module -e "$1"`;
  const { stdout, stderr } = spawnSync('bash', ['-c', run, process.execPath, script], {
    encoding: 'utf8',
    env: { ...process.env, ...environment },
  });
  expect(stderr).toBe('');
  return JSON.parse(stdout);
};

const LARGE = `
    expectWeights(60e6);
    const weights = {
      first: tf.add(tf.range(0, 30e6, 1), 0.5),
      second: [tf.randomNormal([6000, 5000], 0, 1, 'float32', 3), tf.tensor1d([1, 2, 3])],
    };
    const sums = () => [tf.sum(weights.second[0]).dataSync()[0], weights.first.slice([29_999_997]).dataSync()[2], weights.second[1].dataSync()[1]];
    const before = sums();`;

test('they are out of memory but in use, then as they were', { timeout: 60_000 }, () => {
  const told = inProcess(
    `${LARGE}
    const full = megabytes();
    const open = () => readdirSync('/proc/self/fd').length;
    const files = open();
    {
      using idle = parked(weights);
      await settled();
      told.freed = full - megabytes();
      told.refused = refused(() => weights.second[1].dataSync());
      told.used = await idle.use(sums);
      await settled();
      told.freedAgain = full - megabytes();
      told.left = readdirSync(process.env.TMPDIR).length;
      told.fails = await idle.use(() => { throw new Error('as it must') }).catch(({ message }) => message);
      told.refusedAgain = refused(() => weights.second[1].dataSync());
    }
    told.before = before;
    told.after = sums();
    told.stillOpen = open() - files;`,
    { TMPDIR: folder },
  );
  expect(told.freed).toBeGreaterThan(200);
  expect(told.freedAgain).toBeGreaterThan(200);
  expect(told).toMatchObject({ refused: true, refusedAgain: true, fails: 'as it must', left: 0, stillOpen: 0 });
  expect(told.used).toEqual(told.before);
  expect(told.after).toEqual(told.before);
});

test('who has them beside keeps them: a clone, which is the same tensor, and a twin, which is not', {
  timeout: 60_000,
}, () => {
  const told = inProcess(`${LARGE}
    const clone = tf.clone(weights.second[1]);
    const other = twin(weights.first);
    const clones = [weights.first, weights.second[0]].map((tensor) => tf.clone(tensor));
    {
      using shared = parked(clones);
      await shared.use(() => {});
      told.shared = weights.first.slice([29_999_999]).dataSync()[0] === before[1];
    }
    tf.dispose(clones);
    using idle = parked(weights);
    told.clone = Array.from(clone.dataSync());
    told.twin = other.slice([29_999_999]).dataSync()[0] === before[1];
    told.refused = refused(() => weights.first.dataSync());`);
  expect(told).toEqual({ shared: true, clone: [1, 2, 3], twin: true, refused: true });
});

test('those of a small model stay where they are, and so do all where there is no room', { timeout: 60_000 }, () => {
  const small = inProcess(`
    const weights = tf.tensor1d([1, 2, 3]);
    using idle = parked(weights);
    told.read = Array.from(weights.dataSync());`);
  expect(small.read).toEqual([1, 2, 3]);
  // no room, no folder, a folder that lies in memory
  for (const without of [{ limits: 'ulimit -f 150000' }, { TMPDIR: '/nowhere' }, { TMPDIR: '/dev/shm' }]) {
    const told = inProcess(
      `${LARGE}
    const files = readdirSync('/proc/self/fd').length;
    {
      using idle = parked(weights);
      told.open = readdirSync('/proc/self/fd').length - files;
      told.read = Array.from(weights.second[1].dataSync());
      told.used = await idle.use(sums);
    }
    told.before = before;
    told.after = sums();`,
      without,
    );
    expect([told.read, told.open]).toEqual([[1, 2, 3], 0]);
    expect(told.used).toEqual(told.before);
    expect(told.after).toEqual(told.before);
  }
});
