// One small random generator for everything in the trainer that must repeat: shuffles, initial weights, the seed world.

export interface Random {
  /** Uniform in [0, 1). */
  (): number;
  /** An integer in [from, below). */
  int(from: number, below: number): number;
  pick<T>(items: readonly T[]): T;
  normal(): number;
  shuffle<T>(items: T[]): T[];
}

/** sfc32 (Chris Doty-Humphrey, PractRand), seeded by a number and, where streams must differ, a name. */
export function random(seed: number, stream = ''): Random {
  let a = 0x9e3779b9;
  let b = seed | 0;
  let c = (seed / 2 ** 32) | 0;
  let counter = 1;
  const next = () => {
    const sum = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < stream.length; i++) {
    c ^= stream.charCodeAt(i);
    next();
  }
  for (let i = 0; i < 12; i++) next();
  const int = (from: number, below: number) => from + Math.floor(next() * (below - from));
  return Object.assign(next, {
    int,
    pick: <T>(items: readonly T[]) => items[int(0, items.length)]!,
    normal: () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
    shuffle: <T>(items: T[]) => {
      for (let i = items.length - 1; i > 0; i--) {
        const j = int(0, i + 1);
        [items[i], items[j]] = [items[j]!, items[i]!];
      }
      return items;
    },
  });
}
