// On one machine a command writes beside the Worker, by a process of its own, and SQLite refuses who comes at the same moment, in the database
// and in the bucket. Nothing was written then, so it is tried again.

const TRIES = 12;
/** The bucket on one machine says no more than this of it. */
const PASSING = /SQLITE_BUSY|: Unspecified error \(0\)/;

export async function patiently<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Error && PASSING.test(error.message)) || tries === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.random() * Math.min(500, 10 * 2 ** tries)));
    }
  }
}

type Patient = D1PreparedStatement & { inner: D1PreparedStatement };

const statement = (inner: D1PreparedStatement): Patient =>
  ({
    inner,
    bind: (...values: unknown[]) => statement(inner.bind(...values)),
    first: (...column: [string]) => patiently(() => inner.first(...column)),
    run: () => patiently(() => inner.run()),
    all: () => patiently(() => inner.all()),
    raw: () => patiently(() => inner.raw()),
  }) as unknown as Patient;

export const patient = (d1: D1Database): D1Database =>
  ({
    prepare: (query: string) => statement(d1.prepare(query)),
    batch: (statements: Patient[]) => patiently(() => d1.batch(statements.map(({ inner }) => inner))),
  }) as unknown as D1Database;
