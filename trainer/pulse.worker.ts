// Keeps a run's lease while the trainer's own thread cannot: native code holds it up, and to compile a step of a large model takes
// longer than a lease. A trainer that has told of no progress for long is not kept alive.

import { parentPort, workerData } from 'node:worker_threads';
import type { Pulse } from './pulse.ts';

const { url, run, token, fence, interval, last } = workerData as Pulse;
const LONGEST_MS = 30 * 60_000;
const lastBeat = new BigInt64Array(last);
let said = { stage: 'start', step: 0, steps: 0 };
let since = Date.now();
parentPort!.on('message', (progress: typeof said) => {
  said = progress;
  since = Date.now();
});

setInterval(() => {
  const now = Date.now();
  if (now - since > LONGEST_MS || now - Number(Atomics.load(lastBeat, 0)) < interval) return;
  Atomics.store(lastBeat, 0, BigInt(now));
  // What comes of it, cancelled or gone, the trainer learns by its own next beat.
  fetch(`${url}/v1/jobs/${run}/heartbeat`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ fence, ...said, metrics: [] }),
  }).then(
    (response) => response.body?.cancel(),
    () => {},
  );
}, interval / 2);
