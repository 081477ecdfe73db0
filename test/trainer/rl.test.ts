import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { tf } from '../../trainer/engine/tf.ts';
import { random } from '../../trainer/random.ts';
import {
  adaptedBeta,
  gae,
  mismatch,
  penalisedRewards,
  policyLoss,
  sequenceMean,
  tokenMean,
  valueLoss,
  whiten,
} from '../../trainer/rl.ts';

const close = (actual: ArrayLike<number>, expected: number[], digits = 4) =>
  Array.from(actual).forEach((x, i) => {
    expect(x).toBeCloseTo(expected[i]!, digits);
  });

test('rewards carry the KL penalty on every token and the score on the last one of each answer', () => {
  const shape = { columns: 3, lengths: [2, 3] };
  const { rewards, k1, k2, k3 } = penalisedRewards(
    Float32Array.from([-1, -2, 9, -1, -1, -1]),
    Float32Array.from([-1.5, -2, 9, -1, -3, -1]),
    [10, 20],
    0.1,
    shape,
  );
  close(rewards, [-0.05, 10, 0, 0, -0.2, 20]);
  close(k1, [0.5, 0, 0, 0, 2, 0]);
  close(k2, [0.125, 0, 0, 0, 2, 0]);
  close(k3, [Math.exp(-0.5) - 1 + 0.5, 0, 0, 0, Math.exp(-2) - 1 + 2, 0]);
  expect(sequenceMean(k1, shape)).toBeCloseTo(1.25);
  expect(tokenMean(k1, shape)).toBeCloseTo(0.5);
});

test('advantages agree with the definition: the discounted sum of later TD errors, token by token', () => {
  const rng = random(1);
  const columns = 7;
  const lengths = [7, 1, 4];
  const numbers = () => Float32Array.from({ length: columns * lengths.length }, () => rng.normal());
  const rewards = numbers();
  const values = numbers();
  const gamma = 0.97;
  const lambda = 0.9;
  const { advantages, returns } = gae(rewards, values, { gamma, lambda }, { columns, lengths });
  lengths.forEach((length, row) => {
    for (let t = 0; t < length; t++) {
      let expected = 0;
      for (let l = t; l < length; l++) {
        const next = l + 1 < length ? values[row * columns + l + 1]! : 0;
        expected +=
          (gamma * lambda) ** (l - t) * (rewards[row * columns + l]! + gamma * next - values[row * columns + l]!);
      }
      expect(advantages[row * columns + t]).toBeCloseTo(expected, 4);
      expect(returns[row * columns + t]).toBeCloseTo(expected + values[row * columns + t]!, 4);
    }
  });
  // Padding gets nothing.
  expect(Array.from(advantages.slice(8, 14))).toEqual([0, 0, 0, 0, 0, 0]);
});

test('whitening matches lm-human-preferences: biased variance, the mean kept where it is not to shift', () => {
  const x = Float32Array.from([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]);
  const shape = { columns: 3, lengths: [3, 3, 3] };
  close(whiten(x, false, shape).slice(0, 3), [0.0508, 0.4381, 0.8254]);
  const shifted = whiten(x, true, shape);
  expect(tokenMean(shifted, shape)).toBeCloseTo(0, 5);
});

test('whitening leaves padding out', () => {
  const shape = { columns: 2, lengths: [1, 2] };
  close(whiten(Float32Array.from([1, 1000, 2, 3]), true, shape), [-1.2247, 0, 0, 1.2247]);
});

test('the KL coefficient moves with KL/target − 1, by a fifth of n/horizon at most', () => {
  for (const [kl, factor] of [
    [40, 1.02],
    [0, 0.98],
    [4.4, 1.01],
    [3.6, 0.99],
    [4, 1],
  ] as const)
    expect(adaptedBeta(0.2, kl, { target: 4, horizon: 1280 }, 128)).toBeCloseTo(0.2 * factor, 9);
});

test('importance weights are the ratio of trainer to sampler, truncated, and say what the tokens are worth', () => {
  const trainer = Float32Array.from([-1, -1, -1, 7]);
  const { weights, mean, max, capped, effective } = mismatch(trainer, Float32Array.from([-1, -3, -0.5, 0]), 2, {
    columns: 4,
    lengths: [3],
  });
  const half = Math.exp(-0.5);
  close(weights, [1, 2, half, 0]);
  close([mean, max, capped], [(3 + half) / 3, Math.exp(trainer[1]! + 3), 1 / 3]);
  expect(effective).toBeCloseTo((3 + half) ** 2 / (1 + 4 + half ** 2) / 3);
});

const CLIP = { clip: 0.2, dualClip: Number.POSITIVE_INFINITY };

