// Where a Plumb on this machine keeps its data and says where it serves. Loads nothing of the system.

import { randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';

export const ROOT = join(import.meta.dirname, '..');
export const homeFolder = (): string => process.env.PLUMB_HOME || join(ROOT, '.plumb');
export const DEFAULT_PORT = 8787;

export interface DevFile {
  url: string;
  pid: number;
  keys: { secret: string; public: string };
  policy: string;
}

/** What dev.json says, if it is there and whole. */
export function devFile(home = homeFolder()): DevFile | null {
  try {
    return JSON.parse(readFileSync(join(home, 'dev.json'), 'utf8'));
  } catch {
    return null;
  }
}

/** Whether nothing listens there. */
export const portFree = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(false));
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
  });

/**
 * A port that nothing listens on now, below those that systems give out by themselves (Linux from 32768): whoever asks for any port
 * before this one is used, the servers of the same start among them, does not get it.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(20_000, 32_768);
    if (await portFree(port)) return port;
  }
}
