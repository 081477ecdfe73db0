import { describe, expect, test } from 'vitest';
import { dispose, type Tree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import {
  ASPECTS,
  cutsOf,
  freshLikelihood,
  GRADES,
  ITEMS,
  klOfRaters,
  type Likelihood,
  logChoice,
  logOutcome,
  logRating,
  logThumb,
  rescaled,
} from '../../trainer/likelihood.ts';
import { adamState, trainer } from '../../trainer/optimizer.ts';
import { random } from '../../trainer/random.ts';

const rng = random(17);
const normals = (count: number, deviation = 1) => Array.from({ length: count }, () => deviation * rng.normal());
const values = (tensor: Tensor) => Array.from(tensor.dataSync());
const σ = (x: number) => 1 / (1 + Math.exp(-x));
const mean = (x: number[]) => x.reduce((a, b) => a + b, 0) / x.length;

type Said = [remaining: number[], chosen: number[]];
const stagesFor = (said: Said[]) => {
  const rows = (of: (stage: Said, i: number) => number) =>
    said.flatMap((stage) => Array.from({ length: ITEMS }, (_, i) => of(stage, i)));
  const shape: [number, number] = [said.length, ITEMS];
  return {
    items: tf.tensor2d(
      rows(([remaining], i) => remaining[i] ?? 0),
      shape,
      'int32',
    ) as Tensor,
    present: tf.tensor2d(
      rows(([remaining], i) => (i < remaining.length ? 1 : 0)),
      shape,
    ) as Tensor,
    chosen: tf.tensor2d(
      rows(([remaining, chosen], i) => (chosen.includes(remaining[i] ?? -1) ? 1 : 0)),
      shape,
    ) as Tensor,
  };
};
const choices = (logTies: number[], logScale = 0) => ({ logScale: tf.scalar(logScale), logTies: tf.tensor1d(logTies) });
const chosen = (r: number[], logTies: number[], said: Said[], logScale = 0) =>
  values(logChoice(tf.tensor1d(r), choices(logTies, logScale), stagesFor(said))).map(Math.exp);
const NO_TIES = Array<number>(ITEMS - 1).fill(-60);

const subsetsOf = <T>(items: T[]): T[][] =>
  Array.from({ length: 2 ** items.length - 1 }, (_, bits) => items.filter((_, i) => ((bits + 1) >> i) & 1));
/** Davidson–Luce as the paper writes it: every subset of what remains, one by one. */
function subsetProbabilities(r: number[], logTies: number[], remaining: number[]): [number[], number][] {
  const weights = subsetsOf(remaining).map((set): [number[], number] => [
    set,
    Math.exp((set.length > 1 ? logTies[set.length - 2]! : 0) + mean(set.map((i) => r[i]!))),
  ]);
  const total = weights.reduce((sum, [, weight]) => sum + weight, 0);
  return weights.map(([set, weight]) => [set, weight / total]);
}

/** What a uniform number picks. */
function drawnFrom(all: [number[], number][], uniform: number): number[] {
  let left = uniform;
  for (const [set, p] of all) {
    left -= p;
    if (left < 0) return set;
  }
  return all.at(-1)![0];
}

/** Every order of the items in which some may be equal. */
function weakOrders(items: number[]): number[][][] {
  if (items.length === 0) return [[]];
  return subsetsOf(items).flatMap((first) =>
    weakOrders(items.filter((item) => !first.includes(item))).map((rest) => [first, ...rest]),
  );
}

describe('choices, rankings and ties', () => {
  test('the probabilities of all 75 weak orders of four answers sum to 1', () => {
    const orders = weakOrders([0, 1, 2, 3]);
    expect(orders).toHaveLength(75);
    for (let round = 0; round < 3; round++) {
      const [r, logTies] = [normals(4, 2), normals(ITEMS - 1)];
      const stages = orders.map((groups) => groups.map((group, i): Said => [groups.slice(i).flat(), group]));
      const each = chosen(r, logTies, stages.flat());
      let at = 0;
      const total = stages.reduce((sum, of) => sum + of.reduce((product) => product * each[at++]!, 1), 0);
      expect(Math.abs(total - 1)).toBeLessThan(1e-6);
    }
  });

  test('of two answers it is Davidson’s model', () => {
    const [a, b, tie] = [1.3, -0.4, Math.log(0.7)];
    const total = Math.exp(a) + Math.exp(b) + 0.7 * Math.exp((a + b) / 2);
    const given = chosen(
      [a, b],
      [tie, ...NO_TIES.slice(1)],
      [
        [[0, 1], [0]],
        [[1, 0], [1]],
        [
          [0, 1],
          [0, 1],
        ],
      ],
    );
    const expected = [Math.exp(a), Math.exp(b), 0.7 * Math.exp((a + b) / 2)].map((weight) => weight / total);
    for (const [i, p] of given.entries()) expect(p).toBeCloseTo(expected[i]!, 6);
  });

  test('without ties it is Plackett’s and Luce’s, with the scale on the score', () => {
    const r = normals(5);
    const [p] = chosen(r, NO_TIES, [[[4, 1, 3], [1]]], Math.log(1.7));
    const weight = (i: number) => Math.exp(1.7 * r[i]!);
    expect(p).toBeCloseTo(weight(1) / (weight(1) + weight(3) + weight(4)), 6);
  });

  test('of eight answers each subset has the probability that counting all 255 gives it', () => {
    const r = normals(ITEMS, 3);
    const logTies = normals(ITEMS - 1);
    const all = subsetProbabilities(r, logTies, [0, 1, 2, 3, 4, 5, 6, 7]);
    const given = chosen(
      r,
      logTies,
      all.map(([set]): Said => [[0, 1, 2, 3, 4, 5, 6, 7], set]),
    );
    for (const [i, [, p]] of all.entries()) expect(given[i]! / p).toBeCloseTo(1, 4);
  });

  test('scores that are hundreds apart, and large ones, give finite numbers and gradients', () => {
    const stages = stagesFor([
      [[0, 1, 2], [2]],
      [
        [0, 1, 2],
        [0, 2],
      ],
      [[1], [1]],
    ]);
    const of = (r: Tensor) => tf.sum(logChoice(r, choices(normals(ITEMS - 1)), stages));
    for (const r of [
      [900, -700, 100],
      [5000, 5001, 5000.5],
    ]) {
      const { value, grad } = tf.valueAndGrad(of as never)(tf.tensor1d(r));
      expect([...values(value), ...values(grad as Tensor)].every(Number.isFinite)).toBe(true);
    }
  });

  test('planted scores and readiness for ties are recovered from simulated votes within three standard errors', () => {
    const planted = [0.8, -0.5, 0.3, -1.1]; // beside an answer of score 0
    const ties = [-0.6, -1.3];
    const r = [0, ...planted];
    const draws = random(4);
    const said = Array.from({ length: 2500 }, (): Said => {
      const remaining = draws.shuffle([0, 1, 2, 3, 4]).slice(0, 3);
      const all = subsetProbabilities(r, ties, remaining);
      return [remaining, drawnFrom(all, draws())];
    });
    const stages = stagesFor(said);
    const rest = tf.fill([ITEMS - 3], -60);
    const loss = (x: Tensor) => {
      const [scores, two] = tf.split(x, [4, 2]) as [Tensor, Tensor];
      const likelihood = { logScale: tf.scalar(0), logTies: tf.concat([two, rest]) };
      return tf.neg(tf.sum(logChoice(tf.concat([tf.zeros([1]), scores]), likelihood, stages)));
    };
    const gradient = (x: number[]) => tf.tidy(() => values(tf.grad(loss as never)(tf.tensor1d(x)) as Tensor));
    let x = Array<number>(6).fill(0);
    let hessian: number[][] = [];
    for (let newton = 0; newton < 6; newton++) {
      hessian = x.map((_, i) => {
        const at = (h: number) => gradient(x.map((value, j) => value + (i === j ? h : 0)));
        const [up, down] = [at(0.02), at(-0.02)];
        return up.map((value, j) => (value - down[j]!) / 0.04);
      });
      const step = solved(hessian, gradient(x));
      x = x.map((value, i) => value - step[i]!);
    }
    for (const [i, value] of [...planted, ...ties].entries()) {
      const unit = x.map((_, j) => (i === j ? 1 : 0));
      const error = Math.sqrt(solved(hessian, unit)[i]!); // of the observed information's inverse
      expect(error).toBeLessThan(0.15);
      expect(Math.abs(x[i]! - value)).toBeLessThan(3 * error);
    }
  });
});

/** The solution of A x = b, by Gauss’s elimination. */
function solved(A: number[][], b: number[]): number[] {
  const rows = A.map((row, i) => [...row, b[i]!]);
  for (let i = 0; i < rows.length; i++) {
    for (let j = 0; j < rows.length; j++) {
      if (j === i) continue;
      const factor = rows[j]![i]! / rows[i]![i]!;
      rows[j] = rows[j]!.map((value, k) => value - factor * rows[i]![k]!);
    }
  }
  return rows.map((row, i) => row.at(-1)! / row[i]!);
}

const thumbsOf = (raters: number, rest: Partial<Likelihood['thumbs']> = {}): Likelihood['thumbs'] => ({
  ...freshLikelihood(raters).thumbs,
  ...rest,
});
const ints = (numbers: number[]) => tf.tensor1d(numbers, 'int32') as Tensor;

describe('thumbs', () => {
  test('of a rater who is not known P(up) is logistic, and of a known one its logarithm’s mean over the leniency', () => {
    const [m, v] = [0.6, 0.9];
    const thumbs = thumbsOf(4, {
      bias: tf.scalar(-0.2),
      logScale: tf.scalar(Math.log(1.5)),
      mean: tf.tensor1d([9, m, 0, 0]),
      logVariance: tf.tensor1d([9, Math.log(v), 0, 0]),
    });
    const [unknown, known] = values(
      logThumb(tf.tensor1d([0.5, 0.5]), thumbs, { sign: tf.tensor1d([1, -1]), rater: ints([0, 1]) }),
    );
    const logit = 1.5 * 0.5 - 0.2;
    expect(unknown).toBeCloseTo(Math.log(σ(logit)), 5);
    let sum = 0; // by the trapezoid rule
    for (let z = -8; z <= 8; z += 0.001)
      sum += (0.001 * Math.exp((-z * z) / 2) * Math.log(σ(-(logit + m + Math.sqrt(v) * z)))) / Math.sqrt(2 * Math.PI);
    expect(known).toBeCloseTo(sum, 4);
  });

  test('a rater’s KL is that of two Gaussians, and 0 where q is the prior', () => {
    const thumbs = thumbsOf(2, {
      mean: tf.tensor1d([0, 0.7]),
      logVariance: tf.tensor1d([2 * Math.log(0.5), Math.log(0.3)]),
    });
    const [none, some] = values(klOfRaters(thumbs));
    expect(none).toBeCloseTo(0, 6);
    expect(some).toBeCloseTo(0.5 * (0.3 / 0.25 + 0.49 / 0.25 - 1 - Math.log(0.3 / 0.25)), 5);
  });

  /** Maximises the bound over leniencies, τ and b on votes of raters 1, 2, …, whose answers score nothing. */
  function fitted(votes: [rater: number, up: boolean][], raters: number) {
    const rater = ints(votes.map(([of]) => of));
    const sign = tf.tensor1d(votes.map(([, up]) => (up ? 1 : -1)));
    const known = tf.tensor1d(Array.from({ length: raters + 1 }, (_, i) => (i > 0 ? 1 : 0)));
    const loss = (thumbs: Likelihood['thumbs'], part: Tree) => {
      const { r, ...said } = part as { r: Tensor; sign: Tensor; rater: Tensor; known: Tensor };
      const unlikely = tf.neg(tf.sum(logThumb(r, thumbs, said)));
      return { loss: tf.add(unlikely, tf.sum(tf.mul(said.known, klOfRaters(thumbs)))) as Tensor };
    };
    const adam = { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0, clipNorm: 1e9 };
    const step = trainer(`thumbs of ${raters}`, loss, adam);
    let parameters = thumbsOf(raters + 1);
    let state = adamState(parameters);
    for (let i = 0; i < 600; i++) {
      const part = {
        r: tf.zeros([votes.length]) as Tensor,
        sign: tf.clone(sign),
        rater: tf.clone(rater),
        known: tf.clone(known),
      };
      ({ parameters, adam: state } = step(parameters, state, 0.05 * (1 - i / 600), [part]));
    }
    const read = {
      m: values(parameters.mean),
      v: values(parameters.logVariance).map(Math.exp),
      τ: Math.exp(values(parameters.logDeviation)[0]!),
    };
    dispose(parameters, state);
    return read;
  }
  const votesOf = (leniencies: number[], each: number): [number, boolean][] => {
    const draws = random(8);
    return leniencies.flatMap((u, j) => Array.from({ length: each }, (): [number, boolean] => [j + 1, draws() < σ(u)]));
  };

  test('lenient raters and strict ones are told apart, and τ is about what was planted', () => {
    const planted = [1.5, 1, 2, -1.5, -1, -2, 0.8, -0.8];
    const { m, τ } = fitted(votesOf(planted, 60), planted.length);
    for (const [j, u] of planted.entries()) expect(Math.sign(m[j + 1]!)).toBe(Math.sign(u));
    expect(τ).toBeGreaterThan(0.9);
    expect(τ).toBeLessThan(2.2); // planted: 1.4
  });

  test('where raters do not differ, τ goes to 0', () => {
    expect(fitted(votesOf(Array(12).fill(0), 60), 12).τ).toBeLessThan(0.25);
  });

  test('one vote says less of its rater than fifty that say the same', () => {
    const others = votesOf([1.2, -1.2, 1.2, -1.2], 50);
    const fifty = Array.from({ length: 50 }, (): [number, boolean] => [5, true]);
    const { m, v } = fitted([...others, ...fifty, [6, true]], 6);
    expect(m[6]).toBeGreaterThan(0);
    expect(m[6]).toBeLessThan(m[5]! / 2);
    expect(v[6]).toBeGreaterThan(v[5]!);
  });
});

const all = (grades: number) => Array.from({ length: grades }, (_, grade) => grade);
const randomRatings = (): Likelihood['ratings'] => ({
  logScale: tf.tensor1d(normals(ASPECTS, 0.5)),
  firstCut: tf.tensor1d(normals(ASPECTS)),
  logSteps: tf.tensor1d(normals(ASPECTS * 3)),
});

describe('ratings', () => {
  test('cuts are in order whatever the parameters are', () => {
    for (let round = 0; round < 20; round++) {
      const cuts = cutsOf(randomRatings());
      const flat = values(cuts);
      for (let i = 0; i < flat.length; i++) if (i % 4 > 0) expect(flat[i]).toBeGreaterThan(flat[i - 1]!);
    }
  });

  test('a grade’s probability is the difference of two logistic curves at its aspect’s cuts; the five sum to 1', () => {
    const ratings = randomRatings();
    const cuts = values(cutsOf(ratings));
    const scales = values(ratings.logScale).map(Math.exp);
    for (const q of [-2, 0.3, 4]) {
      for (let aspect = 0; aspect < ASPECTS; aspect++) {
        const logP = logRating(tf.fill([GRADES], q), ratings, {
          aspect: tf.fill([GRADES], aspect, 'int32'),
          grade: ints(all(GRADES)),
        });
        const p = values(logP).map(Math.exp);
        const atMost = (grade: number) =>
          grade < 0 ? 0 : grade > 3 ? 1 : σ(cuts[4 * aspect + grade]! - scales[aspect]! * q);
        for (const grade of all(GRADES)) expect(p[grade]).toBeCloseTo(atMost(grade) - atMost(grade - 1), 5);
        expect(p.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
      }
    }
  });

  test('a grade that hardly fits has a finite logarithm and gradient', () => {
    const of = (q: Tensor) =>
      tf.sum(logRating(q, freshLikelihood(1).ratings, { aspect: ints([0, 0]), grade: ints([2, 4]) }));
    const { value, grad } = tf.valueAndGrad(of as never)(tf.tensor1d([300, -300]));
    expect([...values(value), ...values(grad as Tensor)].every(Number.isFinite)).toBe(true);
  });

  test('planted cuts and scale are recovered', () => {
    const cuts = [-2, -0.5, 0.4, 2.2];
    const draws = random(11);
    const q = Array.from({ length: 4000 }, () => draws.normal());
    const grade = q.map((x) => {
      const u = draws();
      return cuts.filter((cut) => u > σ(cut - 1.6 * x)).length;
    });
    const loss = (ratings: Likelihood['ratings'], part: Tree) => {
      const { q, ...said } = part as { q: Tensor; aspect: Tensor; grade: Tensor };
      return { loss: tf.neg(tf.mean(logRating(q, ratings, said))) as Tensor };
    };
    const step = trainer('ratings', loss, { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0, clipNorm: 1e9 });
    let parameters = freshLikelihood(1).ratings;
    let state = adamState(parameters);
    for (let i = 0; i < 300; i++) {
      const part = {
        q: tf.tensor1d(q) as Tensor,
        aspect: tf.fill([q.length], 3, 'int32') as Tensor,
        grade: ints(grade),
      };
      ({ parameters, adam: state } = step(parameters, state, 0.05 * (1 - i / 300), [part]));
    }
    const found = values(cutsOf(parameters)).slice(12, 16);
    for (const [i, cut] of cuts.entries()) expect(Math.abs(found[i]! - cut)).toBeLessThan(0.2); // standard errors are ≈ .05
    expect(Math.abs(Math.exp(values(parameters.logScale)[3]!) - 1.6)).toBeLessThan(0.15);
  });
});

const outcomes = (): Likelihood['outcomes'] => ({
  logScale: tf.tensor1d([Math.log(2), Math.log(0.5), ...Array(6).fill(0)]),
  bias: tf.tensor1d([0.3, -0.1, ...Array(6).fill(0)]),
  logDeviation: tf.tensor1d([5, Math.log(0.7), ...Array(6).fill(0)]),
});

test('outcomes: a boolean is logistic, a number Gaussian around a line', () => {
  const r = tf.tensor1d([0.4, 0.4, 0.4]);
  const said = { name: ints([0, 0, 1]), value: tf.tensor1d([1, 0, 1.2]), isNumber: tf.tensor1d([0, 0, 1]) };
  const [yes, no, number] = values(logOutcome(r, outcomes(), said)) as [number, number, number];
  expect(yes).toBeCloseTo(Math.log(σ(2 * 0.4 + 0.3)), 5);
  expect(Math.exp(yes) + Math.exp(no)).toBeCloseTo(1, 5);
  const z = (1.2 - (0.5 * 0.4 - 0.1)) / 0.7;
  expect(number).toBeCloseTo(-(z * z) / 2 - Math.log(0.7) - 0.5 * Math.log(2 * Math.PI), 5);
});

/** One of each kind of evidence on six answers, as a function of scores and of everything that is learnt beside them. */
const evidence = {
  stages: stagesFor([
    [[0, 1, 2], [1]],
    [
      [2, 3, 4, 5],
      [3, 5],
    ],
    [
      [4, 2],
      [2, 4],
    ],
  ]),
  thumbs: { sign: tf.tensor1d([1, -1, 1, 1, -1, -1]), rater: ints([0, 1, 2, 1, 0, 2]) },
  ratings: { aspect: ints([0, 0, 1, 1, 2, 2]), grade: ints([0, 1, 2, 3, 4, 2]) },
  outcomes: {
    name: ints([0, 0, 1, 1, 2, 2]),
    value: tf.tensor1d([1, 0, 1.2, -0.7, 1, 0]),
    isNumber: tf.tensor1d([0, 0, 1, 1, 0, 0]),
  },
};
const logPs = (r: Tensor, apart: Tensor, likelihood: Likelihood): Record<keyof Likelihood, Tensor> => ({
  choices: logChoice(r, likelihood.choices, evidence.stages),
  thumbs: tf.concat([logThumb(r, likelihood.thumbs, evidence.thumbs), klOfRaters(likelihood.thumbs)]),
  ratings: logRating(tf.add(r, apart), likelihood.ratings, evidence.ratings),
  outcomes: logOutcome(r, likelihood.outcomes, evidence.outcomes),
});
const someLikelihood = (): Likelihood => ({
  choices: choices(normals(ITEMS - 1), 0.3),
  thumbs: {
    logScale: tf.scalar(0.2),
    bias: tf.scalar(-0.4),
    mean: tf.tensor1d(normals(3)),
    logVariance: tf.tensor1d(normals(3)),
    logDeviation: tf.scalar(-0.1),
  },
  ratings: randomRatings(),
  outcomes: outcomes(),
});

test.each(['choices', 'thumbs', 'ratings', 'outcomes'] as const)(
  'the gradients of %s are the slopes of their logarithms',
  (kind) => {
    const likelihood = someLikelihood();
    const names = Object.keys(likelihood[kind]);
    const [r, apart] = [tf.tensor1d(normals(6)), tf.tensor1d(normals(6, 0.5))];
    const weights = normals(40);
    const of = (r: Tensor, ...tensors: Tensor[]) => {
      const own = Object.fromEntries(names.map((name, i) => [name, tensors[i]!]));
      const logP = logPs(r, apart, { ...likelihood, [kind]: own })[kind];
      return tf.sum(tf.mul(logP, tf.tensor1d(weights.slice(0, logP.shape[0]))));
    };
    const given = [r, ...Object.values(likelihood[kind])] as Tensor[];
    const gradients = tf.grads(of as never)(given as never) as Tensor[];
    for (const [i, tensor] of given.entries()) {
      const numbers = values(tensor);
      const gradient = values(gradients[i]!);
      for (const [j, number] of numbers.entries()) {
        const at = (value: number) => {
          const moved = tf.tensor(numbers.with(j, value), tensor.shape);
          return values(of(...(given.with(i, moved) as [Tensor])))[0]!;
        };
        const h = 0.01;
        expect(Math.abs((at(number + h) - at(number - h)) / (2 * h) - gradient[j]!)).toBeLessThan(
          0.005 * (1 + Math.abs(gradient[j]!)),
        );
      }
    }
  },
);

test('scores that are moved and stretched keep every probability with the likelihood that is rescaled with them', () => {
  const likelihood = someLikelihood();
  const [r, apart] = [tf.tensor1d(normals(6)), tf.tensor1d(normals(6))];
  const before = logPs(r, apart, likelihood);
  const [gain, shift] = [2.6, 0.9];
  const after = logPs(tf.mul(tf.sub(r, shift), gain), tf.mul(apart, gain), rescaled(likelihood, gain, shift));
  for (const kind of ['choices', 'thumbs', 'ratings', 'outcomes'] as const) {
    const expected = values(before[kind]);
    for (const [i, logP] of values(after[kind]).entries()) expect(logP).toBeCloseTo(expected[i]!, 3);
  }
});
