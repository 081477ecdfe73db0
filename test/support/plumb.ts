// The plumb command in a process of its own.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DevFile } from '../../infra/home.ts';

export const PLUMB = join(import.meta.dirname, '../../infra/plumb.mjs');

interface Ended {
  code: number | null;
  out: string;
}
export function plumb(args: string[], environment: Record<string, string> = {}, node: string[] = [], entry = PLUMB) {
  const child = spawn(process.execPath, [...node, entry, ...args], { env: { ...process.env, ...environment } });
  let out = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      out += chunk;
    });
  const ended = new Promise<Ended>((resolve) => child.on('close', (code) => resolve({ code, out })));
  return { child, ended, said: () => out };
}

/** Starts the system and waits until it says that it serves. */
export async function started(home: string, port: number) {
  const one = plumb(['dev', '--port', String(port)], { PLUMB_HOME: home });
  const ready = (async () => {
    while (!one.said().includes('Ctrl-C stops it')) await new Promise((resolve) => setTimeout(resolve, 100));
  })();
  await Promise.race([
    ready,
    one.ended.then(({ out }) => {
      throw new Error(`it ended: ${out}`);
    }),
  ]);
  return { ...one, dev: JSON.parse(readFileSync(join(home, 'dev.json'), 'utf8')) as DevFile };
}

export const lines = ({ out }: Ended) => out.trim().split('\n');
