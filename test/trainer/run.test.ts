import { afterAll, expect, test, vi } from 'vitest';
import type { RunConfig } from '../../schema/run-config.ts';
import type { Side } from '../../schema/snapshot.ts';
import { fitStateFromFile, rewardsFromFile, treeToFile } from '../../trainer/checkpoint.ts';
import { runConfig } from '../../trainer/config.ts';
import { tf } from '../../trainer/engine/tf.ts';
import { type Judgement, stagesOf } from '../../trainer/judgements.ts';
import type { Progress } from '../../trainer/metrics.ts';
import { random } from '../../trainer/random.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { type Progressed, runStages, stageCalls } from '../../trainer/run.ts';
import { judged } from '../support/judged.ts';
import { TINY, tinyParameters } from '../support/tiny.ts';

/** What the stages are given, beside what they do. */
const given = vi.hoisted(() => ({
  fits: [] as { stage: string; seed: number; base: unknown; judgements: string[] }[],
  ppo: [] as { parent: unknown; prompts: number[][] }[],
  gates: [] as { policies: unknown; judgements: string[] }[],
}));
const idsOf = (judgements: Judgement[]) => judgements.map(({ id }) => id);
vi.mock(import('../../trainer/reward.ts'), async (original) => {
  const real = await original();
  const fitReward: typeof real.fitReward = (...args) => {
    given.fits.push({ stage: args[6], seed: args[5], base: args[2], judgements: idsOf(args[3]) });
    return real.fitReward(...args);
  };
  return { ...real, fitReward };
});
vi.mock(import('../../trainer/ppo.ts'), async (original) => {
  const real = await original();
  const ppo: typeof real.ppo = (...args) => {
    given.ppo.push({ parent: args[3], prompts: args[4] });
    return real.ppo(...args);
  };
  return { ...real, ppo };
});
vi.mock(import('../../trainer/evaluate.ts'), async (original) => {
  const real = await original();
  const evaluate: typeof real.evaluate = (...args) => {
    given.gates.push({ policies: args[2], judgements: idsOf(args[4]) });
    return real.evaluate(...args);
  };
  return { ...real, evaluate };
});

const sampler = startSampler(TINY);
afterAll(() => sampler.close());
const rng = random(3);
const prompt = () => [rng.int(2, 32), rng.int(2, 32)];
const judgement = (id: string): Judgement => {
  const asked = prompt();
  const rows = [0, 1].map(() => ({ prompt: asked, answer: [rng.int(2, 32), rng.int(2, 32), 1] }));
  return judged(rows, { id, root: id, stages: stagesOf([[0], [1]]) });
};
const SETTINGS = {
  ppo: { episodes: 32, rollout: 16, minibatch: 16, klLimit: 500 },
  gate: { comparisons: 20 },
};
const base = runConfig(SETTINGS);
const calls = stageCalls(TINY, { rows: 2, columns: 64 }, base);

async function run(
  sides: Partial<Record<Side, number>>,
  config: RunConfig = base,
  root = tinyParameters(),
  parent = root,
  by = sampler,
) {
  const of = <T>(make: (id: string) => T) =>
    Object.fromEntries(
      (['A', 'B', 'C'] as const).map((side) => [
        side,
        Array.from({ length: sides[side] ?? 0 }, (_, i) => make(`${side}${i}`)),
      ]),
    ) as Record<Side, T[]>;
  const input = { model: TINY, root, parent, judgements: of(judgement), prompts: of(prompt) };
  const reports: Progress[] = [];
  const result = await runStages(input, config, calls, by, 8, (progress) => void reports.push(progress));
  return { ...result, reports, input };
}

test('a run goes from votes to a verdict whose metrics are all numbers', async () => {
  const { candidate, gate, reports } = await run({ A: 12, B: 8, C: 8 });
  expect(candidate).not.toBeNull();
  expect(gate.reasons.map((reason) => reason.check)).toContain('win rate');
  expect(reports.map((report) => report.stage)).toEqual(expect.arrayContaining(['reward', 'ppo', 'judge', 'evaluate']));
  for (const { metrics } of reports)
    for (const value of Object.values(metrics)) expect(Number.isFinite(value)).toBe(true);
});

