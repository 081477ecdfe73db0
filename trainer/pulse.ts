// A thread that beats for a run while this one is held up (pulse.worker.ts).

import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

export interface Pulse {
  url: string;
  run: string;
  token: string;
  fence: number;
  /** Milliseconds without a beat after which the thread gives one. */
  interval: number;
  /** When the last beat was, by whichever thread. */
  last: SharedArrayBuffer;
}

export function startPulse(job: Omit<Pulse, 'last'>) {
  const last = new SharedArrayBuffer(8);
  const lastBeat = new BigInt64Array(last);
  const thread = new Worker(join(import.meta.dirname, 'pulse.worker.ts'), { workerData: { ...job, last } });
  thread.unref();
  return {
    note: (stage: string, step: number, steps: number) => thread.postMessage({ stage, step, steps }),
    beaten: () => {
      Atomics.store(lastBeat, 0, BigInt(Date.now()));
    },
    stop: () => {
      thread.terminate();
    },
  };
}
