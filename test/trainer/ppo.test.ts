import { afterAll, expect, test } from 'vitest';
import { PPO_DEFAULTS, type PpoConfig, REWARD_DEFAULTS } from '../../schema/run-config.ts';
import { ppoStateFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import type { Row } from '../../trainer/data.ts';
import { dispose, flatten, mapTree } from '../../trainer/engine/compile.ts';
import { type Tensor, tf } from '../../trainer/engine/tf.ts';
import { DivergedError, type Progress } from '../../trainer/metrics.ts';
import { adamState } from '../../trainer/optimizer.ts';
import { type PpoState, policyCalls, ppo } from '../../trainer/ppo.ts';
import { rewardCalls, type Scorer, scores } from '../../trainer/reward.ts';
import { adaptedBeta } from '../../trainer/rl.ts';
import { type Sampler, startSampler } from '../../trainer/rollout.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

const SHAPE = { rows: 2, columns: 64 };
const MAX_TOKENS = 8;
const parent = tinyParameters();
const sampler = startSampler(TINY);
afterAll(() => sampler.close());
const prompts = [
  [2, 3],
  [4, 5, 6],
  [7, 8],
];
/** A reward model that reads one direction of the parent's own states. */
const rm = {
  parameters: mapTree(parent, tf.clone),
  head: { weight: tf.randomNormal([TINY.hidden_size], 0, 1, 'float32', 3) as Tensor, bias: tf.scalar(0) as Tensor },
} satisfies Scorer;
const CONFIG: PpoConfig = {
  ...PPO_DEFAULTS,
  episodes: 128,
  rollout: 32,
  minibatch: 16,
  learningRate: 2e-3,
  beta: 0.01,
  klLimit: 200,
  seed: 1,
};

// Compiled once: none of the settings that tests vary is frozen into the calls.
const calls = { policy: policyCalls(TINY, SHAPE, CONFIG), reward: rewardCalls(TINY, SHAPE, REWARD_DEFAULTS) };

async function run(
  config: Partial<PpoConfig> = {},
  from: PpoState | null = null,
  save: (state: PpoState) => void = () => {},
  draw: Sampler = sampler.sample,
  asked = prompts,
  policy = calls.policy,
) {
  const settings = { ...CONFIG, ...config };
  const history: Progress[] = [];
  const trained = await ppo(
    TINY,
    policy,
    (rows) => scores(calls.reward, rm, rows, TINY.pad_token_id),
    parent,
    asked,
    draw,
    MAX_TOKENS,
    settings,
    (p) => void history.push(p),
    from,
    save,
  );
  return { trained, history };
}
const numbers = (tree: Parameters<typeof flatten>[0]) =>
  flatten(tree).map((t) => Buffer.from(t.dataSync().buffer.slice(0)).toString('base64'));

test('the score rises, KL to the parent with it, and the parent is left as it was', async () => {
  const before = numbers(parent);
  const { history } = await run({ episodes: 320 });
  const of = (name: string, at: number) => history.at(at)!.metrics[name]!;
  expect(of('objective/score', -1)).toBeGreaterThan(of('objective/score', 0) + 0.1);
  expect(of('objective/kl', 0)).toBeCloseTo(0, 3);
  expect(of('objective/kl', -1)).toBeGreaterThan(0.05);
  expect(numbers(parent)).toEqual(before);
});

test('before any step the ratio is 1 and nothing is clipped', async () => {
  // One minibatch a batch and a learning rate of 0: every update is a first one.
  const { history } = await run({ rollout: 16, episodes: 16, epochs: 1, learningRate: 0 });
  const { metrics } = history[0]!;
  expect(metrics['ppo/policy/clipfrac']).toBe(0);
  expect(metrics['ppo/policy/ratio_error']).toBeLessThan(1e-5);
  expect(metrics['ppo/policy/ratio_error_max']).toBeLessThan(1e-4);
  expect(metrics['ppo/policy/ratio_error_max']).toBeGreaterThanOrEqual(metrics['ppo/policy/ratio_error']!);
  expect(metrics['ppo/policy/approxkl']).toBeLessThan(1e-9);
  // the entropy of each token, and as the answers that were drawn tell it of a whole one
  const drawn = metrics['objective/entropy']! / metrics['objective/length']!;
  expect(metrics['ppo/policy/entropy']).toBeGreaterThan(0.5);
  expect(metrics['ppo/policy/entropy']! / drawn).toBeGreaterThan(0.8);
  expect(metrics['ppo/policy/entropy']! / drawn).toBeLessThan(1.25);
  // and after steps it isn't
  const { history: later } = await run({ rollout: 16, episodes: 16, epochs: 2 });
  expect(later[0]!.metrics['ppo/policy/ratio_error_max']).toBeGreaterThan(1e-3);
});

test('rollouts are drawn at the temperature at which they are scored: the trainer’s log-probabilities are the sampler’s', async () => {
  for (const temperature of [1, 0.2]) {
    const { history } = await run({ rollout: 16, episodes: 16, epochs: 1, learningRate: 0, temperature });
    expect(Math.abs(history[0]!.metrics['rollout/importance_mean']! - 1)).toBeLessThan(0.02);
    expect(history[0]!.metrics['ppo/policy/approxkl']).toBeLessThan(1e-6); // the loss takes the same temperature
    expect(Math.abs(history[0]!.metrics['objective/kl']!)).toBeLessThan(1e-4); // and so does the reference
  }
});

test('every answer of a run is drawn from a seed of its own', async () => {
  const seen: number[] = [];
  const noting: Sampler = (policy, asked, seeds, options) => {
    seen.push(...seeds);
    return sampler.sample(policy, asked, seeds, options);
  };
  await run({}, null, () => {}, noting);
  expect(seen).toHaveLength(CONFIG.episodes);
  expect(new Set(seen).size).toBe(CONFIG.episodes);
});

test('each of the clips bounds what is learnt: the policy’s, the value’s, and the second of the policy’s', async () => {
  const learnt = async (clips: Partial<PpoConfig>) => {
    const policy = policyCalls(TINY, SHAPE, { ...CONFIG, ...clips });
    const { trained } = await run({ episodes: 32, learningRate: 0.01 }, null, undefined, undefined, undefined, policy);
    return numbers(trained);
  };
  const usual = await learnt({});
  expect(await learnt({})).toEqual(usual);
  for (const clips of [{ clip: 1e-3 }, { valueClip: 1e-3 }, { dualClip: 1.001 }])
    expect({ clips, learnt: await learnt(clips) }).not.toEqual({ clips, learnt: usual });
}, 120_000);

test('an iteration’s updates end once the policy is far from where they began', async () => {
  const updates = async (stopKl: number) =>
    (await run({ episodes: 32, learningRate: 0.05, stopKl })).history[0]!.metrics['ppo/updates'];
  expect(await updates(Number.POSITIVE_INFINITY)).toBe((CONFIG.epochs * CONFIG.rollout) / CONFIG.minibatch);
  expect(await updates(1e-4)).toBe(2); // the first is at distance 0, the second beyond it
});

test('scores beyond the clip count as the clip', async () => {
  const score = async (scoreClip: number) =>
    (await run({ episodes: 32, scoreClip, missingEosScore: 0 })).history[0]!.metrics['objective/score']!;
  expect(Math.abs(await score(1e-3))).toBeLessThanOrEqual(1e-3);
  expect(Math.abs(await score(Number.POSITIVE_INFINITY))).toBeGreaterThan(1e-3);
});

test('a batch whose tokens are worth less than half their number ends the run', async () => {
  const other: Sampler = async (...args) =>
    (await sampler.sample(...args)).map(({ ids, logprobs }) => ({
      ids,
      logprobs: logprobs.map((logprob, i) => logprob + (i % 4 > 0 ? 9 : 0)),
    }));
  await expect(run({}, null, () => {}, other)).rejects.toThrow(/its tokens are worth \d+ % of their number/);
});

test('the KL coefficient is moved after every iteration', async () => {
  const { history } = await run({ klTarget: 0.05, horizon: 100 });
  const of = (name: string) => history.map(({ metrics }) => metrics[name]!);
  const [betas, kls] = [of('objective/kl_coef'), of('objective/kl')];
  for (let i = 1; i < betas.length; i++)
    expect(betas[i]).toBeCloseTo(
      adaptedBeta(betas[i - 1]!, kls[i - 1]!, { target: 0.05, horizon: 100 }, CONFIG.rollout),
    );
  expect(new Set(betas).size).toBe(betas.length);
  // and what KL costs is taken off the score
  for (const [i, total] of of('objective/score_total').entries())
    expect(total).toBeCloseTo(of('objective/score')[i]! - betas[i]! * kls[i]!, 7);
  expect(betas.at(-1)! * kls.at(-1)!).toBeGreaterThan(1e-5);
});

test('what the sampler finds likelier than the trainer does weighs less in the loss', async () => {
  const likelier: Sampler = async (...args) =>
    (await sampler.sample(...args)).map(({ ids, logprobs }) => ({
      ids,
      logprobs: logprobs.map((logprob, i) => logprob + (i % 2) * Math.LN2),
    }));
  const once = { episodes: 32, epochs: 1 };
  const [plain, weighed] = [await run(once), await run(once, null, () => {}, likelier)];
  expect(plain.history[0]!.metrics['rollout/importance_mean']).toBeCloseTo(1, 1);
  expect(weighed.history[0]!.metrics['rollout/importance_mean']).toBeLessThan(0.9);
  expect(numbers(weighed.trained)).not.toEqual(numbers(plain.trained));
});

test('a learning rate of 0 changes nothing', async () => {
  const { trained } = await run({ learningRate: 0 });
  expect(numbers(trained)).toEqual(numbers(parent));
});

test('two iterations, saved, and two more are four iterations, bit for bit', async () => {
  const { trained: whole } = await run();
  let saved: PpoState | undefined;
  await run({}, null, (state) => {
    if (state.iteration === 2)
      saved = { ...state, actor: mapTree(state.actor, tf.clone), adam: mapTree(state.adam, tf.clone) };
  });
  const { trained: resumed } = await run({}, saved!);
  expect(numbers(resumed)).toEqual(numbers(whole));
});

test('the value head begins at 0, and the learning rate falls in a line', async () => {
  const { history } = await run();
  expect(history[0]!.metrics['ppo/val/mean']).toBe(0);
  expect(history[1]!.metrics['ppo/val/mean']).not.toBe(0);
  expect(history.map(({ metrics }) => metrics['ppo/lr']! / CONFIG.learningRate)).toEqual([1, 0.75, 0.5, 0.25]);
});

const cut: Sampler = async (...args) =>
  (await sampler.sample(...args)).map(() => ({ ids: [5, 6, 7], logprobs: [-3, -3, -3] }));
/** One update of a policy that is the parent, values every token at `value`, and is rewarded for the answer's score alone. */
async function updateOnce(value: number, score: number, config: Partial<PpoConfig>) {
  const actor = {
    parameters: mapTree(parent, tf.clone),
    value: { weight: tf.zeros([TINY.hidden_size]) as Tensor, bias: tf.scalar(value) as Tensor },
  };
  const from = { actor, adam: adamState(actor), beta: 0, iteration: 0 };
  const once = { episodes: 32, minibatch: 32, epochs: 1, lambda: 1, missingEosScore: score, ...config };
  const after: Record<string, number> = {};
  const { history } = await run(
    once,
    from,
    ({ actor, adam }) => {
      const { bias } = actor.value;
      const at = flatten(actor).indexOf(bias);
      for (const [name, tensor] of Object.entries({ bias, m: adam.m[at]!, v: adam.v[at]! }))
        after[name] = tensor.dataSync()[0]!;
    },
    cut,
  );
  return { after, metrics: history[0]!.metrics };
}

test('values are fitted to returns, which are advantages and values together', async () => {
  const { metrics } = await updateOnce(2, -7, { learningRate: 0 });
  expect(metrics['ppo/returns/mean']).toBeCloseTo(-7, 4);
  expect(metrics['ppo/val/error']).toBeCloseTo((2 - -7) ** 2, 3);
});

test('rewards are whitened only where it is asked for, and keep their mean then', async () => {
  const { metrics } = await updateOnce(0, -7, { learningRate: 0, whitenRewards: true });
  const [mean, deviation] = [-7 / 3, 7 * Math.sqrt(2 / 9)]; // of 0, 0, −7
  const [other, last] = [mean - mean / deviation, mean + (-7 - mean) / deviation];
  const returns = [2 * other + last, other + last, last];
  expect(metrics['ppo/returns/mean']).toBeCloseTo(returns.reduce((sum, x) => sum + x) / 3, 3);
  // what is told of them, of values that are all 0
  const variance = (2 / 3) * other ** 2;
  const error = returns.reduce((sum, x) => sum + x * x, 0) / 3;
  expect(metrics['ppo/returns/var']).toBeCloseTo(variance, 3);
  expect([metrics['ppo/val/mean'], metrics['ppo/val/var']]).toEqual([0, 0]);
  expect(metrics['ppo/val/error']).toBeCloseTo(error, 2);
  expect(metrics['ppo/val/var_explained']! / (1 - error / variance)).toBeCloseTo(1, 3);
});

test('each prompt has four answers, which stay in one minibatch, and each answer is learnt from twice', async () => {
  const minibatches: number[][] = [];
  const step: typeof calls.policy.step = (actor, adam, rate, parts) => {
    minibatches.push(parts.flatMap(({ predictions }) => [...(predictions.target.dataSync() as Int32Array)]));
    return calls.policy.step(actor, adam, rate, parts);
  };
  const named: Sampler = async (_, asked) =>
    asked.map((_, i) => ({ ids: [8 + Math.floor(i / 4), TINY.eos_token_id], logprobs: [-3, -3] }));
  const { rollout, minibatch } = CONFIG;
  await ppo(
    TINY,
    { ...calls.policy, step },
    (rows) => rows.map(() => 0),
    parent,
    prompts,
    named,
    MAX_TOKENS,
    { ...CONFIG, episodes: rollout, importanceCap: 1 },
    () => {},
  );
  const groups = minibatches.map((targets) =>
    Array.from({ length: rollout / 4 }, (_, g) => targets.filter((id) => id === 8 + g).length).filter(Boolean),
  );
  expect(groups).toEqual(new Array((2 * rollout) / minibatch).fill(new Array(minibatch / 4).fill(4)));
});

test('each iteration draws and divides its answers in its own way, and each run in another', async () => {
  const drawnBy = async (seed: number) => {
    const seeds: number[][] = [];
    const orders: string[] = [];
    const named: Sampler = async (_, asked, own) => {
      seeds.push([...own]);
      return asked.map((_, i) => ({ ids: [8 + Math.floor(i / 4), TINY.eos_token_id], logprobs: [-3, -3] }));
    };
    const step: typeof calls.policy.step = (actor, adam, rate, parts) => {
      const targets = parts.flatMap(({ predictions }) => [...(predictions.target.dataSync() as Int32Array)]);
      orders.push([...new Set(targets.filter((id) => id >= 8))].sort((a, b) => a - b).join());
      return calls.policy.step(actor, adam, rate, parts);
    };
    const config = { seed, rollout: 32, minibatch: 8, episodes: 64, epochs: 1, importanceCap: 1 };
    await run(config, null, () => {}, named, prompts, { ...calls.policy, step });
    return { seeds, orders };
  };
  const [one, other] = [await drawnBy(1), await drawnBy(2)];
  expect(new Set([...one.seeds, ...other.seeds].flat()).size).toBe(4 * 32);
  expect(new Set([one.orders.slice(0, 4), one.orders.slice(4), other.orders.slice(0, 4)].map(String)).size).toBe(3);
});

test('the loss takes advantages that are whitened over the whole batch, not over a minibatch', async () => {
  const minibatches: number[][] = [];
  const step: typeof calls.policy.step = (actor, adam, rate, parts) => {
    minibatches.push(
      parts.flatMap(({ advantages, predictions }) => {
        const weight = predictions.weight.dataSync();
        return [...(advantages.dataSync() as Float32Array)].filter((_, i) => weight[i]! > 0);
      }),
    );
    return calls.policy.step(actor, adam, rate, parts);
  };
  await ppo(
    TINY,
    { ...calls.policy, step },
    (rows) => rows.map(({ answer }) => answer[0]! - answer.length),
    parent,
    prompts,
    sampler.sample,
    MAX_TOKENS,
    { ...CONFIG, episodes: 32, minibatch: 8, epochs: 1, learningRate: 0 },
    () => {},
  );
  const moments = (x: number[]) => {
    const mean = x.reduce((a, b) => a + b, 0) / x.length;
    return [mean, x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length] as const;
  };
  const [mean, variance] = moments(minibatches.flat());
  expect(mean).toBeCloseTo(0, 4);
  expect(variance).toBeCloseTo(1, 3);
  expect(Math.max(...minibatches.map((of) => Math.abs(moments(of)[0])))).toBeGreaterThan(0.05);
});

test('Adam is lm-human-preferences’: ε of 1e-5 in TensorFlow 1’s form, and β₂ of .95 with which it tunes fast enough', async () => {
  const value = 1e-3;
  const gradient = CONFIG.valueWeight * value; // of the value's bias, where every return is 0
  const { after } = await updateOnce(value, 0, { learningRate: 0.5 });
  expect(after.m! / gradient).toBeCloseTo(1 - 0.9, 4);
  expect(after.v! / gradient ** 2).toBeCloseTo(1 - 0.95, 4);
  const corrected = Math.sqrt(1 - 0.95) * gradient;
  expect(after.bias).toBeCloseTo(value - (0.5 * corrected) / (corrected + 1e-5), 4);
});

test('each iteration asks the prompts that come next: every prompt once before any comes again', async () => {
  const ten = Array.from({ length: 10 }, (_, i) => [2 + i, 3]);
  const asked: number[][] = [];
  const noting: Sampler = (parameters, prompts, ...rest) => {
    asked.push(...prompts);
    return sampler.sample(parameters, prompts, ...rest);
  };
  await run({ episodes: 40, rollout: 8, answersPerPrompt: 2, epochs: 1 }, null, () => {}, noting, ten);
  const distinct = asked.filter((_, i) => i % 2 === 0).map(String);
  expect(asked.filter((_, i) => i % 2 === 1).map(String)).toEqual(distinct);
  const passes = [distinct.slice(0, 10), distinct.slice(10)];
  for (const pass of passes) expect(pass.toSorted()).toEqual(ten.map(String).toSorted());
  expect(passes[1]).not.toEqual(passes[0]); // each in an order of its own
});

test('an answer that ended too soon has the score of one that was cut', async () => {
  const { history } = await run({ rollout: 16, episodes: 16, minTokens: MAX_TOKENS, missingEosScore: -7 });
  expect(history[0]!.metrics).toMatchObject({ 'objective/score': -7, 'objective/eos': 0 });
  const all = await run({ rollout: 16, episodes: 16, minTokens: 0, missingEosScore: -7 });
  expect(all.history[0]!.metrics['objective/eos']).toBeGreaterThan(0);
  // Two tokens beside the one that ends it are enough, one is too few: half of the answers have each.
  const short: Sampler = async (_, asked) =>
    asked.map((_, i) => {
      const ids = [5, ...(i % 2 ? [6] : []), TINY.eos_token_id];
      return { ids, logprobs: ids.map(() => -Math.log(TINY.vocab_size)) };
    });
  const one = await run({ rollout: 16, episodes: 16, minTokens: 2 }, null, () => {}, short);
  expect(one.history[0]!.metrics['objective/eos']).toBe(0.5);
});

test('with a value model of its own the policy learns, and both are saved and resumed bit for bit', async () => {
  const states: PpoState[] = [];
  const keep = ({ actor, adam, ...rest }: PpoState) =>
    void states.push({ actor: mapTree(actor, tf.clone), adam: mapTree(adam, tf.clone), ...rest } as PpoState);
  const config = { separateValue: true, rollout: 16, episodes: 32, epochs: 1 };
  const whole = await run(config, null, keep);
  const critics = states.map(({ actor }) => numbers(actor.critic!));
  expect(critics[0]).toEqual(numbers(parent)); // the head begins at 0, and hands nothing back in the first update
  expect(critics[1]).not.toEqual(critics[0]);
  expect(whole.history[1]!.metrics['ppo/val/mean']).not.toBe(0);
  const { actor, adam, ...scalars } = states[0]!;
  const again = ppoStateFromFile(treeToFile({ actor, adam }), scalars, parent);
  const resumed = await run(config, again);
  expect(numbers(resumed.trained)).toEqual(numbers(whole.trained));
});

test('an answer that was cut before its end has the score for that, whatever the reward model says', async () => {
  const history: Progress[] = [];
  const config = { ...CONFIG, episodes: 32, missingEosScore: -7 };
  const reward = (rows: Row[]) => scores(calls.reward, rm, rows, TINY.pad_token_id);
  await ppo(TINY, calls.policy, reward, parent, prompts, cut, 3, config, (p) => void history.push(p));
  expect(history[0]!.metrics).toMatchObject({ 'objective/score': -7, 'objective/eos': 0 });
});

test('a KL beyond the limit ends the run with its reason', async () => {
  await expect(run({ klLimit: 1e-9, episodes: 96 })).rejects.toThrow(DivergedError);
  await expect(run({ klLimit: 1e-9, episodes: 96 })).rejects.toThrow(/KL to the parent is/);
});

test('answers that have become next to nothing end the run', async () => {
  const nothing: Sampler = async (...args) =>
    (await sampler.sample(...args)).map(() => ({ ids: [TINY.eos_token_id], logprobs: [-3] }));
  await expect(run({ importanceCap: 1e6 }, null, () => {}, nothing)).rejects.toThrow(
    /answers have collapsed to 1\.0 tokens at iteration 1/,
  );
});

test('a reward that is not a number ends the run with the metric’s name', async () => {
  const broken = { ...rm, head: { ...rm.head, bias: tf.scalar(Number.NaN) as Tensor } };
  const trained = (score: (rows: Row[]) => Promise<number[]>, config = CONFIG) =>
    ppo(TINY, calls.policy, score, parent, prompts, sampler.sample, MAX_TOKENS, config, () => {});
  const ofBroken = (rows: Row[]) => scores(calls.reward, broken, rows, TINY.pad_token_id);
  await expect(trained(ofBroken)).rejects.toThrow(/objective\/score is NaN at step 1/);
  // nor where every answer was cut and has another score, or what is too high is clipped
  const one = (value: number) => async (rows: Row[]) => rows.map((_, i) => (i === 3 ? value : 0));
  await expect(trained(one(Number.NaN), { ...CONFIG, minTokens: MAX_TOKENS })).rejects.toThrow(
    /score is NaN at step 1/,
  );
  await expect(trained(one(Infinity), { ...CONFIG, scoreClip: 5 })).rejects.toThrow(/score is Infinity at step 1/);
});

test('no iteration leaves tensors behind', async () => {
  const counts: number[] = [];
  const { trained } = await run({ episodes: 192 }, null, () => void counts.push(tf.memory().numTensors));
  expect(new Set(counts.slice(1)).size).toBe(1);
  dispose(trained);
});