test('before any step the ratio is 1 and nothing is clipped; the loss is minus the mean advantage', () => {
  const logprobs = tf.tensor1d([-1, -2, -3]);
  const advantages = tf.tensor1d([1, -2, 50]);
  const weight = tf.tensor1d([0.5, 0.5, 0]);
  const ones = tf.onesLike(weight);
  const { loss, clipfrac, approxkl, ratio } = policyLoss(logprobs, logprobs, advantages, ones, weight, CLIP);
  close(
    [loss, clipfrac, approxkl, ratio].map((x) => x.dataSync()[0] as number),
    [0.5, 0, 0, 1],
  );
});

test('the policy loss clips gains, not losses', () => {
  const old = tf.tensor1d([0, 0]);
  const now = tf.tensor1d([Math.log(1.5), Math.log(1.5)]);
  const weight = tf.tensor1d([0.5, 0.5]);
  const { loss, clipfrac } = policyLoss(now, old, tf.tensor1d([1, -1]), tf.onesLike(old), weight, CLIP);
  // Better than before and already 1.5 times likelier: counted as 1.2. Worse: counted in full.
  expect(loss.dataSync()[0]).toBeCloseTo((-1.2 + 1.5) / 2);
  expect(clipfrac.dataSync()[0]).toBeCloseTo(0.5);
});

test('with a dual clip a bad token that became much likelier pulls no harder than so many times its advantage', () => {
  const [old, weight] = [tf.zeros([3]), tf.fill([3], 1)] as [
    ReturnType<typeof tf.tensor>,
    ReturnType<typeof tf.tensor>,
  ];
  const now = tf.tensor1d([5, 2, 5].map(Math.log));
  const lossOf = (advantages: number[], dualClip: number) =>
    policyLoss(now, old, tf.tensor1d(advantages), weight, weight, { clip: 0.2, dualClip }).loss.dataSync()[0];
  expect(lossOf([-1, -1, 0], Number.POSITIVE_INFINITY)).toBeCloseTo(5 + 2);
  expect(lossOf([-1, -1, 0], 3)).toBeCloseTo(3 + 2);
  expect(lossOf([0, 0, 1], 3)).toBeCloseTo(-1.2); // where the advantage is positive, the first clip holds already
});

test('the value loss is half the worse of plain and clipped error', () => {
  const old = tf.tensor1d([0]);
  const one = tf.onesLike(old);
  expect(valueLoss(tf.tensor1d([1]), old, tf.tensor1d([1]), one, 0.2).loss.dataSync()[0]).toBeCloseTo(0.5 * 0.8 ** 2);
  expect(valueLoss(tf.tensor1d([0.1]), old, tf.tensor1d([1]), one, 0.2).loss.dataSync()[0]).toBeCloseTo(0.5 * 0.9 ** 2);
});

