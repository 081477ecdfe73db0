// Python packages that something is held against, each set in a virtual environment of its own that is made at the first use and kept beside
// the training engine.
import { spawnSync } from 'node:child_process';
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { makeFolder } from '../../trainer/folder.ts';
import { UserError } from '../../trainer/user-error.ts';

/**
 * @param name of the environment; other packages under the same name replace it
 * @returns its Python
 */
export function venvPython(name: string, packages: string[], size: string): string {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'plumb');
  const venv = join(cache, name);
  const ready = join(venv, 'ready.txt');
  if (!existsSync(ready)) {
    console.error(`installing ${packages.join(', ')} into ${venv} (some ${size})`);
    makeFolder(cache);
    rmSync(venv, { recursive: true, force: true });
    const steps = [
      ['python3', '-m', 'venv', venv],
      [join(venv, 'bin/python'), '-m', 'pip', 'install', '--quiet', ...packages],
    ];
    for (const [command, ...args] of steps)
      if (spawnSync(command!, args, { stdio: ['ignore', 'ignore', 'inherit'] }).status !== 0)
        throw new UserError(`${command} ${args[0]} ${args[1]} failed: Python with venv and pip is needed`);
    writeFileSync(`${ready}.part`, packages.join('\n'));
    renameSync(`${ready}.part`, ready);
  }
  return join(venv, 'bin/python');
}
