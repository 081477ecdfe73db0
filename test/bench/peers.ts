// Python programs that do the same work, each in a process of its own that works when it is asked.
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { UserError } from '../../trainer/user-error.ts';
import { venvPython } from '../support/venv.ts';

/** TRL 1.12 is the last with a PPOTrainer. */
const PACKAGES = ['trl==1.12.0', 'torch==2.15.0', 'transformers==5.24.0', 'accelerate==1.15.0', 'peft==0.21.2'];

export const peersPython = () => venvPython('bench-peers', PACKAGES, '6 GB');

export interface Peer {
  /** Does so much work and tells how fast. */
  rate(amount: number): Promise<number>;
  close(): void;
}

/** Starts a script of peers/, which says "ready", then answers each number on its input with one on its output. */
export async function startPeer(script: string, ...args: string[]): Promise<Peer> {
  const child: ChildProcess = spawn(peersPython(), [join(import.meta.dirname, 'peers', script), ...args], {
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
