// What TensorFlow frees, as the kernel sees it: kept for the next step of a small model, given back by a large one.
import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';

/** Megabytes more than before, after 500 MB of tensors have come and gone. */
function keptAfter(weights: number): number {
  const script = `
    const { expectWeights, tf } = await import(${JSON.stringify(`${import.meta.dirname}/../../../trainer/engine/tf.ts`)});
    expectWeights(${weights});
    const before = process.memoryUsage.rss();
    const held = Array.from({ length: 5 }, () => tf.range(0, 25e6, 1));
    if (process.memoryUsage.rss() - before < 400e6) throw new Error('not there');
    tf.dispose(held);
    console.log(Math.round((process.memoryUsage.rss() - before) / 1e6));
  `;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
  expect(stdout, stderr).toMatch(/^-?\d+\n$/);
  return Number(stdout);
}

test('a large model’s memory goes back when it is freed', () => {
  expect(keptAfter(100e6)).toBeLessThan(60);
  expect(keptAfter(5e6)).toBeGreaterThan(400);
});

test('of a long trace neither what it was made of nor its litter stays in the heap', () => {
  const engine = JSON.stringify(`${import.meta.dirname}/../../../trainer/engine`);
  const script = `
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
  `;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' });
  expect(stdout, stderr).toMatch(/^-?\d+\n$/);
  expect(Number(stdout)).toBeLessThan(10);
});
