import { expect, test } from 'vitest';
import type { Row } from '../../trainer/data.ts';
import { ANSWERS, byPrompt, drawingShape, fullestShape, pack, rolloutShape, shapeFor } from '../../trainer/pack.ts';
import { random } from '../../trainer/random.ts';

const PAD = 0;
const row = (prompt: number[], answer: number[]): Row => ({ prompt, answer });

test('answers to one prompt lie behind one copy of it, the next conversation beside them', () => {
  const rows = [row([5, 6, 7], [10, 11, 1]), row([5, 6, 7], [12, 1]), row([8, 9], [13, 14, 1])];
  const [only, ...others] = pack(rows, [[0, 1], [2]], { rows: 1, columns: 16 }, PAD);
  expect(others).toEqual([]);
  expect(Array.from(only!.tokens)).toEqual([5, 6, 7, 10, 11, 1, 12, 1, 8, 9, 13, 14, 1, 0, 0, 0]);
  expect(Array.from(only!.position)).toEqual([0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2, 3, 4, 0, 0, 0]);
  expect(Array.from(only!.prompt)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0]);
  expect(Array.from(only!.answer)).toEqual([0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 1, 0, 0, 0]);
  expect(only!.placed).toEqual([
    { row: 0, before: 2, first: 3, length: 3 },
    { row: 1, before: 2, first: 6, length: 2 },
    { row: 2, before: 9, first: 10, length: 3 },
  ]);
});

test('every row is placed once, with its tokens and its prompt’s, and no bundle is torn apart', () => {
  const rng = random(3);
  const rows: Row[] = [];
  const bundles = Array.from({ length: 60 }, () => {
    const prompt = Array.from({ length: rng.int(1, 20) }, () => rng.int(2, 30));
    return Array.from({ length: rng.int(1, 5) }, () => {
      rows.push(
        row(
          prompt,
          Array.from({ length: rng.int(1, 12) }, () => rng.int(2, 30)),
        ),
      );
      return rows.length - 1;
    });
  });
  const packs = pack(rows, bundles, { rows: 3, columns: 40 }, PAD);
  expect(packs.flatMap((p) => p.placed.map((placed) => placed.row)).sort((a, b) => a - b)).toEqual(
    rows.map((_, i) => i),
  );
  for (const { tokens, position, placed, bundles: within } of packs) {
    expect(placed.map((p) => p.row)).toEqual(within.flatMap((bundle) => bundles[bundle]!));
    for (const { row: index, before, first, length } of placed) {
      const { prompt, answer } = rows[index]!;
      expect(Array.from(tokens.slice(first, first + length))).toEqual(answer);
      expect(Array.from(tokens.slice(before + 1 - prompt.length, before + 1))).toEqual(prompt);
      expect(position[first]).toBe(prompt.length);
      expect(Math.floor(before / 40)).toBe(Math.floor((first + length - 1) / 40));
    }
  }
  const filled = packs.reduce((sum, p) => sum + p.prompt.filter((n) => n > 0).length, 0);
  expect(filled / (packs.length * 120)).toBeGreaterThan(0.85);
});

test('a row too long for a call loses the end of its answer, then the beginning of its prompt', () => {
  const long = row([2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15]);
  const cutAnswer = pack([row([2, 3], long.answer)], [[0]], { rows: 1, columns: 6 }, PAD)[0]!;
  expect(Array.from(cutAnswer.tokens)).toEqual([2, 3, 10, 11, 12, 13]);
  const cutBoth = pack([long], [[0]], { rows: 1, columns: 8 }, PAD)[0]!;
  expect(Array.from(cutBoth.tokens)).toEqual([4, 5, 6, 7, 10, 11, 12, 13]);
});

test('bundles by prompt end where the prompt changes or a line is full', () => {
  const rows = [row([2], [3, 4]), row([2], [5, 6]), row([2], [7, 8]), row([9], [3])];
  expect(byPrompt(rows, { rows: 1, columns: 5 })).toEqual([[0, 1], [2], [3]]);
  expect(byPrompt(rows, { rows: 1, columns: 5 }, [2, 0, 3, 1])).toEqual([[2, 0], [3], [1]]);
});

