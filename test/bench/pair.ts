// What every benchmark is made of: two things that do the same work, measured in turn within one run.

/** A line of `npm run bench -- --json`. A ratio above 1 means ours is better. */
export interface Pair {
  name: string;
  unit: string;
  ours: number;
  theirs: number;
  ratio: number;
  /** The ratio aimed at. */
  goal: number;
  rounds: number;
  note?: string;
  /** Of a row that shows how a figure grows: what with, how much of that, and the lines that it is drawn beside. */
  at?: { over: string; x: number; beside: Record<string, number> };
}

interface Contest {
  name: string;
  unit: string;
  /** Whether a larger figure is the better one: true of rates, false of times. */
  more: boolean;
  goal: number;
  ours: () => number | Promise<number>;
  theirs: () => number | Promise<number>;
  note?: string;
}

export const ROUNDS = 5;

/** Measures both sides in turn, each going first every other round, and takes the medians. */
export async function pair({ name, unit, more, goal, ours, theirs, note }: Contest): Promise<Pair> {
  const figures: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
  for (let round = 0; round < ROUNDS; round++) {
    if (round % 2 === 0) figures.ours.push(await ours());
    figures.theirs.push(await theirs());
    if (round % 2 === 1) figures.ours.push(await ours());
  }
  return compared({ name, unit, more, goal, ...figures, ...(note && { note }) });
}

/** The medians of figures that were taken in turn. */
export function compared({
  ours,
  theirs,
  more,
  ...rest
}: Pick<Contest, 'name' | 'unit' | 'more' | 'goal' | 'note'> & { ours: number[]; theirs: number[] }): Pair {
  const [a, b] = [median(ours), median(theirs)];
  const { note, ...named } = rest;
  return { ...named, ours: a, theirs: b, ratio: more ? a / b : b / a, rounds: ours.length, ...(note && { note }) };
}

export const median = (values: number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
};
