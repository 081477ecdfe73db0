// Token rows in calls of one fixed shape: a compiled function takes R lines of W tokens, so conversations are packed side by side in
// them, and a batch is as many calls as it needs.

import type { PpoConfig } from '../schema/run-config.ts';
import type { Row } from './data.ts';
import { type Tensor, tf } from './engine/tf.ts';
import { UserError } from './user-error.ts';

/** What a compiled call takes: R rows of W tokens, into which conversations are packed. */
export interface Shape {
  rows: number; // R
  columns: number; // W
}
/** Answers that a call can hold, S. */
export const ANSWERS = 64;

export type Batch = {
  tokens: Tensor; // (R, W) int32
  position: Tensor; // (R, W) int32, within the token's own conversation
  prompt: Tensor; // (R, W) int32, which of the row's prompts a token belongs to; 0 for padding
  answer: Tensor; // (R, W) int32, which of that prompt's answers; 0 for the prompt itself
};
/** Where an answer lies among the R·W places of a call. */
interface Placed {
  row: number; // which of the rows
  before: number; // place of the prompt's last token, from which the answer's first is predicted
  first: number; // place of the answer's first token
  length: number;
}
/** One call's worth of rows. */
export interface Pack {
  tokens: Int32Array; // (R W)
  position: Int32Array; // (R W)
  prompt: Int32Array; // (R W)
  answer: Int32Array; // (R W)
  placed: Placed[];
  /** Which bundles lie in it. */
  bundles: number[];
}

/**
 * Packs conversations side by side, so that little of a call is padding, and answers to one prompt behind one copy of it:
 *
 *   tokens    p0 p1 p2 a0 a1 a2 b0 b1 | q0 q1 c0 c1 c2 | pad pad
 *   position   0  1  2  3  4  5  3  4 |  0  1  2  3  4 |   0   0
 *   prompt     1  1  1  1  1  1  1  1 |  2  2  2  2  2 |   0   0
 *   answer     0  0  0  1  1  1  2  2 |  0  0  1  1  1 |   0   0
 *
 * A token sees what stands before it in its own prompt and its own answer. Rows too long for a call lose the end of the answer
 * first, down to half a row, then the beginning of the prompt.
 * @param bundles which rows must share a call; those that follow one another with equal prompts share the prompt's tokens
 * @returns as few calls as first-fit by decreasing size finds
 */
export function pack(rows: Row[], bundles: number[][], { rows: R, columns: W }: Shape, pad: number): Pack[] {
  const fitted = bundles.map((bundle) => bundle.map((row) => fittedTo(rows[row]!, W)));
  const sizes = fitted.map((bundle) => bundle.reduce((sum, row) => sum + row.prompt.length + row.answer.length, 0));
  const order = bundles.map((_, i) => i).sort((a, b) => sizes[b]! - sizes[a]! || a - b);

  interface Open {
    pack: Pack;
    used: number[]; // tokens in each row
    prompts: number[]; // prompts in each row
  }
  const open: Open[] = [];
  for (const bundle of order) {
    const place = (call: Open): boolean => {
      if (call.pack.placed.length + fitted[bundle]!.length > ANSWERS) return false;
      const spots = spotsFor(fitted[bundle]!, call.used, W);
      if (!spots) return false;
      put(call, bundle, spots);
      return true;
    };
    if (open.some(place)) continue;
    const fresh: Open = {
      pack: {
        tokens: new Int32Array(R * W).fill(pad),
        position: new Int32Array(R * W),
        prompt: new Int32Array(R * W),
        answer: new Int32Array(R * W),
        placed: [],
        bundles: [],
      },
      used: new Array(R).fill(0),
      prompts: new Array(R).fill(0),
    };
    open.push(fresh);
    if (!place(fresh))
      throw new UserError(
        `${bundles[bundle]!.length} answers of ${sizes[bundle]} tokens do not fit one call of ${R} × ${W} tokens`,
      );
  }
  return open.map((call) => call.pack);

  function put({ pack: into, used, prompts }: Open, bundle: number, spots: Spot[]): void {
    let before = 0;
    let answers = 0;
    spots.forEach(({ line, opens }, i) => {
      const { prompt, answer } = fitted[bundle]![i]!;
      const write = (ids: number[], position: number, answerNumber: number) => {
        const at = line * W + used[line]!;
        into.tokens.set(ids, at);
        ids.forEach((_, k) => {
          into.position[at + k] = position + k;
        });
        into.prompt.fill(prompts[line]!, at, at + ids.length);
        into.answer.fill(answerNumber, at, at + ids.length);
        used[line]! += ids.length;
        return at;
      };
      if (opens) {
        prompts[line]!++;
        answers = 0;
        before = write(prompt, 0, 0) + prompt.length - 1;
      }
      const first = write(answer, prompt.length, ++answers);
      into.placed.push({ row: bundles[bundle]![i]!, before, first, length: answer.length });
    });
    into.bundles.push(bundle);
  }
}

