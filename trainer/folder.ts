// Folders and files that are written to.

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname, resolve } from 'node:path';

/** Makes a folder and those above it, one by one: Node's recursive mkdir never ends where the kernel refuses one (/proc). */
export function makeFolder(path: string): void {
  const missing: string[] = [];
  for (let folder = resolve(path); !existsSync(folder); folder = dirname(folder)) missing.unshift(folder);
  for (const folder of missing) {
    try {
      mkdirSync(folder);
    } catch (error) {
      if (!existsSync(folder)) throw error; // else another process was faster
    }
  }
}

/** Does what writes to a path. Where there is no more room, Node says so without naming what was written. */
export function writing<T>(path: string, write: () => T): T {
  try {
    return write();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (['ENOSPC', 'EDQUOT', 'EFBIG'].includes(code ?? '') && !message.includes(path))
      (error as Error).message = `${path}: ${message}`;
    throw error;
  }
}

/** Writes so that a reader sees the whole file or none, and a power cut leaves one or the other: another name, synced, renamed. */
export function writeWhole(path: string, bytes: Uint8Array, mode = 0o666): void {
  const part = `${path}.part`;
  const file = openSync(part, 'w', mode);
  try {
    try {
      writing(path, () => {
        for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
        fsyncSync(file);
      });
    } finally {
      closeSync(file);
    }
    renameSync(part, path);
  } catch (error) {
    rmSync(part, { force: true }); // where the disk is full, half a file is in the way
    throw error;
  }
  // The rename is a change of the folder.
  const folder = openSync(dirname(path), 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
