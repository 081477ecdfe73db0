import { expect, test } from 'vitest';
import { sftStateFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import type { Row } from '../../trainer/data.ts';
import { flatten, type Tree } from '../../trainer/engine/compile.ts';
import { random } from '../../trainer/random.ts';
import { type SftState, sft } from '../../trainer/sft.ts';
import { countingRow } from '../support/counting.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const CONFIG = { ...SFT_DEFAULTS, steps: 60, batch: 8, shape: SHAPE, learningRate: 1e-2, warmup: 5 };
const rng = random(4);
const rows = Array.from({ length: 50 }, () => countingRow(rng));
const seen = new Set(rows.map(({ prompt }) => prompt[0]));
const held = Array.from({ length: 20 }, () => countingRow(rng)).filter(({ prompt }) => seen.has(prompt[0]));
const bytes = (tree: Tree) => flatten(tree).map((tensor) => Array.from(tensor.dataSync()));

test('the loss on held-out rows falls from a guess among all tokens to little', async () => {
  const losses: number[] = [];
  const { loss } = await sft(TINY, tinyParameters(), rows, held, { ...CONFIG, steps: 150 }, ({ metrics }) => {
    losses.push(metrics['loss/train']!);
  });
  expect(losses[0]).toBeGreaterThan(2.5);
  expect(loss).toBeLessThan(0.5);
});

test('training that goes on from a saved step ends with the same weights, bit for bit', async () => {
  let saved: { file: Uint8Array; scalars: string } | undefined;
  const whole = await sft(
    TINY,
    tinyParameters(),
    rows,
    held,
    CONFIG,
    () => {},
    null,
    ({ trained, adam, best, ...scalars }) => {
      if (scalars.step === 23) saved = { file: treeToFile({ trained, adam }), scalars: JSON.stringify(scalars) };
    },
  );
  const from = sftStateFromFile(saved!.file, JSON.parse(saved!.scalars), tinyParameters());
  const steps: number[] = [];
  const resumed = await sft(TINY, tinyParameters(), rows, held, CONFIG, ({ step }) => void steps.push(step), from);
  expect(steps[0]).toBe(24);
  expect(resumed.loss).toBe(whole.loss);
  expect(bytes(resumed.parameters)).toEqual(bytes(whole.parameters));
});

test('so it is where batches of one call and of several take turns: a call alone gives the same bits as a sum of one', async () => {
  const longer = (row: Row, i: number): Row => (i % 2 > 0 ? row : { ...row, prompt: Array(50).fill(row.prompt[0]) });
  const mixed = rows.map(longer);
  const config = { ...CONFIG, steps: 13, batch: 4 };
  const files: Uint8Array[] = [];
  const keep = (tensors: Tree) => void files.push(treeToFile(tensors));
  const save = (state: SftState) => keep({ trained: state.trained, adam: state.adam });
  const whole = await sft(TINY, tinyParameters(), mixed, [], config, () => {}, null, save);
  const loss = { last: null, least: null, sinceLeast: 0 };
  // The batches after the twelfth step are one call each, and some before it were two.
  const from = sftStateFromFile(files[11]!, { step: 12, loss }, tinyParameters());
  const resumed = await sft(TINY, tinyParameters(), mixed, [], config, () => {}, from);
  expect(bytes(resumed.parameters)).toEqual(bytes(whole.parameters));
});

test('with patience it ends once the held-out loss has not fallen for so long, and the best weights come out, resumed or not', async () => {
  // So large a rate that it learns and then spoils it.
  const config = { ...CONFIG, steps: 100, learningRate: 0.3, warmup: 30, patience: 2 };
  const measured: number[] = [];
  let last = 0;
  let saved: { file: Uint8Array; scalars: string } | undefined;
  const { parameters, loss } = await sft(
    TINY,
    tinyParameters(),
    rows,
    held,
    config,
    ({ step, metrics }) => {
      last = step;
      if ('loss/held_out' in metrics) measured.push(metrics['loss/held_out']!);
    },
    null,
    ({ trained, adam, best, ...scalars }) => {
      if (best && scalars.loss.sinceLeast === 1 && !saved)
        saved = { file: treeToFile({ trained, adam, best }), scalars: JSON.stringify(scalars) };
    },
  );
  const least = Math.min(...measured);
  expect(last).toBeLessThan(config.steps);
  expect(measured.slice(-3)).toEqual([least, expect.any(Number), expect.any(Number)]);
  expect(loss).toBe(least);
  const from = sftStateFromFile(saved!.file, JSON.parse(saved!.scalars), tinyParameters());
  const resumed = await sft(TINY, tinyParameters(), rows, held, config, () => {}, from);
  expect(bytes(resumed.parameters)).toEqual(bytes(parameters));
  expect(resumed.loss).toBe(least);
});

test('with patience, training that only makes it worse gives back what it began with', async () => {
  const config = { ...CONFIG, steps: 20, learningRate: 3, warmup: 1, patience: 2 };
  const measured: number[] = [];
  const { parameters, loss } = await sft(TINY, tinyParameters(), rows, held, config, ({ metrics }) => {
    if ('loss/held_out' in metrics) measured.push(metrics['loss/held_out']!);
  });
  expect(Math.min(...measured.slice(1))).toBeGreaterThan(measured[0]!);
  expect(loss).toBe(measured[0]);
  expect(bytes(parameters)).toEqual(bytes(tinyParameters()));
});

test('the rate rises over the warm-up and falls in a line or along half a cosine, to a fiftieth at least', async () => {
  // The weights' first step is the rate itself, whatever the gradient: so Adam has it.
  const moved = async (config: object) => {
    const before = flatten(tinyParameters())[0]!.dataSync() as Float32Array;
    const after: Float32Array[] = [];
    await sft(
      TINY,
      tinyParameters(),
      rows,
      [],
      { ...CONFIG, steps: 8, warmup: 2, weightDecay: 0, ...config },
      () => {},
      null,
      ({ trained }) => void after.push((flatten(trained)[0]!.dataSync() as Float32Array).slice()),
    );
    return after.map((now, step) => {
      const was = step === 0 ? before : after[step - 1]!;
      return Math.max(...now.map((x, i) => Math.abs(x - was[i]!)));
    });
  };
  const [linear, cosine] = [await moved({}), await moved({ schedule: 'cosine' })];
  expect(linear[0]).toBeCloseTo(CONFIG.learningRate / 2, 4); // half the peak, in the first of two steps of warm-up
  // Halfway the two are equal; before it a cosine is higher, after it lower.
  expect(cosine[2]!).toBeGreaterThan(linear[2]! * 1.05);
  expect(cosine[7]!).toBeLessThan(linear[7]! * 0.7);
});
