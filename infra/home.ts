// Where a Plumb on this machine keeps its data and says where it serves. Loads nothing of the system.

import { readFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
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

/** A port that nothing listens on now. */
export const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as AddressInfo;
      probe.close(() => resolve(port));
    });
  });
