// What people say, as probabilities of one score: r(x, y) says how good answer y to prompt x is, and each kind of evidence is a
// likelihood on it with a positive scale of its own, so that what one kind teaches the score, the others can use.
//
//   chosen, ranked, tied ─ Davidson–Luce ─┐
//   thumbs ─ logistic, a leniency a rater ┤
//   ratings 1–5 ─ cumulative logit ───────┼── r(x, y)
//   outcomes ─ logistic, or Gaussian ─────┘
//
// Pure functions of tensors: log-probabilities of what was said, one a judgement, which reward.ts weighs and sums. Whatever a call
// has no evidence for is filled with something harmless and weighs 0 there.
// Left out: interactions of raters with aspects, raters who differ in anything but leniency.

import { gatherRows } from './engine/ops.ts';
import { type Tensor, tf } from './engine/tf.ts';

/** Answers that one stage of a choice can be about. */
export const ITEMS = 8;
/** Aspects that answers can be rated on, and names that outcomes can have. */
export const ASPECTS = 8;
export const OUTCOMES = 8;
/** Values of a rating, 1 to 5. */
export const GRADES = 5;

/** What is learnt beside the score. Scales and deviations are held as logarithms, so that they are above 0. */
export type Likelihood = {
  choices: {
    logScale: Tensor; // ()
    logTies: Tensor; // (7): log δ_2 … log δ_8, how ready people are to call so many answers equal; δ_1 is 1
  };
  thumbs: {
    logScale: Tensor; // ()
    bias: Tensor; // ()
    mean: Tensor; // (J): of q(u), a rater's leniency
    logVariance: Tensor; // (J)
    logDeviation: Tensor; // (): log τ, of all raters' leniencies
  };
  ratings: {
    logScale: Tensor; // (A)
    firstCut: Tensor; // (A): between 1 and 2
    logSteps: Tensor; // (A 3): from that cut to the next, and so on; in one row, as what is not a matrix is not decayed
  };
  outcomes: {
    logScale: Tensor; // (O)
    bias: Tensor; // (O)
    logDeviation: Tensor; // (O): of numbers
  };
};

/** What each likelihood starts from: of two equal answers one in twenty is called a tie, and each grade is given alike. */
export function freshLikelihood(raters: number): Likelihood {
  // cuts at the logits of .2, .4, .6 and .8: −log 4, −log 1.5, log 1.5, log 4
  const steps = [Math.log(4 / 1.5), 2 * Math.log(1.5), Math.log(4 / 1.5)].map(Math.log);
  return {
    choices: { logScale: tf.scalar(0), logTies: tf.fill([ITEMS - 1], Math.log(0.1)) },
    thumbs: {
      logScale: tf.scalar(0),
      bias: tf.scalar(0),
      mean: tf.zeros([raters]),
      logVariance: tf.fill([raters], 2 * Math.log(0.5)),
      logDeviation: tf.scalar(Math.log(0.5)),
    },
    ratings: {
      logScale: tf.zeros([ASPECTS]),
      firstCut: tf.fill([ASPECTS], -Math.log(4)),
      logSteps: tf.tensor1d(Array.from({ length: ASPECTS }, () => steps).flat()),
    },
    outcomes: { logScale: tf.zeros([OUTCOMES]), bias: tf.zeros([OUTCOMES]), logDeviation: tf.zeros([OUTCOMES]) },
  };
}

/**
 * The likelihood of scores r' = gain·(r − mean) with the probabilities that the given one has of r (and of what differs from r by
 * aspect, which is only stretched). Choices see nothing but differences; the others' cuts and biases take the shift back.
 */
