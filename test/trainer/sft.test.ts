import { expect, test } from 'vitest';
import { sftStateFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import { SFT_DEFAULTS } from '../../trainer/config.ts';
import type { Row } from '../../trainer/data.ts';
import { flatten, type Tree } from '../../trainer/engine/compile.ts';
import { random } from '../../trainer/random.ts';
import { sft } from '../../trainer/sft.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const CONFIG = { ...SFT_DEFAULTS, steps: 60, batch: 8, shape: SHAPE, learningRate: 1e-2, warmup: 5 };
const rng = random(4);
/** An answer counts on from the prompt's token: 7 → 8 9 10 EOS. */
const row = (): Row => {
  const from = rng.int(2, 28);
  return { prompt: [from], answer: [from + 1, from + 2, from + 3, 1] };
};
const rows = Array.from({ length: 50 }, row);
const seen = new Set(rows.map(({ prompt }) => prompt[0]));
const held = Array.from({ length: 20 }, row).filter(({ prompt }) => seen.has(prompt[0]));
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
  let saved: { file: Uint8Array; step: number } | undefined;
  const whole = await sft(
    TINY,
    tinyParameters(),
    rows,
    held,
    CONFIG,
    () => {},
    null,
    ({ parameters, adam, step }) => {
      if (step === 23) saved = { file: treeToFile({ parameters, adam }), step };
    },
  );
  const from = sftStateFromFile(saved!.file, { step: saved!.step }, tinyParameters());
  const steps: number[] = [];
  const resumed = await sft(TINY, tinyParameters(), rows, held, CONFIG, ({ step }) => void steps.push(step), from);
  expect(steps[0]).toBe(24);
  expect(resumed.loss).toBe(whole.loss);
  expect(bytes(resumed.parameters)).toEqual(bytes(whole.parameters));
});
