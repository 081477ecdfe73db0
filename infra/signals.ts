// Ctrl-C, SIGTERM and a closed terminal, for commands that started other processes.

/** Closes once on the first signal; a second one ends the process at once. */
export function stopOnSignals(close: () => Promise<void>): void {
  let stopping = false;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // In place of Miniflare's own listeners, which end the process before trainers are stopped and dev.json is gone.
    process.removeAllListeners(signal);
    process.on(signal, async () => {
      if (stopping) process.exit(1);
      stopping = true;
      await close();
      process.exit(0);
    });
  }
}