describe('beside the numbers of others (golden/ppo.py)', () => {
  type Golden = Record<string, number[] & number>;
  const golden = JSON.parse(readFileSync(join(import.meta.dirname, '../golden/ppo.json'), 'utf8'));
  const [rows, columns] = golden.shape as [number, number];
  const { gamma, lambda, clip, value_clip: valueClip, beta } = golden;
  const floats = (values: number[]) => Float32Array.from(values);

  /** What ours makes of the same rollouts. */
  function ours(given: Golden, lengths: number[], whitenRewards: boolean, whitened: boolean) {
    const shape = { columns, lengths };
    const values = floats(given.values!);
    const { rewards, k1 } = penalisedRewards(
      floats(given.logprobs!),
      floats(given.reference!),
      given.scores!,
      beta,
      shape,
    );
    const estimated = gae(whitenRewards ? whiten(rewards, false, shape) : rewards, values, { gamma, lambda }, shape);
    const advantages = whitened ? whiten(estimated.advantages, true, shape) : estimated.advantages;
    const tokens = lengths.reduce((a, b) => a + b);
    const weight = tf.tensor1d(
      Array.from({ length: rows * columns }, (_, i) =>
        i % columns < lengths[Math.floor(i / columns)]! ? 1 / tokens : 0,
      ),
    );
    const policy = policyLoss(
      tf.tensor1d(given.new_logprobs!),
      tf.tensor1d(given.logprobs!),
      tf.tensor1d(advantages),
      tf.onesLike(weight),
      weight,
      { clip, dualClip: Number.POSITIVE_INFINITY },
    );
    const value = valueLoss(
      tf.tensor1d(given.vpred!),
      tf.tensor1d(values),
      tf.tensor1d(estimated.returns),
      weight,
      valueClip,
    );
    return {
      ...estimated,
      rewards,
      kl: sequenceMean(k1, shape),
      whitened: whiten(estimated.advantages, true, shape),
      losses: [policy.loss, policy.clipfrac, policy.approxkl, value.loss, value.clipfrac].map((x) => x.dataSync()[0]!),
    };
  }
  const lossesOf = (given: Golden) =>
    ['policy', 'clipfrac', 'approxkl', 'value', 'value_clipfrac'].map((name) => given[name] as number);
  const full: number[] = new Array(rows).fill(columns);

  test('ours are lm-human-preferences’: k1, the score on the last token, whitening with the biased variance, the losses, the KL controller', () => {
    const given: Golden = golden.openai;
    const we = ours(given, full, true, true);
    close(we.rewards, given.rewards!, 5);
    close(we.advantages, given.advantages!, 5);
    close(we.returns, given.returns!, 5);
    close(we.whitened, given.whitened!, 5);
    close(we.losses as number[], lossesOf(given), 5);
    expect(we.kl).toBeCloseTo(given.kl!, 5);
    expect(adaptedBeta(beta, we.kl, { target: 6, horizon: 100 }, rows)).toBeCloseTo(given.beta_after!, 6);
  });

  test('ours are TRL’s where no answer is padded and nothing whitened', () => {
    const given: Golden = golden.trl;
    const we = ours(given, full, false, false);
    close(we.rewards, given.rewards!, 5);
    close(we.advantages, given.advantages!, 5);
    close(we.returns, given.returns!, 5);
    close(we.losses as number[], lossesOf(given), 5);
  });

  test('TRL whitens by the unbiased variance: its advantages are √((n − 1)/n) of ours', () => {
    const n = rows * columns;
    const we = ours(golden.trl, full, false, false).whitened;
    close(
      we.map((x) => x * Math.sqrt((n - 1) / n)),
      golden.trl.whitened,
      5,
    );
    expect(we[0]).not.toBeCloseTo(golden.trl.whitened[0], 3);
  });

  test('TRL puts the score one past the EOS, where the value of a pad stands in; ours stands on the EOS', () => {
    const given = golden.trl_padded;
    const lengths: number[] = given.lengths;
    const we = ours(given, lengths, false, false);
    lengths.forEach((length, row) => {
      const [last, past] = [row * columns + length - 1, row * columns + length];
      const penalty = -beta * (given.logprobs[last] - given.reference[last]);
      expect(we.rewards[last]).toBeCloseTo(penalty + given.scores[row], 5);
      if (length === columns) return;
      expect(given.rewards[last]).toBeCloseTo(penalty, 5);
      expect(given.rewards[past]).toBeCloseTo(given.scores[row], 5);
      // one step further from the score, and an error of the pad's value between
      const between = gamma * given.values[past] + gamma * lambda * (given.scores[row] - given.values[past]);
      expect(given.advantages[last]).toBeCloseTo(penalty + between - given.values[last], 5);
      expect(we.advantages[last]).toBeCloseTo(penalty + given.scores[row] - given.values[last], 5);
    });
  });

  test('TRL’s approxkl is a mean over pads too: smaller than ours by the share of tokens that count', () => {
    const given = golden.trl_padded;
    const tokens = given.lengths.reduce((a: number, b: number) => a + b);
    const [, , approxkl] = ours(given, given.lengths, false, false).losses as number[];
    expect(given.approxkl).toBeCloseTo((approxkl! * tokens) / (rows * columns), 5);
  });

  test('TRL’s value loss takes in the place after the EOS; ours is over answers’ tokens', () => {
    const { lengths, vpred, values, returns, value } = golden.trl_padded;
    // Half the mean of the worse of plain and clipped error, over answers of these lengths.
    const lossOver = (longer: number) => {
      let [sum, count] = [0, 0];
      for (let i = 0; i < rows * columns; i++) {
        if (i % columns >= lengths[Math.floor(i / columns)] + longer) continue;
        const near = values[i] + Math.max(-valueClip, Math.min(valueClip, vpred[i] - values[i]));
        sum += Math.max((vpred[i] - returns[i]) ** 2, (near - returns[i]) ** 2);
        count++;
      }
      return sum / count / 2;
    };
    expect(value).toBeCloseTo(lossOver(1), 5);
    const over = lossOver(0);
    const weight = (i: number) => (i % columns < lengths[Math.floor(i / columns)] ? 1 : 0);
    const weights = Array.from({ length: rows * columns }, (_, i) => weight(i));
    const tokens = weights.reduce((a: number, b: number) => a + b, 0);
    const ourLoss = valueLoss(
      tf.tensor1d(vpred),
      tf.tensor1d(values),
      tf.tensor1d(returns),
      tf.div(tf.tensor1d(weights), tokens),
      valueClip,
    );
    expect(ourLoss.loss.dataSync()[0]).toBeCloseTo(over, 5);
    expect(value).not.toBeCloseTo(over, 3);
  });
});