export function rescaled(likelihood: Likelihood, gain: number, mean: number): Likelihood {
  const { choices, thumbs, ratings, outcomes } = likelihood;
  const smaller = (logScale: Tensor) => tf.sub(logScale, Math.log(gain));
  const shift = (logScale: Tensor) => tf.mul(tf.exp(logScale), mean);
  return tf.tidy(() => ({
    choices: { logScale: smaller(choices.logScale), logTies: tf.clone(choices.logTies) },
    thumbs: {
      logScale: smaller(thumbs.logScale),
      bias: tf.add(thumbs.bias, shift(thumbs.logScale)),
      mean: tf.clone(thumbs.mean),
      logVariance: tf.clone(thumbs.logVariance),
      logDeviation: tf.clone(thumbs.logDeviation),
    },
    ratings: {
      logScale: smaller(ratings.logScale),
      firstCut: tf.sub(ratings.firstCut, shift(ratings.logScale)),
      logSteps: tf.clone(ratings.logSteps),
    },
    outcomes: {
      logScale: smaller(outcomes.logScale),
      bias: tf.add(outcomes.bias, shift(outcomes.logScale)),
      logDeviation: tf.clone(outcomes.logDeviation),
    },
  })) as Likelihood;
}

export type Stages = {
  items: Tensor; // (stages, 8) int32, indices into the scores
  present: Tensor; // (stages, 8): 1 where there is an answer; at least one
  chosen: Tensor; // (stages, 8): 1 for the answers that were taken together, as equals
};

/**
 * Davidson–Luce (Firth, Kosmidis & Turner 2019, "Davidson-Luce model for multi-item choice with ties"; Turner, van Etten, Firth &
 * Kosmidis 2020, "Modelling rankings in R: the PlackettLuce package"): of what remains, a set S of equals is taken with a probability proportional to
 *
 *   δ_|S| · exp(mean of s·r over S)
 *
 * among all its non-empty subsets. With two answers it is Davidson's (1970) model of ties, without ties Plackett's and Luce's. The
 * subsets' sum is, for each size k, an elementary symmetric polynomial: e_k of exp(s·r/k).
 * @param r (S)
 * @returns log P of each stage, (stages)
 */
export function logChoice(r: Tensor, { logScale, logTies }: Likelihood['choices'], stages: Stages): Tensor {
  const { present, chosen } = stages;
  const count = present.shape[0]!;
  const absent = tf.mul(tf.sub(1, present), -1e9); // (stages, 8)
  const table = tf.reshape(tf.mul(tf.exp(logScale), r), [-1, 1]); // (S) → (S, 1)
  const own = tf.reshape(gatherRows(table, tf.reshape(stages.items, [count * ITEMS])), [count, ITEMS]); // (stages, 8)
  const best = tf.max(tf.add(own, absent), -1, true); // (stages, 1)
  const below = tf.mul(tf.sub(own, best), present); // (stages, 8), at most 0

  // exp(r/k) for every size k: (stages, items, 1) · (1, 1, sizes) → (stages, 8, 8)
  const sizes = tf.tensor1d(Array.from({ length: ITEMS }, (_, i) => i + 1));
  const powers = tf.exp(tf.div(tf.reshape(below, [count, ITEMS, 1]), tf.reshape(sizes, [1, 1, ITEMS]))); // (stages, 8, 8)
  const roots = tf.mul(powers, tf.reshape(present, [count, ITEMS, 1])); // (stages, 8, 8)
  // The polynomial Π (1 + x_i t) for each size, an item a time: its coefficients are e_0, e_1, …
  let coefficients: Tensor = tf.ones([count, ITEMS, 1]);
  for (const x of tf.split(roots, ITEMS, 1) as Tensor[]) {
    const times = tf.mul(coefficients, tf.reshape(x, [count, ITEMS, 1])); // (stages, 1, 8) → (stages, 8, 1) → (stages, 8, i)
    const padded = (values: Tensor, before: 0 | 1) =>
      tf.pad(values, [
        [0, 0],
        [0, 0],
        [before, 1 - before],
      ]); // (stages, 8, i + 1)
    coefficients = tf.add(padded(coefficients, 0), padded(times, 1)); // (stages, 8, i + 1)
  }
  const ofOwnSize = new Float32Array(ITEMS * (ITEMS + 1)); // of size k the coefficient e_k
  for (let k = 1; k <= ITEMS; k++) ofOwnSize[(k - 1) * (ITEMS + 1) + k] = 1;
  const symmetric = tf.sum(tf.mul(coefficients, tf.tensor3d(ofOwnSize, [1, ITEMS, ITEMS + 1])), -1); // (stages, 8, 9) → (stages, 8)
  const logDelta = tf.concat([tf.zeros([1]), logTies]); // (8)
  const all = tf.log(tf.sum(tf.mul(symmetric, tf.exp(logDelta)), -1)); // (stages)

  const size = tf.sum(chosen, -1, true); // (stages, 1)
  const taken = tf.div(tf.sum(tf.mul(below, chosen), -1, true), size); // (stages, 1)
  const ofSize = tf.cast(tf.equal(size, tf.reshape(sizes, [1, ITEMS])), 'float32'); // (stages, 8)
  const ready = tf.sum(tf.mul(ofSize, logDelta), -1); // (stages)
  return tf.sub(tf.add(ready, tf.reshape(taken, [count])), all); // (stages)
}

