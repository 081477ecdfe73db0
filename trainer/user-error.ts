import { MalformedFile } from '../schema/malformed.ts';

/** Something the user can mend; shown as one line, without a stack trace. */
export class UserError extends Error {}

/** Reads a file or folder; what is wrong in it is told with its path. */
export function reading<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof MalformedFile ? new UserError(`${path}: ${error.message}`) : error;
  }
}
