// Ends what `plumb dev` started when that is killed without a chance to do so itself (kill -9, out of memory): workerd would keep
// the port, and a trainer the processor. Started by local.ts with a pipe; when the pipe ends, so does its owner.
//
//   node reaper.mjs <pid of the owner>
import { readdirSync, readFileSync } from 'node:fs';

const owner = Number(process.argv[2]);
let children = [];

/** The processes that stem from the given one, by /proc. */
function descendants(of) {
  const parents = new Map();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    } catch {
      // it ended while we looked
    }
  }
  const found = [of];
  for (const pid of found)
    for (const [child, parent] of parents) if (parent === pid && child !== process.pid) found.push(child);
  return found.slice(1);
}

const timer = setInterval(() => {
  children = descendants(owner);
}, 1000);
process.stdin.resume();
process.stdin.on('close', () => {
  clearInterval(timer);
  for (const pid of children) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // it is gone already, as it should be
    }
  }
});
// A signal for all of the terminal's processes is the owner's to handle; the pipe tells when it has.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {});
