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
