// A training step of 5.8 million weights on 2,048 tokens, beside the same model in PyTorch, plain and compiled, in float32 and bfloat16; before it
// products alone, of whose speed the steps' is told as a share. Two threads each.
import { mapTree } from '../../trainer/engine/compile.ts';
import { hasBfloat16, tf } from '../../trainer/engine/tf.ts';
import { hiddenStates, initialParameters, type Parameters, statesBefore, tokenLogprobs } from '../../trainer/model.ts';
import { adamState, trainer } from '../../trainer/optimizer.ts';
import { type Batch, batchOf, type Predictions, pack, predictionsOf } from '../../trainer/pack.ts';
import { random } from '../../trainer/random.ts';
import { forwardFlop, PRODUCT, productsAlone, shareOf } from './flop.ts';
import { TIED as MODEL } from './models.ts';
import { type Pair, pair } from './pair.ts';
import { startPeer } from './peers.ts';

const [ROWS, COLUMNS] = [16, 128];
const SHORT = { float32: 'f32', bfloat16: 'bf16' };
const ADAM = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, clipNorm: 1 };
/** Multiplications and additions of a token's step, in rows of T. */
export const flopOf = (T: number): number => 3 * forwardFlop(MODEL, 1, T, 1);

/** Steps of ours on B rows of T tokens: how many tokens a second. */
export function ours(precision: 'float32' | 'bfloat16', B = ROWS, T = COLUMNS): (steps: number) => number {
  const rng = random(1);
  const rows = Array.from({ length: B }, () => {
    const tokens = Array.from({ length: T }, () => rng.int(2, MODEL.vocab_size));
    return { prompt: tokens.slice(0, 1), answer: tokens.slice(1) };
  });
  const shape = { rows: B, columns: T };
  const [packed] = pack(rows, [rows.map((_, i) => i)], shape, 0);
  const part = { batch: batchOf(packed!, shape), predictions: predictionsOf(packed!, 1 / (B * T)) };
  const step = trainer(
    `step in ${precision}`,
    (weights: Parameters, { batch, predictions }: { batch: Batch; predictions: Predictions }) => {
      const before = statesBefore(hiddenStates(MODEL, weights, batch), predictions); // (B T, D) → (N, D)
      const { logprobs } = tokenLogprobs(weights, before, predictions.target); // (N)
      return { loss: tf.neg(tf.sum(tf.mul(logprobs, predictions.weight))) };
    },
    ADAM,
    precision,
  );
  let parameters = initialParameters(MODEL, rng);
  let adam = adamState(parameters);
  const run = (steps: number) => {
    const started = performance.now();
    for (let i = 0; i < steps; i++)
      ({ parameters, adam } = step(parameters, adam, 1e-3, [mapTree(part, (tensor) => tf.clone(tensor))]));
    return (1000 * steps * B * T) / (performance.now() - started);
  };
  run(2); // traces and compiles
  return run;
}

export async function* torch(): AsyncGenerator<Pair> {
  for (const precision of hasBfloat16 ? (['float32', 'bfloat16'] as const) : (['float32'] as const)) {
    const product = productsAlone(precision);
    const peer = await startPeer('step.py', 'product', precision);
    yield await pair({
      name: `torch/products alone ${SHORT[precision]}`,
      unit: 'GFLOP/s',
      more: true,
      goal: 1,
      ours: product,
      theirs: async () => ((await peer.rate(1)) * 2 * PRODUCT ** 3) / 1e9,
      note: `of ${PRODUCT} × ${PRODUCT}: the peak that steps are a share of`,
    });
    peer.close();
  }
  const fast = hasBfloat16 ? ours('bfloat16') : null;
  const plain = ours('float32');
  const contests = [
    ['', 'compile', 'bfloat16', 1.5, fast ?? plain],
    ['', 'eager', 'float32', 3.5, fast ?? plain],
    [' f32', 'compile', 'float32', 2, plain],
  ] as const;
  for (const [of, mode, dtype, goal, step] of contests) {
    const peer = await startPeer('step.py', mode, dtype);
    const precision = step === plain ? 'float32' : 'bfloat16';
    const row = await pair({
      name: `torch/train step 5.8M${of} vs torch ${mode} ${SHORT[dtype]}`,
      unit: 'tok/s',
      more: true,
      goal,
      ours: () => step(6),
      theirs: () => peer.rate(6),
    });
    peer.close();
    const speed = (row.ours * flopOf(COLUMNS)) / 1e9;
    yield { ...row, note: `ours in ${precision}: ${shareOf(speed, precision)}` };
  }
}
