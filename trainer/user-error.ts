// What the user can mend, as an error of its own.

import { existsSync } from 'node:fs';
import { MalformedFile } from '../schema/malformed.ts';

/** Something the user can mend; shown as one line, without a stack trace. */
export class UserError extends Error {}

/** A folder that was named but is not there is said first, not which of its files are missing. */
export function requireFolder(folder: string): void {
  if (!existsSync(folder)) throw new UserError(`there is no folder ${folder}`);
}

/** Reads a file or folder; what is wrong in it is told with its path. */
export function reading<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EISDIR')
      throw new UserError(`${path} has a folder where a file is wanted`);
    if ((error as NodeJS.ErrnoException).code === 'ERR_FS_FILE_TOO_LARGE')
      throw new UserError(`${path} is larger than the 2 GiB that are read of one file`);
    throw error instanceof MalformedFile ? new UserError(`${path}: ${error.message}`) : error;
  }
}
