// Ctrl-C, SIGTERM and a closed terminal, for commands that started other processes.

/** Milliseconds in which a second signal is the first one's echo: a terminal sends Ctrl-C to a command and to what the command started. */
const ECHO = 500;

let stopping = false;
/** Whether a signal is being followed: what fails from then on fails for that reason. */
export const isStopping = (): boolean => stopping;

/** Closes once on the first signal; a second one ends the process at once. */
export function stopOnSignals(close: () => Promise<void>, exitCode = 0): void {
  let at = 0;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // In place of Miniflare's own listeners, which end the process before trainers are stopped and dev.json is gone.
    process.removeAllListeners(signal);
    process.on(signal, async () => {
      if (stopping && performance.now() - at < ECHO) return;
      if (stopping) process.exit(1);
      stopping = true;
      at = performance.now();
      await close();
      process.exit(exitCode);
    });
  }
}
