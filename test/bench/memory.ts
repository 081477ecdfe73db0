// What training takes: the peak of the 5.8 million workload, and whether ten thousand steps take more than the first thousand. Each in a process
// of its own, whose memory counts by itself.
import { hasBfloat16 } from '../../trainer/engine/tf.ts';
import { compared, type Pair } from './pair.ts';
import { startOurs } from './peers.ts';

const GOAL_GB = 1.3;

export async function* memory(): AsyncGenerator<Pair> {
  const precision = hasBfloat16 ? 'bfloat16' : 'float32';
  const whole = await startOurs('step.ts', precision, '16', '128');
  await whole.rate(20);
  const figures = { ours: [whole.peak() / 1e9], theirs: [GOAL_GB] };
  whole.close();
  const note = `products in ${precision}, the engine's own included; beside what is aimed at`;
  yield compared({ name: 'memory/peak, train step 5.8M', unit: 'GB', more: false, goal: 1, ...figures, note });

  const small = await startOurs('step.ts', precision, '1', '128');
  const held: number[] = [];
  for (let thousand = 1; thousand <= 10; thousand++) {
    await small.rate(1000);
    held.push(small.held() / 1e6);
  }
  small.close();
  yield compared({
    name: 'memory/held after 10,000 steps',
    unit: 'MB',
    more: false,
    goal: 0.95,
    ours: [held.at(-1)!],
    theirs: [held[0]!],
    note: `beside 1,000; each thousand: ${held.map((mb) => mb.toFixed(0)).join(' ')}`,
  });
}
