// What TensorFlow frees, as the kernel sees it: kept for the next step of a small model, given back by a large one.
import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';

const engine = JSON.stringify(`${import.meta.dirname}/../../../trainer/engine`);

/** What a script prints in a process of its own: a number. */
function printed(script: string): number {
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
  expect(stdout, stderr).toMatch(/^-?\d+\n$/);
  return Number(stdout);
}

/** Megabytes more than before, after 500 MB of tensors have come and gone. */
const keptAfter = (weights: number) =>
  printed(`
    const { expectWeights, tf } = await import(${engine} + '/tf.ts');
    expectWeights(${weights});
    const before = process.memoryUsage.rss();
    const held = Array.from({ length: 5 }, () => tf.range(0, 25e6, 1));
    if (process.memoryUsage.rss() - before < 400e6) throw new Error('not there');
    tf.dispose(held);
    console.log(Math.round((process.memoryUsage.rss() - before) / 1e6));
  `);

test('a large model’s memory goes back when it is freed', () => {
  expect(keptAfter(100e6)).toBeLessThan(60);
  expect(keptAfter(5e6)).toBeGreaterThan(400);
});

test('a small model’s step lies where its tracing lay: 100 MB, and not the 100 of tracing beside them', () => {
  // eight tensors of 4 MB, that side by side and what it is multiplied to
  const peak = printed(`
    const { compile } = await import(${engine} + '/compile.ts');
    const { expectWeights, tf } = await import(${engine} + '/tf.ts');
    const { peakMemory } = await import(${engine} + '/../plan.ts');
    expectWeights(5e6);
    const x = tf.ones([1024, 1024]);
    const before = process.memoryUsage.rss();
    const powers = compile('powers', (x) => {
      const all = [x];
      while (all.length < 8) all.push(tf.matMul(all.at(-1), x)); // (N, N)
      return tf.sum(tf.matMul(tf.concat(all, 1), all[7], true)); // (8 N, N) → ()
    });
    powers(x).dataSync();
    console.log(Math.round((peakMemory() - before) / 1e6));
  `);
  expect(peak).toBeLessThan(190);
});

test('of a long trace neither what it was made of nor its litter stays in the heap', () => {
  const held = printed(`
    const { getHeapStatistics } = await import('node:v8');
    const { compile } = await import(${engine} + '/compile.ts');
    const { tf } = await import(${engine} + '/tf.ts');
    const held = () => getHeapStatistics().total_heap_size;
    const before = held();
    const long = compile('long', (x) => {
      for (let i = 0; i < 10_000; i++) x = tf.add(x, 1);
      return x;
    });
    long(tf.zeros([4]));
    console.log(Math.round((held() - before) / 1e6));
  `);
  expect(held).toBeLessThan(10);
});
