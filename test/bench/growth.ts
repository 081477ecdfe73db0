// A training step as its batch and its context grow. If nothing but arithmetic counted, all would run at as many GFLOP/s; a cliff would show as a
// ratio far below the others.
import { hasBfloat16 } from '../../trainer/engine/tf.ts';
import { shareOf } from './flop.ts';
import { type Pair, pair } from './pair.ts';
import { flopOf, ours } from './torch.ts';

/** Rows × tokens of each. */
const SIZES = [
  [8, 128],
  [32, 128],
  [64, 128],
  [8, 256],
  [4, 512],
  [2, 1024],
] as const;
const MIDDLE = [16, 128] as const;

export async function* growth(): AsyncGenerator<Pair> {
  const precision = hasBfloat16 ? 'bfloat16' : 'float32';
  const speed = (rows: number, columns: number) => {
    const step = ours(precision, rows, columns);
    const steps = Math.ceil((6 * MIDDLE[0] * MIDDLE[1]) / (rows * columns));
    return () => (step(steps) * flopOf(columns)) / 1e9;
  };
  const middle = speed(...MIDDLE);
  for (const [rows, columns] of SIZES) {
    const step = speed(rows, columns);
    const grown = await pair({
      name: `growth/train step 5.8M, ${rows} × ${columns}`,
      unit: 'GFLOP/s',
      more: true,
      goal: 0.75,
      ours: step,
      theirs: middle,
    });
    const beside = { [`a step of ${MIDDLE.join(' × ')}`]: grown.theirs };
    const at =
      columns === MIDDLE[1]
        ? { over: `rows of ${columns} tokens a step`, x: rows, beside }
        : { over: 'tokens a row, 2,048 a step', x: columns, beside };
    yield { ...grown, note: `beside ${MIDDLE.join(' × ')}; ${shareOf(grown.ours, precision)}`, at };
  }
}