/** Gauss–Hermite: Σ w f(x) is the mean of f under N(0, 1), exactly for polynomials of degree 13 (Abramowitz & Stegun, table 25.10). */
const NODES = [
  -2.651961356835233, -1.673551628767471, -0.816287882858965, 0, 0.816287882858965, 1.673551628767471,
  2.651961356835233,
].map((x) => x * Math.SQRT2);
const WEIGHTS = [
  0.000971781245099519, 0.054515582819127, 0.425607252610128, 0.810264617556807, 0.425607252610128, 0.054515582819127,
  0.000971781245099519,
].map((w) => w / Math.sqrt(Math.PI));

export type Thumbs = {
  sign: Tensor; // (S): 1 up, −1 down
  rater: Tensor; // (S) int32; 0 for a rater who is not known
};

/**
 * Thumbs: P(up) = σ(s·r + b + u), where u ~ N(0, τ²) is the rater's leniency, a random effect (a Rasch model; De Boeck & Wilson 2004,
 * "Explanatory Item Response Models"). To maximise over u and τ at once has no maximum but at τ = 0, so each u has an approximate
 * posterior q(u) = N(m, v) of its own (mean field; Blei, Kucukelbir & McAuliffe 2017), and this is the first half of its bound,
 * E_q[log P], by 7 nodes of quadrature; `klOfRaters` is the other. Few votes leave q near the prior: they are shrunk to 0.
 * @param r (S)
 * @returns (S)
 */
export function logThumb(
  r: Tensor,
  { logScale, bias, mean, logVariance }: Likelihood['thumbs'],
  { sign, rater }: Thumbs,
): Tensor {
  const known = tf.cast(tf.greater(rater, 0), 'float32'); // (S)
  const of = (values: Tensor) => tf.reshape(gatherRows(tf.reshape(values, [-1, 1]), rater), [-1]); // (J) → (J, 1) → (S)
  const u = tf.mul(of(mean), known); // (S)
  const deviation = tf.mul(of(tf.exp(tf.mul(logVariance, 0.5))), known); // (S)
  const logit = tf.add(tf.add(tf.mul(tf.exp(logScale), r), bias), u); // (S)
  const at = tf.add(tf.reshape(logit, [-1, 1]), tf.mul(tf.reshape(deviation, [-1, 1]), tf.tensor2d([NODES]))); // (S, 7)
  const logP = tf.neg(tf.softplus(tf.neg(tf.mul(tf.reshape(sign, [-1, 1]), at)))); // (S, 7)
  return tf.sum(tf.mul(logP, tf.tensor2d([WEIGHTS])), -1); // (S)
}

/** KL(N(m, v) ‖ N(0, τ²)) of each rater, in nats. (J) */
export function klOfRaters({ mean, logVariance, logDeviation }: Likelihood['thumbs']): Tensor {
  const logRatio = tf.sub(logVariance, tf.mul(2, logDeviation)); // (J): log v/τ²
  const distance = tf.mul(tf.square(mean), tf.exp(tf.mul(-2, logDeviation))); // (J)
  return tf.mul(0.5, tf.sub(tf.sub(tf.add(tf.exp(logRatio), distance), 1), logRatio)); // (J)
}

export type Ratings = {
  aspect: Tensor; // (S) int32
  grade: Tensor; // (S) int32, 0 … 4 for 1 … 5
};

/**
 * Ratings: the cumulative logit (McCullagh 1980, "Regression models for ordinal data"), P(rating ≤ c) = σ(cut_c − s·q), with a scale
 * and cuts for each aspect; the cuts are ordered because the steps between them are exponentials.
 * @param q (S), the answer's score in the aspect it is rated on
 * @returns (S)
 */
