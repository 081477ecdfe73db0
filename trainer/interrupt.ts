// A signal ends a stage where nothing is lost: after the step under way, once its state is saved.

/** Milliseconds in which a second signal is the first one's echo: a terminal sends Ctrl-C to a command and to what the command started. */
const ECHO = 500;

/** The signals that ask a process to end, and the exit codes that shells know them by. */
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/**
 * Follows the first signal that asks the process to end, in place of whatever listened before; an echo of it is none.
 * @param again what a second one does
 */
export function onSignal(first: (code: number) => void, again: (code: number) => void): void {
  let at: number | null = null;
  for (const [signal, code] of Object.entries(SIGNALS)) {
    process.removeAllListeners(signal);
    process.on(signal, () => {
      if (at === null) {
        at = performance.now();
        first(code);
      } else if (performance.now() - at >= ECHO) again(code);
    });
  }
}

let signalled: number | null = null;

/** The exit code that a signal asks for, or null where none came. */
export const interrupted = (): number | null => signalled;

/** Seconds in which a signal is answered, saved or not: whoever asks stops waiting after ten. */
export const GRACE = 9;

/** From now on stages are asked to save and end. A second signal ends the process at once. */
export function saveOnSignals(): void {
  onSignal(
    (code) => {
      signalled = code;
      setTimeout(() => process.exit(code), 1000 * GRACE).unref();
    },
    (code) => process.exit(code),
  );
}
