// Asks the launcher of the same machine (infra/local.ts) to start a run's trainer.
import type { LaunchRequest } from '../../../schema/wire-runs.ts';
import type { Settings } from '../../env.ts';

export async function launch(set: Settings, request: LaunchRequest): Promise<void> {
  if (!set.PLUMB_LAUNCHER_URL) throw new Error('no launcher is set (PLUMB_LAUNCHER_URL)');
  const response = await fetch(set.PLUMB_LAUNCHER_URL, {
    method: 'POST',
    headers: { Authorization: `Bearer ${set.PLUMB_LAUNCHER_TOKEN}`, 'Content-Type': 'application/json' },
    body: JSON.stringify(request),
    signal: AbortSignal.timeout(10_000),
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`the launcher answered ${response.status}`);
}
