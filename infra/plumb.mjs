#!/usr/bin/env node
// Entry of the plumb command. Plain JavaScript that any Node can read: it finds the Node that the project brings along and
// hands over to cli.ts, or says in one line what is missing.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

// npm that is killed outright tells nobody: whoever it started ends as on a signal.
if (process.env.npm_lifecycle_event) {
  const { ppid } = process;
  setInterval(() => {
    if (process.ppid !== ppid) process.kill(process.pid, 'SIGTERM');
  }, 500).unref();
}

const here = dirname(fileURLToPath(import.meta.url));
const major = Number(process.versions.node.split('.')[0]);
if (major >= 24) {
  await import('./cli.ts');
} else {
  const own = join(here, '../node_modules/node/bin/node');
  if (!existsSync(own)) {
    console.error(
      `plumb: this is Node ${process.versions.node} and the project's own Node 24 is not installed: run npm ci (with Node 20 or newer)`,
    );
    process.exit(1);
  }
  const child = spawn(own, [join(here, 'plumb.mjs'), ...process.argv.slice(2)], { stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => process.exit(code ?? (signal === 'SIGINT' ? 130 : 143)));
}
