// A matrix told by eight columns and rows: exact where it is of that rank, the most of it that can be where it is not.
import { expect, test } from 'vitest';
import { lowRank, RANK } from '../../schema/low-rank.ts';
import { randomNumbers } from '../support/model.ts';

const random = randomNumbers(3);
const numbers = (length: number) => Float32Array.from({ length }, () => random() - 0.5);

/** u vᵀ */
function product(u: Float32Array, v: Float32Array, rank: number): Float32Array {
  const [rows, cols] = [u.length / rank, v.length / rank];
  const out = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++)
      for (let j = 0; j < rank; j++) out[r * cols + c] = out[r * cols + c]! + u[r * rank + j]! * v[c * rank + j]!;
  return out;
}
const squares = (of: Float32Array) => of.reduce((sum, x) => sum + x * x, 0);

test.each([1, 3, RANK])('a matrix of rank %i is told whole', (rank) => {
  const e = product(numbers(70 * rank), numbers(96 * rank), rank);
  const { u, v, squares: all, told: part } = lowRank(e, 70);
  const told = product(u, v, RANK);
  expect(part / all).toBeCloseTo(1, 5);
  expect(Math.max(...told.map((x, i) => Math.abs(x - e[i]!)))).toBeLessThan(1e-5);
  expect(lowRank(e, 70)).toEqual({ u, v, squares: all, told: part });
});

test('of one with larger and smaller parts the larger ones are told, and of noise as little as there is to tell', () => {
  const large = product(numbers(200 * RANK), numbers(160 * RANK), RANK);
  const noise = numbers(200 * 160).map((x) => x / 10);
  const e = large.map((x, i) => x + noise[i]!);
  const { u, v, told: part } = lowRank(e, 200);
  const told = product(u, v, RANK);
  const left = e.map((x, i) => x - told[i]!);
  expect(squares(left) / squares(e)).toBeCloseTo(1 - part / squares(e), 4);
  expect(squares(left) / squares(noise)).toBeLessThan(1);
  const ofNoise = lowRank(noise, 200);
  expect(ofNoise.told / ofNoise.squares).toBeLessThan(0.2);
});

test('nothing is told of a matrix of zeros, and no number is lost', () => {
  const { u, v, told: part } = lowRank(new Float32Array(32 * 64), 32);
  expect(part).toBe(0);
  expect([...u, ...v].every((x) => x === 0)).toBe(true);
});
