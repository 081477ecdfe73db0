import { expect, test } from 'vitest';
import { REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { fitStateFromFile, rewardFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import type { Row } from '../../trainer/data.ts';
import { dispose, flatten, mapTree } from '../../trainer/engine/compile.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { type Judgement, stagesOf, subjectsOf } from '../../trainer/judgements.ts';
import type { Progress } from '../../trainer/metrics.ts';
import { initialParameters } from '../../trainer/model.ts';
import { random } from '../../trainer/random.ts';
import {
  accuracy,
  aspectHead,
  evidence,
  type FitState,
  fitReward,
  freshHead,
  type RewardModel,
  rewardCalls,
  rightShare,
  type Scorer,
  scores,
} from '../../trainer/reward.ts';
import { judged } from '../support/judged.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const base = tinyParameters();
const rng = random(5);
const row = (): Row => ({
  prompt: [rng.int(2, 32), rng.int(2, 32)],
  answer: [...Array.from({ length: rng.int(8, 13) }, () => rng.int(2, 32)), 1],
});
/** What the planted raters like: answers with many even tokens. */
const quality = ({ answer }: Row) => answer.filter((id) => id % 2 === 0).length / answer.length;
const compared = (count: number) =>
  Array.from({ length: count }, () => {
    const rows = [row(), row(), row()];
    const order = [0, 1, 2].sort((a, b) => quality(rows[b]!) - quality(rows[a]!));
    return judged(rows, { stages: stagesOf(order.map((i) => [i])) });
  });
const compiled = rewardCalls(TINY, SHAPE, REWARD_DEFAULTS);
const fitTo = (judgements: Judgement[], config = {}) => {
  const calls = { ...compiled, config: { ...REWARD_DEFAULTS, ...config } };
  return fitReward(TINY, calls, base, judgements, normaliseOn, 3, 'reward', () => {}).then((rm) => ({ calls, rm }));
};
const normaliseOn = Array.from({ length: 40 }, row);

test('it learns a planted preference from rankings, and scores the answers given to it to mean 0 and variance 1', async () => {
  const { calls, rm } = await fitTo(compared(150), { epochs: 8, learningRate: 2e-3 });
  expect(rightShare(await accuracy(calls, rm, compared(60), TINY.pad_token_id))).toBeGreaterThan(0.85);
  const on = await scores(calls, rm, normaliseOn, TINY.pad_token_id);
  const mean = on.reduce((a, b) => a + b, 0) / on.length;
  expect(mean).toBeCloseTo(0, 4);
  expect(on.reduce((sum, x) => sum + (x - mean) ** 2, 0) / on.length).toBeCloseTo(1, 3);
});

test('a score is the sum of the readings over the answer’s length and twenty more, and the bias', async () => {
  // without its layers a model reads each token by itself
  const parameters = { ...base, layers: mapTree(base.layers, tf.zerosLike) };
  const weight = random(6);
  const direction = Array.from({ length: TINY.hidden_size }, () => weight.normal());
  const rm: Scorer = {
    parameters,
    head: { weight: tf.tensor1d(direction), bias: tf.scalar(-0.7) },
  };
  const embedding = Array.from(base.embedding.dataSync());
  const reading = (id: number) => {
    const e = embedding.slice(id * TINY.hidden_size, (id + 1) * TINY.hidden_size);
    const rms = Math.sqrt(e.reduce((sum, x) => sum + x * x, 0) / e.length + TINY.rms_norm_eps);
    return e.reduce((sum, x, i) => sum + (x / rms) * direction[i]!, 0);
  };
  const rows = [row(), row(), ...[1, 30].map((length) => ({ prompt: [3], answer: Array<number>(length).fill(5) }))];
  const scored = await scores(compiled, rm, rows, TINY.pad_token_id);
  for (const [i, { answer }] of rows.entries())
    expect(scored[i]).toBeCloseTo(answer.reduce((sum, id) => sum + reading(id), 0) / (answer.length + 20) - 0.7, 4);
  const [short, long] = scored.slice(2).map((score) => Math.abs(score + 0.7)); // the same token, once and often
  expect(short).toBeLessThan(long! / 5);
});

/** Of a rater who is not known. */
const probability = ({ likelihood: { thumbs } }: RewardModel, r: number) =>
  1 / (1 + Math.exp(-(Math.exp(thumbs.logScale.dataSync()[0]!) * r + thumbs.bias.dataSync()[0]!)));

test('it learns from thumbs alone, and P(up) is high where people clicked up', async () => {
  const thumbs = Array.from({ length: 400 }, () => {
    const rows = [row()];
    return judged(rows, { thumbs: [{ row: 0, up: quality(rows[0]!) > 0.45, weight: 1 }] });
  });
  const { calls, rm } = await fitTo(thumbs, { epochs: 10, learningRate: 3e-3 });
  const fresh = Array.from({ length: 60 }, row);
  const scored = await scores(calls, rm, fresh, TINY.pad_token_id);
  const mean = (good: boolean) => {
    const of = fresh.flatMap((answer, i) => (quality(answer) > 0.45 === good ? [probability(rm, scored[i]!)] : []));
    return of.reduce((a, b) => a + b, 0) / of.length;
  };
  expect(mean(true)).toBeGreaterThan(0.65);
  expect(mean(false)).toBeLessThan(0.35);
});

test('of a policy with an output matrix of its own the reward model takes the rest, and is read back from its file', async () => {
  const model = { ...TINY, tie_word_embeddings: false };
  const policy = initialParameters(model, random(1));
  const calls = rewardCalls(model, SHAPE, { ...REWARD_DEFAULTS, epochs: 1 });
  const rm = await fitReward(model, calls, policy, compared(4), normaliseOn, 3, 'reward', () => {});
  const again = rewardFromFile(treeToFile(rm), policy);
  const rows = [row(), row()];
  expect(await scores(calls, again, rows, 0)).toEqual(await scores(calls, rm, rows, 0));
});

test('one thumb changes the fit: its weight in the loss is above 0', async () => {
  const few = compared(12);
  const { rm: without } = await fitTo(few, { epochs: 1 });
  const { rm: withThumb } = await fitTo([...few, judged([row()], { thumbs: [{ row: 0, up: false, weight: 1 }] })], {
    epochs: 1,
  });
  expect(withThumb.likelihood.thumbs.bias.dataSync()[0]).not.toBeCloseTo(
    without.likelihood.thumbs.bias.dataSync()[0]!,
    6,
  );
});

test('the loss of one batch is the Davidson–Luce and logistic likelihood of the scores, weighed', async () => {
  const rows = [row(), row(), row(), row()];
  const group = [
    judged(rows.slice(0, 3), { stages: stagesOf([[2], [0, 1]]) }),
    judged(rows.slice(3), { thumbs: [{ row: 0, up: false, weight: 1 }] }),
  ];
  const losses: number[] = [];
  const calls = { ...compiled, config: { ...REWARD_DEFAULTS, epochs: 1, learningRate: 0 } };
  const rm = await fitReward(
    TINY,
    calls,
    base,
    group,
    normaliseOn,
    3,
    'reward',
    ({ metrics }) => void losses.push(metrics['reward/loss']!),
  );
  // With a learning rate of 0 the scores are those that the loss saw, up to the last normalisation, which changes nothing.
  const [a, b, c, d] = (await scores(calls, rm, rows, TINY.pad_token_id)) as [number, number, number, number];
  const logSum = (...x: number[]) => Math.log(x.reduce((sum, y) => sum + Math.exp(y), 0));
  const { choices, thumbs } = rm.likelihood;
  // what scores of variance 1 say is believed as it stands, however small the fresh head's were
  for (const { logScale } of [choices, thumbs]) expect(logScale.dataSync()[0]).toBeCloseTo(0, 3);
  const [x, y, z] = [a, b, c].map((r) => Math.exp(choices.logScale.dataSync()[0]!) * r) as [number, number, number];
  const tie = Math.log(0.1); // what it starts from, for two and for three
  const amongThree = logSum(x, y, z, ...[x + y, y + z, x + z].map((sum) => tie + sum / 2), tie + (x + y + z) / 3);
  const stages = amongThree - z + (logSum(x, y, tie + (x + y) / 2) - tie - (x + y) / 2);
  const up = Math.exp(thumbs.logScale.dataSync()[0]!) * d + thumbs.bias.dataSync()[0]!;
  const thumb = Math.log(1 + Math.exp(up));
  expect(losses[0]).toBeCloseTo((stages + thumb) / 3, 4);
});

const thumbed = () =>
  Array.from({ length: 30 }, (_, i) =>
    judged([row()], { kind: 'thumb', rater: `${i % 4}`, thumbs: [{ row: 0, up: rng() < 0.8, weight: 1 }] }),
  );

const ratedBy = (aspect: string, value: (row: Row) => number, count: number) =>
  Array.from({ length: count }, () => {
    const rows = [row()];
    return judged(rows, { kind: 'rating', ratings: [{ row: 0, aspect, value: value(rows[0]!), weight: 1 }] });
  });
const grade = (share: number) => Math.max(1, Math.min(5, 1 + Math.floor(share * 5)));
/** How often the scores order two answers as a quality does. */
const concordance = (scored: number[], wanted: number[]) => {
  const pairs = scored.flatMap((a, i) => scored.map((b, j) => [a - b, wanted[i]! - wanted[j]!] as const));
  const unequal = pairs.filter(([, difference]) => difference > 0);
  return unequal.filter(([difference]) => difference > 0).length / unequal.length;
};

test('an aspect may be called what every object has', async () => {
  for (const name of ['toString', '__proto__']) {
    const { rm } = await fitTo(
      ratedBy(name, (of) => grade(quality(of)), 20),
      { epochs: 1 },
    );
    expect(Number.isFinite(rm.head.weight.dataSync()[0])).toBe(true);
  }
}, 60_000);

test('it learns from ratings; aspects that are rated the other way round get scores that differ, and the mix goes by them', async () => {
  const data = [
    ...ratedBy('even', (of) => grade(quality(of)), 250),
    ...ratedBy('odd', (of) => grade(1 - quality(of)), 250),
  ];
  const config = { epochs: 12, learningRate: 3e-3 };
  const { calls, rm } = await fitTo(data, config);
  const fresh = Array.from({ length: 80 }, row);
  const scoredAs = async (of: RewardModel, aspect: number) =>
    scores(calls, { ...of, head: aspectHead(of, aspect) }, fresh, TINY.pad_token_id);
  const [even, odd] = [await scoredAs(rm, 0), await scoredAs(rm, 1)];
  expect(concordance(even, fresh.map(quality))).toBeGreaterThan(0.7);
  expect(concordance(odd, fresh.map(quality))).toBeLessThan(0.3);
  const mixed = await fitTo(data, { ...config, mix: { odd: 1 } });
  // mean 0 and variance 1 apart the score is the aspect's, and each aspect orders as it did
  const total = await scores(calls, mixed.rm, fresh, TINY.pad_token_id);
  expect(concordance(total, odd)).toBeGreaterThan(0.999);
  expect(concordance(await scoredAs(mixed.rm, 0), even)).toBeGreaterThan(0.999);
}, 300_000);

test('it learns from outcomes, true or false and numbers, whatever their unit', async () => {
  const outcome = (value: (row: Row) => boolean | number, name: string) =>
    Array.from({ length: 250 }, () => {
      const rows = [row()];
      return judged(rows, { kind: 'outcome', outcomes: [{ row: 0, name, value: value(rows[0]!), weight: 1 }] });
    });
  const fresh = Array.from({ length: 80 }, row);
  for (const data of [
    outcome((of) => quality(of) > 0.45, 'closed'),
    outcome((of) => 70_000 + 3000 * quality(of), 'saved'),
  ]) {
    const { calls, rm } = await fitTo(data, { epochs: 10, learningRate: 3e-3 });
    expect(concordance(await scores(calls, rm, fresh, TINY.pad_token_id), fresh.map(quality))).toBeGreaterThan(0.75);
  }
}, 300_000);

/** The loss of the first step, without learning. */
async function lossOf(judgements: Judgement[], config = {}): Promise<number> {
  const losses: number[] = [];
  const calls = { ...compiled, config: { ...REWARD_DEFAULTS, epochs: 1, learningRate: 0, ...config } };
  const report = ({ metrics }: Progress) => void losses.push(metrics['reward/loss']!);
  await fitReward(TINY, calls, base, judgements, normaliseOn, 3, 'reward', report);
  return losses[0]!;
}

test('a correction weighs what is set, a row what it says, both beside 1', async () => {
  const [pair, thumb] = [[row(), row()], [row()]];
  const stage = (weight: number) => ({ stages: [{ remaining: [0, 1], chosen: [1], weight }] });
  const thumbs = judged(thumb, { kind: 'thumb', thumbs: [{ row: 0, up: true, weight: 1 }] });
  const [alone, other] = [await lossOf([judged(pair, stage(1))]), await lossOf([thumbs])];
  const corrected = judged(pair, { kind: 'correction', ...stage(1) });
  expect(await lossOf([corrected, thumbs])).toBeCloseTo((alone + other) / 2, 5);
  expect(await lossOf([corrected, thumbs], { correctionWeight: 3 })).toBeCloseTo((3 * alone + other) / 4, 5);
  expect(await lossOf([judged(pair, stage(0.25)), thumbs], { correctionWeight: 3 })).toBeCloseTo(
    (0.25 * alone + other) / 1.25,
    5,
  );
});

test('a lenient rater and a strict one are told apart in a fit, and rows without a rater have none', async () => {
  const by = (rater: string | null, up: number) =>
    Array.from({ length: 60 }, () =>
      judged([row()], { kind: 'thumb', rater, thumbs: [{ row: 0, up: rng() < up, weight: 1 }] }),
    );
  const { rm } = await fitTo([...by('lenient', 0.9), ...by('strict', 0.1), ...by(null, 0.5)], { epochs: 8 });
  const leniency = rm.likelihood.thumbs.mean.dataSync();
  expect(leniency[1]).toBeGreaterThan(0.2);
  expect(leniency[2]).toBeLessThan(-0.2);
  expect([leniency[0], leniency[3]]).toEqual([0, 0]);
});

test('the raters’ KL counts once an epoch, however many steps and calls that has', async () => {
  const by = (i: number) =>
    judged([row()], { kind: 'thumb', rater: `${i % 5}`, thumbs: [{ row: 0, up: true, weight: 1 }] });
  const data = Array.from({ length: 40 }, (_, i) => by(i));
  const subjects = subjectsOf(data);
  let sum = 0;
  for (let at = 0; at < data.length; at += 16) {
    const step = data.slice(at, at + 16);
    for (const part of evidence(step, SHAPE, TINY.pad_token_id, subjects)) {
      const weights = Array.from(part.klWeight.dataSync());
      sum += weights[1]! * step.length; // a step's loss is the mean over what is said in it
      expect(weights[0]! + weights[6]!).toBe(0);
      dispose(part);
    }
  }
  expect(sum).toBeCloseTo(1, 5);
});

test('each rater has a place, however many they are, beside that of votes without one', () => {
  for (const [raters, places] of [
    [1023, 1024],
    [1024, 2048],
  ] as const) {
    const votes = Array.from({ length: raters }, (_, i) =>
      judged([row()], { kind: 'thumb', rater: `${i}`, thumbs: [{ row: 0, up: true, weight: 1 }] }),
    );
    const [part] = evidence(votes.slice(-1), SHAPE, TINY.pad_token_id, subjectsOf(votes));
    expect(part!.klWeight.shape).toEqual([places]);
    expect(part!.thumbs.rater.dataSync()[0]).toBe(raters);
    dispose(part!);
  }
});

test('P(up) is after the last normalisation what it was before', async () => {
  const asked = Array.from({ length: 10 }, row);
  let before: number[] = [];
  const calls = { ...compiled, config: { ...REWARD_DEFAULTS, epochs: 1, learningRate: 3e-2, warmup: 1 } };
  const ups = async (rm: RewardModel) =>
    (await scores(calls, rm, asked, TINY.pad_token_id)).map((r) => probability(rm, r));
  const keep = async ({ rm }: FitState) => {
    before = await ups(rm as RewardModel);
  };
  const rm = await fitReward(TINY, calls, base, thumbed(), normaliseOn, 3, 'reward', () => {}, null, keep);
  for (const [i, up] of (await ups(rm)).entries()) expect(up).toBeCloseTo(before[i]!, 4);
  expect(Math.abs(rm.likelihood.thumbs.bias.dataSync()[0]!)).toBeGreaterThan(0.1); // there was something to shift
});

test('the learning rate rises over the warm-up, and falls to a tenth', async () => {
  const rates: number[] = [];
  const step: typeof compiled.step = (rm, adam, rate, parts) => {
    rates.push(rate);
    return compiled.step(rm, adam, 0, parts);
  };
  const config = { ...REWARD_DEFAULTS, epochs: 10, judgements: 2, warmup: 4, learningRate: 1 };
  await fitReward(TINY, { ...compiled, step, config }, base, compared(4), normaliseOn, 3, 'reward', () => {});
  const rising = [0.25, 0.5 * 0.95, 0.75 * 0.9];
  const falling = [0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1];
  expect(rates.map((rate) => rate.toFixed(6))).toEqual([...rising, ...falling].map((rate) => rate.toFixed(6)));
});

test('one that was cut off goes on with the next step, and ends with the same weights, bit for bit', async () => {
  const judgements = [...compared(9), ...thumbed().slice(0, 3), ...ratedBy('tone', () => 4, 2)];
  const calls = { ...compiled, config: { ...REWARD_DEFAULTS, epochs: 2, judgements: 4 } };
  const fitFrom = async (from: FitState | null, save?: (state: FitState) => void) => {
    const losses: unknown[] = [];
    const report = (progress: Progress) => void losses.push([progress.step, progress.metrics['reward/loss']]);
    const rm = await fitReward(TINY, calls, base, judgements, normaliseOn, 3, 'reward', report, from, save);
    return { losses, file: Buffer.from(treeToFile(rm)) };
  };
  let saved = new Uint8Array();
  const whole = await fitFrom(null, ({ rm, adam, step }) => {
    if (step === 6) saved = Uint8Array.from(treeToFile({ rm, adam }));
  });
  const resumed = await fitFrom(fitStateFromFile(saved, { step: 6 }, base));
  expect(resumed.losses).toEqual(whole.losses.slice(6));
  expect(resumed.file.equals(whole.file)).toBe(true);
});

test('the policy it starts from is left as it was', async () => {
  const before = flatten(base).map((t) => Array.from(t.dataSync().slice(0, 5)));
  const { rm } = await fitTo(compared(10), { epochs: 1 });
  expect(flatten(base).map((t) => Array.from(t.dataSync().slice(0, 5)))).toEqual(before);
  expect(Array.from((rm as RewardModel).parameters.embedding.dataSync().slice(0, 5))).not.toEqual(
    Array.from(base.embedding.dataSync().slice(0, 5)),
  );
});

test('a fresh head is N(0, 1/√(D+1))', () => {
  const weights = Array.from(freshHead(10_000, random(3)));
  const mean = weights.reduce((a, b) => a + b, 0) / weights.length;
  const variance = weights.reduce((sum, x) => sum + (x - mean) ** 2, 0) / weights.length;
  expect(Math.abs(mean)).toBeLessThan(0.0005);
  expect(variance * 10_001).toBeCloseTo(1, 1);
});
