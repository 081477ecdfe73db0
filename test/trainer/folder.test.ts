// What a power cut leaves cannot be tried in a test; in which order the system is told can.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { writeWhole } from '../../trainer/folder.ts';

const told = vi.hoisted(() => ({ calls: [] as string[], names: new Map<number, string>() }));
vi.mock(import('node:fs'), async (original) => {
  const real = await original();
  const noted = { ...real };
  noted.openSync = (path, ...rest) => {
    const file = real.openSync(path, ...rest);
    told.names.set(file, String(path));
    return file;
  };
  noted.writeSync = ((file: number, ...rest: [Uint8Array]) => {
    told.calls.push(`write ${told.names.get(file)}`);
    return real.writeSync(file, ...rest);
  }) as typeof real.writeSync;
  noted.fsyncSync = (file) => {
    told.calls.push(`sync ${told.names.get(file)}`);
    real.fsyncSync(file);
  };
  noted.renameSync = (from, to) => {
    told.calls.push(`rename ${from} ${to}`);
    real.renameSync(from, to);
  };
  return noted;
});

test('a file is on the disk before it has its name, and its name before anybody is told', () => {
  const folder = mkdtempSync(join(tmpdir(), 'plumb-folder-'));
  const path = join(folder, 'state.json');
  try {
    writeWhole(path, new Uint8Array([1, 2, 3]));
    expect(told.calls).toEqual([
      `write ${path}.part`,
      `sync ${path}.part`,
      `rename ${path}.part ${path}`,
      `sync ${folder}`,
    ]);
    expect([...readFileSync(path)]).toEqual([1, 2, 3]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