test('what the judge is normalised on answers prompts of B and C, none of those that PPO learns from', async () => {
  const drawn: string[][] = [];
  const sample: typeof sampler.sample = (parameters, prompts, ...rest) => {
    drawn.push(prompts.map(String));
    return sampler.sample(parameters, prompts, ...rest);
  };
  const { input } = await run({ A: 12, B: 8, C: 8 }, base, undefined, undefined, { ...sampler, sample });
  const others = new Set([...input.prompts.B, ...input.prompts.C].map(String));
  expect(drawn.at(-1)!.every((asked) => others.has(asked))).toBe(true);
  expect(drawn[0]!.every((asked) => input.prompts.A.map(String).includes(asked))).toBe(true);
});

test('PPO practises on what was judged where that is enough, else on all that side A was asked', async () => {
  const { input } = await run({ A: 80, B: 8, C: 8 });
  expect(new Set(given.ppo.at(-1)!.prompts.map(String))).toEqual(
    new Set(input.judgements.A.map(({ rows }) => String(rows[0]!.prompt))),
  );
  const few = await run({ A: 12, B: 8, C: 8 });
  expect(given.ppo.at(-1)!.prompts).toEqual(few.input.prompts.A);
});

test('as many reward models as are wanted are fitted, on conversations of their own; a run goes on after any of them', async () => {
  const ppo = { ...SETTINGS.ppo, spreadPenalty: 1 };
  const config = runConfig({ ...SETTINGS, reward: { members: 3, epochs: 1 }, ppo });
  const { reports, input, candidate } = await run({ A: 12, B: 8, C: 8 }, config);
  const first = (stage: string) => reports.find((report) => report.stage === stage)!.metrics;
  expect(first('reward 2')['reward 2/loss']).not.toBe(first('reward')['reward/loss']);
  expect(first('reward 3')).toBeDefined();
  const fits = given.fits.slice(-4).filter(({ stage }) => stage !== 'judge');
  expect(fits.map(({ stage }) => stage)).toEqual(['reward', 'reward 2', 'reward 3']);
  expect(new Set(fits.map(({ seed }) => seed)).size).toBe(3);
  expect(new Set(fits.map(({ judgements }) => judgements.join())).size).toBe(3);

  let two: Uint8Array | undefined;
  const keep = ({ reward, fit }: Progressed) => {
    if (reward?.length === 2 && !fit) two = treeToFile(reward);
  };
  const saved = () => ({ reward: rewardsFromFile(two!, input.parent) });
  await runStages(input, config, calls, sampler, 8, () => {}, {}, keep);
  const stages: string[] = [];
  const resumed = await runStages(input, config, calls, sampler, 8, ({ stage }) => void stages.push(stage), saved());
  expect(stages[0]).toBe('reward 3');
  const bytes = (weights: typeof candidate) => treeToFile(weights!);
  expect(Buffer.compare(bytes(resumed.candidate), bytes(candidate))).toBe(0);
  const bold = { ...config, ppo: { ...config.ppo, spreadPenalty: 0 } };
  const other = await runStages(input, bold, calls, sampler, 8, () => {}, saved());
  expect(Buffer.compare(bytes(other.candidate), bytes(candidate))).not.toBe(0); // what they disagree about counts against an answer
});

test('a run goes on in the middle of fitting its reward model, bit for bit', async () => {
  const config = runConfig({ ...SETTINGS, reward: { epochs: 2 } });
  const { input, candidate } = await run({ A: 40, B: 8, C: 8 }, config);
  let saved: Progressed = {};
  const keep = ({ fit, candidate }: Progressed) => {
    if (fit?.step !== 2 || candidate || saved.fit) return;
    const { rm, adam, ...scalars } = fit;
    saved = { fit: fitStateFromFile(treeToFile({ rm, adam }), scalars, input.parent) };
  };
  await runStages(input, config, calls, sampler, 8, () => {}, {}, keep);
  const steps: number[] = [];
  const report = ({ stage, step }: Progress) => void (stage === 'reward' && steps.push(step));
  const resumed = await runStages(input, config, calls, sampler, 8, report, saved);
  expect(steps[0]).toBe(3);
  expect(Buffer.compare(treeToFile(resumed.candidate!), treeToFile(candidate!))).toBe(0);
});

test('a mix of an aspect that nobody rated is refused before anything is fitted', async () => {
  await expect(run({ A: 12 }, runConfig({ ...SETTINGS, reward: { mix: { tone: 0.5 } } }))).rejects.toThrow(
    /^the mix names tone: nothing is rated by aspect$/,
  );
});

