// A signal ends a stage where nothing is lost: after the step under way, once its state is saved.

let signalled: number | null = null;

/** The exit code that a signal asks for, or null where none came. */
export const interrupted = (): number | null => signalled;

/** Seconds in which a signal is answered, saved or not: whoever asks stops waiting after ten. */
const GRACE = 9;

/** Milliseconds in which a second signal is the first one's echo: a terminal sends Ctrl-C to a command and to what the command started. */
const ECHO = 500;

/** From now on stages are asked to save and end. A second signal ends the process at once. */
export function saveOnSignals(): void {
  let at = 0;
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)
    process.on(signal, () => {
      if (signalled !== null && performance.now() - at < ECHO) return;
      if (signalled !== null) process.exit(code);
      signalled = code;
      at = performance.now();
      setTimeout(() => process.exit(code), 1000 * GRACE).unref();
    });
}
