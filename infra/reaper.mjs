// Ends what `plumb dev` started when that is killed without a chance to do so itself (kill -9, out of memory): workerd would keep
// the port, and a trainer the processor. Started by local.ts with a pipe; when the pipe ends, so has its owner. What the owner
// started, and what that started, has the owner's mark in its environment.
//
//   node reaper.mjs <mark>
import { readdirSync, readFileSync } from 'node:fs';

const mark = `PLUMB_OWNER=${process.argv[2]}\0`;
process.stdin.resume();
process.stdin.on('close', () => {
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    try {
      if (readFileSync(`/proc/${pid}/environ`, 'latin1').includes(mark)) process.kill(Number(pid), 'SIGKILL');
    } catch {
      // it is gone already, as it should be, or another user's
    }
  }
});
// A signal for all of the terminal's processes is the owner's to handle; the pipe tells when it has.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {});
