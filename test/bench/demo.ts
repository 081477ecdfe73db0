// One round of the demo as its user runs it, stage by stage, beside what each is meant to take on two cores. There is no other side to
// run in turn: nothing else closes the loop.

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { type Budget, SUPPORT_DESK, secondsOf } from '../../trainer/seed/scene.ts';
import type { Pair } from './pair.ts';

export async function* demo(): AsyncGenerator<Pair> {
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    [join(import.meta.dirname, '../../infra/plumb.mjs'), 'demo', '--rounds', '1', '--json'],
    { encoding: 'utf8', maxBuffer: 1 << 26 },
  );
  const last = stdout.trim().split('\n').at(-1) ?? '';
  if (!last.startsWith('{')) throw new Error(`the demo ended with ${status}: ${stderr.trim().split('\n').at(-1)}`);
  const { laps } = JSON.parse(last) as { laps: Record<string, number> };
  for (const [lap, seconds] of Object.entries(laps)) {
    const stage = lap.split(' ')[0] as keyof Budget;
    const budget = secondsOf(SUPPORT_DESK.budget, stage);
    yield {
      name: `demo/${stage}`,
      unit: 's',
      ours: seconds,
      theirs: budget,
      ratio: budget / seconds,
      goal: 1,
      rounds: 1,
      note: stage === 'evaluation' ? 'beside its budget, which is for two rounds' : 'beside its budget',
    };
  }
}
