// Rows that a tiny model learns in seconds.
import type { Row } from '../../trainer/data.ts';
import type { Random } from '../../trainer/random.ts';

/** An answer counts on from the prompt's token: 7 → 8 9 10 EOS. */
export const countingRow = (rng: Random): Row => {
  const from = rng.int(2, 28);
  return { prompt: [from], answer: [from + 1, from + 2, from + 3, 1] };
};
