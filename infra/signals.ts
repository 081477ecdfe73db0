// Ctrl-C, SIGTERM and a closed terminal, for commands that started other processes.

import { onSignal } from '../trainer/interrupt.ts';

let stopping = false;
/** Whether a signal is being followed: what fails from then on fails for that reason. */
export const isStopping = (): boolean => stopping;

/** Closes once on the first signal; a second one ends the process at once. */
export function stopOnSignals(close: () => Promise<void>, exitCode = 0): void {
  // Miniflare has listeners of its own, which would end the process before trainers are stopped and dev.json is gone.
  onSignal(
    async () => {
      stopping = true;
      await close();
      process.exit(exitCode);
    },
    () => process.exit(1),
  );
}
