// One process at a time, on Linux: a lock that the kernel holds, and lets go of when its owner ends, however it ends.

import { createHash } from 'node:crypto';
import { createServer } from 'node:net';

/**
 * Waits until no other process holds the name, then holds it.
 * @param name of what is locked, a folder's say: a socket in the kernel's own name space stands for it, no file
 * @param waiting is called once if there is something to wait for
 * @returns what lets go
 */
export async function lock(name: string, waiting: () => void = () => {}): Promise<() => Promise<void>> {
  const address = `\0plumb-${createHash('sha256').update(name).digest('hex').slice(0, 32)}`;
  for (let told = false; ; told = true) {
    const server = createServer();
    const taken = await new Promise<boolean>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) =>
        error.code === 'EADDRINUSE' ? resolve(true) : reject(error),
      );
      server.listen(address, () => resolve(false));
    });
    if (!taken) return () => new Promise((resolve) => server.close(() => resolve()));
    if (!told) waiting();
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