/** The line of a call that takes an answer, and whether its prompt must be written there first. */
interface Spot {
  line: number;
  opens: boolean;
}

/** Where a bundle's rows go in a call, or null if they do not fit: behind the prompt written last, else on the roomiest line. */
function spotsFor(rows: Row[], used: number[], W: number): Spot[] | null {
  const taken = [...used];
  let line = -1;
  let last: number[] | null = null;
  const spots: Spot[] = [];
  for (const [i, { prompt, answer }] of rows.entries()) {
    const same = last !== null && sameIds(last, prompt);
    if (!same || taken[line]! + answer.length > W) {
      // The tightest line that takes all the rest that shares the prompt, else the roomiest.
      let whole = prompt.length;
      for (let k = i; k < rows.length && sameIds(rows[k]!.prompt, prompt); k++) whole += rows[k]!.answer.length;
      const room = taken.map((tokens) => W - tokens);
      const tight = room.reduce((best, r, l) => (r >= whole && (best < 0 || r < room[best]!) ? l : best), -1);
      line = tight >= 0 ? tight : room.indexOf(Math.max(...room));
      if (room[line]! < prompt.length + answer.length) return null;
      taken[line]! += prompt.length;
      last = prompt;
      spots.push({ line, opens: true });
    } else spots.push({ line, opens: false });
    taken[line]! += answer.length;
  }
  return spots;
}

const sameIds = (a: number[], b: number[]): boolean =>
  a === b || (a.length === b.length && a.every((id, i) => id === b[i]));

function fittedTo(row: Row, W: number): Row {
  const { prompt, answer } = row;
  if (prompt.length + answer.length <= W) return row;
  const kept = answer.slice(0, Math.max(W - prompt.length, Math.floor(W / 2)));
  return { prompt: prompt.slice(-(W - kept.length)), answer: kept };
}

/** A pack's tokens as tensors. */
export function batchOf(packed: Pack, { rows: R, columns: W }: Shape): Batch {
  const matrix = (values: Int32Array) => tf.tensor2d(values, [R, W], 'int32');
  return {
    tokens: matrix(packed.tokens),
    position: matrix(packed.position),
    prompt: matrix(packed.prompt),
    answer: matrix(packed.answer),
  };
}

/** Which state predicts which token, for every answer token of a pack in order of `placed`; what is beyond them weighs 0. */
export type Predictions = {
  from: Tensor; // (N) int32, N = R W
  target: Tensor; // (N) int32
  weight: Tensor; // (N)
};

/** @param weight of each token of a pack's answers */
export function predictionsOf({ tokens, placed }: Pack, weight: number): Predictions {
  const from = new Int32Array(tokens.length);
  const target = new Int32Array(tokens.length);
  const weights = new Float32Array(tokens.length);
  let n = 0;
  for (const { before, first, length } of placed) {
    for (let t = 0; t < length; t++) {
      from[n] = t === 0 ? before : first + t - 1;
      target[n] = tokens[first + t]!;
      weights[n++] = weight;
    }
  }
  return { from: tf.tensor1d(from, 'int32'), target: tf.tensor1d(target, 'int32'), weight: tf.tensor1d(weights) };
}

/** Numbers for each token of each row (rows × columns), in the order of a pack's predictions. → (N) */
export function gathered(values: Float32Array, columns: number, { tokens, placed }: Pack): Tensor {
  const out = new Float32Array(tokens.length);
  let n = 0;
  for (const { row, length } of placed) {
    out.set(values.subarray(row * columns, row * columns + length), n);
    n += length;
  }
  return tf.tensor1d(out);
}

/** The other way: a pack's (N) numbers to their rows. */
export function scattered(from: Float32Array, values: Float32Array, columns: number, { placed }: Pack): void {
  let n = 0;
  for (const { row, length } of placed) {
    values.set(from.subarray(n, n + length), row * columns);
    n += length;
  }
}

/** Bundles of rows that follow one another with the same prompt, as long as a line of a call takes them. */
export function byPrompt(rows: Row[], { columns: W }: Shape, order: number[] = rows.map((_, i) => i)): number[][] {
  const bundles: number[][] = [];
  let used = 0;
  for (const index of order) {
    const { prompt, answer } = rows[index]!;
    const last = bundles.at(-1);
    used += answer.length;
    if (last && used <= W && last.length < ANSWERS && sameIds(rows[last[0]!]!.prompt, prompt)) last.push(index);
    else {
      bundles.push([index]);
      used = prompt.length + answer.length;
    }
  }
  return bundles;
}