export function logRating(q: Tensor, ratings: Likelihood['ratings'], { aspect, grade }: Ratings): Tensor {
  // P(c) = σ(a) − σ(b) with a the cut above and b the one below, which is σ(a)·σ(−b)·(1 − exp(b − a)): no difference of near equals.
  const far = tf.fill([ASPECTS, 1], 1e9);
  const steps = stepsOf(ratings); // (A, 3)
  const cuts = cutsOf(ratings); // (A, 4)
  const of = (table: Tensor) => {
    const rows = gatherRows(table, aspect); // (A, 5) → (S, 5)
    const column = tf.equal(tf.reshape(grade, [-1, 1]), tf.tensor2d([[0, 1, 2, 3, 4]], [1, GRADES], 'int32')); // (S, 5)
    return tf.sum(tf.where(column, rows, tf.zerosLike(rows)), -1); // (S)
  };
  const at = tf.mul(of(tf.tile(tf.reshape(tf.exp(ratings.logScale), [-1, 1]), [1, GRADES])), q); // (S)
  const above = tf.sub(of(tf.concat([cuts, far], 1)), at); // (S)
  const below = tf.sub(of(tf.concat([tf.neg(far), cuts], 1)), at); // (S)
  const width = of(tf.concat([far, steps, far], 1)); // (S)
  const logSigmoid = (x: Tensor) => tf.neg(tf.softplus(tf.neg(x)));
  const between = tf.log(tf.neg(tf.expm1(tf.neg(width)))); // (S)
  return tf.add(tf.add(logSigmoid(above), logSigmoid(tf.neg(below))), between); // (S)
}

const stepsOf = ({ logSteps }: Likelihood['ratings']): Tensor => tf.reshape(tf.exp(logSteps), [ASPECTS, GRADES - 2]); // (A 3) → (A, 3)

/** The four cuts of each aspect, in order. (A, 4) */
export function cutsOf(ratings: Likelihood['ratings']): Tensor {
  const first = tf.reshape(ratings.firstCut, [ASPECTS, 1]); // (A) → (A, 1)
  const [one, two, three] = tf.split(stepsOf(ratings), GRADES - 2, 1) as [Tensor, Tensor, Tensor]; // (A, 3) → 3 × (A, 1)
  const second = tf.add(first, one);
  const third = tf.add(second, two);
  return tf.concat([first, second, third, tf.add(third, three)], 1); // (A, 4)
}

export type Outcomes = {
  name: Tensor; // (S) int32
  value: Tensor; // (S): of a boolean 0 or 1, of a number its standardised value
  isNumber: Tensor; // (S): 1 where it is one
};

/**
 * What came of an answer (the ticket was closed, the code ran, minutes saved): a boolean is true with σ(s·r + b), a number, which
 * was brought to mean 0 and variance 1 over all of its name, is Gaussian around s·r + b with a deviation of its own: logistic and
 * linear regression on the score (McCullagh & Nelder 1989, chapters 4 and 3). More must be better, for s > 0.
 * @param r (S)
 * @returns log-probabilities and log-densities, (S)
 */
export function logOutcome(r: Tensor, outcomes: Likelihood['outcomes'], { name, value, isNumber }: Outcomes): Tensor {
  const of = (values: Tensor) => tf.reshape(gatherRows(tf.reshape(values, [-1, 1]), name), [-1]); // (O) → (O, 1) → (S)
  const predicted = tf.add(tf.mul(of(tf.exp(outcomes.logScale)), r), of(outcomes.bias)); // (S)
  const logDeviation = of(outcomes.logDeviation); // (S)
  const sign = tf.sub(tf.mul(2, value), 1); // (S)
  const logP = tf.neg(tf.softplus(tf.neg(tf.mul(sign, predicted)))); // (S)
  const distance = tf.mul(tf.sub(value, predicted), tf.exp(tf.neg(logDeviation))); // (S), in deviations
  const logDensity = tf.sub(tf.mul(-0.5, tf.square(distance)), tf.add(logDeviation, 0.5 * Math.log(2 * Math.PI))); // (S)
  return tf.add(tf.mul(isNumber, logDensity), tf.mul(tf.sub(1, isNumber), logP)); // (S)
}
