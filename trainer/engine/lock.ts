// One process at a time, on Linux: a lock that the kernel holds, and lets go of when its owner ends, however it ends.

import { createHash } from 'node:crypto';
import { createServer } from 'node:net';

type Unlock = () => Promise<void>;

/**
 * Holds a name, if no other process does.
 * @param name of what is locked, a folder's say: a socket in the kernel's own name space stands for it, no file
 * @returns what lets go, or null where another holds it
 */
export async function tryLock(name: string): Promise<Unlock | null> {
  if (process.platform !== 'linux') return async () => {};
  const address = `\0plumb-${createHash('sha256').update(name).digest('hex').slice(0, 32)}`;
  const server = createServer();
  const taken = await new Promise<boolean>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(true) : reject(error),
    );
    server.listen(address, () => resolve(false));
  });
  if (taken) return null;
  server.unref();
  return () => new Promise((resolve) => server.close(() => resolve()));
}

/** Waits until no other process holds the name, then holds it. @param waiting is called once if there is something to wait for */
export async function lock(name: string, waiting: () => void = () => {}): Promise<Unlock> {
  for (let told = false; ; told = true) {
    const unlock = await tryLock(name);
    if (unlock) return unlock;
    if (!told) waiting();
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
