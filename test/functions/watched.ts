// A D1 that is the real one, and notes what is asked of it.
export interface Watched {
  d1: D1Database;
  /** Round trips: a batch is one. */
  trips: number;
  statements: { sql: string; params: unknown[] }[];
}

const INNER = Symbol('the statement itself');
interface Note {
  sql: string;
  params: unknown[];
}

export function watch(real: D1Database): Watched {
  const watched: Watched = { d1: real, trips: 0, statements: [] };
  const bound = (target: object, name: PropertyKey) => {
    const value = Reflect.get(target, name);
    return typeof value === 'function' ? value.bind(target) : value;
  };
  const statement = (inner: D1PreparedStatement, note: Note): D1PreparedStatement =>
    new Proxy(inner, {
      get(target, name) {
        if (name === INNER) return { inner: target, note };
        if (name === 'bind') return (...params: unknown[]) => statement(target.bind(...params), { ...note, params });
        if (['all', 'run', 'raw', 'first'].includes(String(name))) {
          watched.trips++;
          watched.statements.push(note);
        }
        return bound(target, name);
      },
    });
  watched.d1 = new Proxy(real, {
    get(target, name) {
      if (name === 'prepare') return (sql: string) => statement(target.prepare(sql), { sql, params: [] });
      if (name === 'batch')
        return (statements: (D1PreparedStatement & { [INNER]: { inner: D1PreparedStatement; note: Note } })[]) => {
          watched.trips++;
          for (const one of statements) watched.statements.push(one[INNER].note);
          return target.batch(statements.map((one) => one[INNER].inner));
        };
      return bound(target, name);
    },
  });
  return watched;
}