/** Small enough that the last call of a batch is not mostly empty, large enough that products run at full speed. */
const CALL_TOKENS = 512;
const COLUMNS = 256;

/** A shape for rows of up to `longest` tokens that takes each of the bundles whole. */
export function shapeFor(longest: number, bundles: Row[][] = []): Shape {
  const columns = Math.max(COLUMNS, Math.ceil(longest / 4) * 4);
  let rows = Math.max(1, Math.floor(CALL_TOKENS / columns));
  for (const bundle of bundles) {
    const fitted = bundle.map((row) => fittedTo(row, columns));
    while (!spotsFor(fitted, new Array(rows).fill(0), columns)) rows++;
  }
  return { rows, columns };
}

/** Steps that tell how full calls of a shape become. */
const SAMPLED = 32;
/** What a call costs beside its tokens, in tokens: gradients as many as the weights are added to those before. Measured, LOG.md. */
const CALL_COSTS = 60;

/**
 * Of shapes that take every bundle whole, no wider than `shapeFor`'s, the one in which batches of so many bundles cost least: lengths that
 * go badly together leave up to a quarter of every call empty.
 * @param atMost tokens of a call, unless `shapeFor` needs more
 */
export function fullestShape(longest: number, bundles: Row[][], atOnce: number, atMost = 2 * CALL_TOKENS): Shape {
  const usual = shapeFor(longest, bundles);
  const most = Math.max(atMost, usual.rows * usual.columns);
  const cost = (shape: Shape): number => {
    let calls = 0;
    for (let at = 0; at < Math.min(bundles.length, SAMPLED * atOnce); at += atOnce) {
      const batch = bundles.slice(at, at + atOnce);
      let count = 0;
      const numbered = batch.map((rows) => rows.map(() => count++));
      calls += pack(batch.flat(), numbered, shape, 0).length;
    }
    return calls * (shape.rows * shape.columns + CALL_COSTS);
  };
  const takesAll = ({ rows, columns }: Shape) =>
    bundles.every((bundle) => {
      const fitted = bundle.map((row) => fittedTo(row, columns));
      return spotsFor(fitted, new Array(rows).fill(0), columns) !== null;
    });
  let best = usual;
  let least = cost(usual);
  for (let columns = Math.ceil(longest / 16) * 16; columns <= usual.columns; columns += 16)
    for (let rows = Math.floor(most / columns); 2 * rows * columns >= CALL_TOKENS; rows--) {
      const shape = { rows, columns };
      if (!takesAll(shape)) break; // nor do fewer rows
      const costs = cost(shape);
      if (costs >= least) continue;
      best = shape;
      least = costs;
    }
  return best;
}

/**
 * The fullest shape for PPO's minibatches: of answers as long as the given ones, so many to each prompt. No larger than the usual call,
 * for logits are what takes most memory in it.
 */
export function rolloutShape(
  longest: number,
  prompts: number[][],
  like: Row[],
  { answersPerPrompt, minibatch }: Pick<PpoConfig, 'answersPerPrompt' | 'minibatch'>,
): Shape {
  let next = 0;
  const groups = prompts
    .slice(0, SAMPLED * ANSWERS)
    .map((prompt) =>
      Array.from({ length: answersPerPrompt }, () => ({ prompt, answer: like[next++ % like.length]!.answer })),
    );
  const usual = shapeFor(longest);
  const bundles = groups.flatMap((group) => byPrompt(group, usual).map((at) => at.map((i) => group[i]!)));
  return fullestShape(longest, bundles, Math.ceil(minibatch / answersPerPrompt), CALL_TOKENS);
}

/**
 * Where answers to the given prompts are cut when they are drawn (no longer than any judged one, nor than `most`), how long the longest row
 * may be then, and a shape for them and for the judged answers.
 */
export function drawingShape(
  context: number,
  judged: Row[][],
  prompts: number[][],
  most: number,
): { maxTokens: number; longest: number; shape: Shape } {
  const rows = judged.flat();
  const longestOf = (lengths: number[]) => lengths.reduce((a, b) => Math.max(a, b), 0);
  const maxTokens = rows.length > 0 ? Math.min(most, longestOf(rows.map((row) => row.answer.length))) : most;
  const prompt = longestOf([...rows.map((row) => row.prompt.length), ...prompts.map((ids) => ids.length)]);
  const longest = Math.min(prompt + maxTokens, context);
  return { maxTokens, longest, shape: shapeFor(longest, judged) };
}
