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
    throw error instanceof MalformedFile ? new UserError(`${path}: ${error.message}`) : error;
  }
}
