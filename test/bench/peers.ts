// Python programs that do the same work, each in a process of its own that works when it is asked.
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { memoryOf, peakMemory } from '../../trainer/plan.ts';
import { UserError } from '../../trainer/user-error.ts';
import { venvPython } from '../support/venv.ts';

/** TRL 1.12 is the last with a PPOTrainer. */
const PACKAGES = ['trl==1.12.0', 'torch==2.15.0', 'transformers==5.24.0', 'accelerate==1.15.0', 'peft==0.21.2'];
const LLAMA = ['llama-cpp-python[server]==0.3.36', 'numpy'];

export const peersPython = () => venvPython('bench-peers', PACKAGES, '6 GB');
/** From its source, for the processor at hand. */
export const llamaPython = () => venvPython('bench-llama', LLAMA, '300 MB, after twenty minutes of compiling');

export interface Peer {
  /** Does so much work and tells how fast. */
  rate(amount: number): Promise<number>;
  /** Bytes that it held at most. */
  peak(): number;
  /** Bytes that it holds. */
  held(): number;
  close(): void;
}

/** Starts a script of peers/, which says "ready", then answers each number on its input with one on its output. */
export const startPeer = (script: string, ...args: string[]): Promise<Peer> => {
  const env = { OMP_NUM_THREADS: '2', CUDA_VISIBLE_DEVICES: '', HF_HUB_OFFLINE: '1' };
  return start(peersPython(), [join(import.meta.dirname, 'peers', script), ...args], env);
};

const llamaArgs = (args: string[]) => [join(import.meta.dirname, 'peers', 'llama.py'), ...args];
export const startLlama = (...args: string[]): Promise<Peer> => start(llamaPython(), llamaArgs(args), {});
/** Runs llama.py to its end. @returns what it printed */
export function llama(args: string[], input = ''): string {
  const { status, stdout } = spawnSync(llamaPython(), llamaArgs(args), { input, stdio: ['pipe', 'pipe', 'inherit'] });
  if (status !== 0) throw new UserError(`bench: llama.py ${args[0]} failed`);
  return stdout.toString();
}

/** Our own side of such a pair, of the same manners. */
export const startOurs = (script: string, ...args: string[]): Promise<Peer> =>
  start(process.execPath, [join(import.meta.dirname, script), ...args], {});

async function start(command: string, args: string[], env: Record<string, string>): Promise<Peer> {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...env } });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new UserError(`bench: ${args.join(' ')} ended before it answered`);
    return value as string;
  };
  while ((await next()) !== 'ready');
  return {
    rate: async (amount) => {
      child.stdin.write(`${amount}\n`);
      return Number(await next());
    },
    peak: () => peakMemory(child.pid),
    held: () => memoryOf(child.pid!, 'VmRSS'),
    close: () => child.stdin.end(),
  };
}
