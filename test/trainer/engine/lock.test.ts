import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { lock } from '../../../trainer/engine/lock.ts';

const name = `test ${process.pid}`;

test('one holds it at a time, the others wait their turn', async () => {
  let inside = 0;
  let most = 0;
  let waited = 0;
  const work = async () => {
    const unlock = await lock(name, () => waited++);
    most = Math.max(most, ++inside);
    await new Promise((resolve) => setTimeout(resolve, 30));
    inside--;
    await unlock();
  };
  await Promise.all([work(), work(), work()]);
  expect(most).toBe(1);
  expect(waited).toBe(2);
});

test('a process that is killed holds nothing any more', async () => {
  const program = `import { lock } from ${JSON.stringify(join(import.meta.dirname, '../../../trainer/engine/lock.ts'))};
    await lock(${JSON.stringify(name)}); console.log('held'); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  let waited = false;
  const unlock = lock(name, () => {
    waited = true;
    child.kill('SIGKILL');
  });
  await (await unlock)();
  expect(waited).toBe(true);
});