test.each([{ A: 12, C: 6 }, { A: 12 }])(
  'without judgements or prompts to decide by, the candidate is rejected for want of evidence: %j',
  async (sides) => {
    const { candidate, gate } = await run(sides);
    expect(candidate).not.toBeNull();
    expect(gate.verdict).toBe('reject');
    expect(gate.reasons[0]!.words).toMatch(/not enough evidence/);
  },
);

test('a collapse into numbers that are none ends in rejected, with the metric’s name, whichever stage it meets', async () => {
  const broken = tinyParameters();
  broken.norm = tf.fill([TINY.hidden_size], Number.NaN) as typeof broken.norm;
  const { candidate, gate } = await run({ A: 12, B: 8, C: 8 }, base, broken).catch((error) => {
    throw new Error(`it threw instead: ${error}`);
  });
  expect(candidate).toBeNull();
  expect(gate.verdict).toBe('reject');
  expect(gate.reasons[0]!.words).toMatch(/is NaN|not finite/);
});

test('a KL that blows up ends in rejected with its reason', async () => {
  const { candidate, gate } = await run(
    { A: 12, B: 8, C: 8 },
    runConfig({ ...SETTINGS, ppo: { ...SETTINGS.ppo, learningRate: 1e-2, klLimit: 1e-9 } }),
  );
  expect(candidate).toBeNull();
  expect(gate.reasons[0]!.words).toMatch(/KL to the parent is/);
});

test('the gate asks what sides B and C asked, and measures its judge on side C alone', async () => {
  const { gate } = await run({ A: 5, B: 4, C: 3 });
  const words = Object.fromEntries(gate.reasons.map((reason) => [reason.check, reason.words]));
  expect(words['win rate']).toContain('of 21 comparisons'); // seven prompts, three times each, for twenty wanted
  expect(words.judge).toContain('in 3 held-out conversations');
});

test('the judge is brought to mean 0 on answers that are drawn with other seeds than the reward model’s', async () => {
  const [root, parent] = [tinyParameters(1), tinyParameters(2)];
  const drawn = new Map<unknown, number[]>();
  const watched: typeof sampler = {
    ...sampler,
    sample: (parameters, asked, seeds, options) => {
      if (!drawn.has(parameters)) drawn.set(parameters, seeds);
      return sampler.sample(parameters, asked, seeds, options);
    },
  };
  await run({ A: 12, B: 8, C: 8 }, base, root, parent, watched);
  expect(drawn.get(parent)).toHaveLength(24);
  expect(drawn.get(root)).toHaveLength(32);
  expect(drawn.get(root)!.filter((seed) => drawn.get(parent)!.includes(seed))).toEqual([]);
});

test('A fits the reward models from the parent and prompts PPO, B fits the judge from the root, C measures, and none sees another’s', async () => {
  const [root, parent] = [tinyParameters(1), tinyParameters(2)];
  for (const calls of Object.values(given)) calls.length = 0;
  const config = runConfig({ ...SETTINGS, reward: { members: 2, epochs: 1 } });
  const { input, candidate } = await run({ A: 12, B: 8, C: 6 }, config, root, parent);
  const of = (side: Side) => idsOf(input.judgements[side]);
  expect(given.fits.map(({ stage }) => stage)).toEqual(['reward', 'reward 2', 'judge']);
  const [first, second, judge] = given.fits as [(typeof given.fits)[0], (typeof given.fits)[0], (typeof given.fits)[0]];
  expect(first.judgements).toEqual(of('A'));
  expect(second.judgements.filter((id) => !of('A').includes(id))).toEqual([]);
  expect(judge.judgements).toEqual(of('B'));
  expect([first.base === parent, second.base === parent, judge.base === root]).toEqual([true, true, true]);
  expect(given.ppo.map((call) => [call.parent === parent, call.prompts])).toEqual([[true, input.prompts.A]]);
  expect(given.gates).toHaveLength(1);
  expect(given.gates[0]!.judgements).toEqual(of('C'));
  const { policies } = given.gates[0]! as unknown as { policies: Record<'root' | 'parent' | 'candidate', unknown> };
  expect([policies.root === root, policies.parent === parent, policies.candidate === candidate]).toEqual([
    true,
    true,
    true,
  ]);
});