test('a bundle and a call hold sixty-four answers, and no more', () => {
  const rows = Array.from({ length: ANSWERS + 1 }, () => row([2], [3]));
  const shape = { rows: 1, columns: 256 };
  expect(byPrompt(rows, shape).map((bundle) => bundle.length)).toEqual([ANSWERS, 1]);
  const single = rows.map((_, i) => [i]);
  const answersOf = (bundles: number[][]) => pack(rows, bundles, shape, PAD).map(({ placed }) => placed.length);
  expect(answersOf(single)).toEqual([ANSWERS, 1]);
  expect(answersOf(single.slice(1))).toEqual([ANSWERS]);
});

test('a shape grows until it takes the largest judgement whole', () => {
  const answers = Array.from({ length: 8 }, () => row(Array(100).fill(2), Array(120).fill(3)));
  const shape = shapeFor(220, [answers]);
  expect(shape.columns).toBe(256);
  const bundle = answers.map((_, i) => i);
  expect(pack(answers, [bundle], shape, PAD)).toHaveLength(1);
  expect(() => pack(answers, [bundle], { ...shape, rows: shape.rows - 1 }, PAD)).toThrow(/do not fit one call/);
});

test('of the shapes that take each judgement whole the fullest is taken', () => {
  // two answers of 32 tokens behind a prompt of 32: they fill a line of 96, and leave a quarter of one of 256 empty
  const judgement = () => [row(Array(32).fill(2), Array(32).fill(3)), row(Array(32).fill(2), Array(32).fill(4))];
  const judged = Array.from({ length: 32 }, judgement);
  const numbered = judged.slice(0, 16).map((_, i) => [2 * i, 2 * i + 1]);
  const tokens = (shape: { rows: number; columns: number }) =>
    pack(judged.slice(0, 16).flat(), numbered, shape, PAD).length * shape.rows * shape.columns;
  expect(tokens(fullestShape(64, judged, 16))).toBe(16 * 96);
  expect(tokens(shapeFor(64, judged))).toBeGreaterThan(16 * 96);

  // one that nothing narrower or smaller takes whole leaves the shape as it was
  const large = Array.from({ length: 8 }, () => row(Array(100).fill(2), Array(120).fill(3)));
  const every = [...judged, large];
  const shape = fullestShape(220, every, 16);
  expect(pack(large, [large.map((_, i) => i)], shape, PAD)).toHaveLength(1);
});

test('a shape for rollouts is filled by the groups of answers that minibatches have', () => {
  const prompts = Array.from({ length: 64 }, (_, i) => Array<number>(16).fill(i));
  const full = rolloutShape(64, prompts, [row([], Array(48).fill(3))], { answersPerPrompt: 4, minibatch: 8 });
  expect(full).toEqual({ rows: 2, columns: 16 + 4 * 48 });
  // of answers that mostly end early, several groups share a line; and whatever is drawn fits
  const lengths = [5, 9, 12, 48];
  const like = lengths.map((length) => row([], Array(length).fill(3)));
  const mixed = rolloutShape(64, prompts, like, { answersPerPrompt: 4, minibatch: 32 });
  expect(mixed.columns).toBeGreaterThanOrEqual(16 + 5 + 9 + 12 + 48);
  expect(mixed.rows * mixed.columns).toBeLessThanOrEqual(512);
  const drawn = prompts
    .slice(0, 8)
    .flatMap((prompt) => Array.from({ length: 4 }, () => row(prompt, Array(48).fill(3))));
  const packs = pack(drawn, byPrompt(drawn, mixed), mixed, PAD);
  expect(packs.flatMap(({ placed }) => placed).map(({ length }) => length)).toEqual(Array(32).fill(48));
});

test('answers are drawn no longer than any that was judged', () => {
  const judged = [[row([2, 3], [4, 5, 1])]];
  expect(drawingShape(2048, judged, [[2], [3, 4, 5]], 64).maxTokens).toBe(3);
  expect(drawingShape(2048, [], [[2]], 64).maxTokens).toBe(64);
});
