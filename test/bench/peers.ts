// Python programs that do the same work, each in a process of its own that works when it is asked: torch and TRL in a virtual
// environment, which is made at the first run and kept beside the training engine.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { makeFolder } from '../../trainer/folder.ts';
import { UserError } from '../../trainer/user-error.ts';

/** TRL 1.12 is the last with a PPOTrainer. */
const PACKAGES = ['trl==1.12.0', 'torch==2.15.0', 'transformers==5.24.0', 'accelerate==1.15.0', 'peft==0.21.2'];

function python(): string {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'plumb');
  const venv = join(cache, 'bench-peers');
  const ready = join(venv, 'ready.txt');
  if (!existsSync(ready)) {
    console.error(`bench: installing ${PACKAGES.join(', ')} into ${venv} (some 6 GB)`);
    makeFolder(cache);
    rmSync(venv, { recursive: true, force: true });
    const steps = [
      ['python3', '-m', 'venv', venv],
      [join(venv, 'bin/python'), '-m', 'pip', 'install', '--quiet', ...PACKAGES],
    ];
    for (const [command, ...args] of steps)
      if (spawnSync(command!, args, { stdio: ['ignore', 'ignore', 'inherit'] }).status !== 0)
        throw new UserError(`bench: ${command} ${args[0]} ${args[1]} failed: Python with venv and pip is needed`);
    writeFileSync(`${ready}.part`, PACKAGES.join('\n'));
    renameSync(`${ready}.part`, ready);
  }
  return join(venv, 'bin/python');
}

export interface Peer {
  /** Does so much work and tells how fast. */
  rate(amount: number): Promise<number>;
  close(): void;
}

/** Starts a script of peers/, which says "ready", then answers each number on its input with one on its output. */
export async function startPeer(script: string, ...args: string[]): Promise<Peer> {
  const child: ChildProcess = spawn(python(), [join(import.meta.dirname, 'peers', script), ...args], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, OMP_NUM_THREADS: '2', CUDA_VISIBLE_DEVICES: '', HF_HUB_OFFLINE: '1' },
  });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new UserError(`bench: ${script} ${args.join(' ')} ended before it answered`);
    return value as string;
  };
  while ((await next()) !== 'ready');
  return {
    rate: async (amount) => {
      child.stdin!.write(`${amount}\n`);
      return Number(await next());
    },
    close: () => child.stdin!.end(),
  };
}
