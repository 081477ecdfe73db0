import { expect, test } from 'vitest';
import { GATE_DEFAULTS, RUN_DEFAULTS } from '../../schema/run-config.ts';
import { runConfig } from '../../trainer/config.ts';

test('a run’s own settings lie over the defaults', () => {
  const config = runConfig({ maxAnswerTokens: 40, ppo: { episodes: 512 } });
  expect(config).toEqual({ ...RUN_DEFAULTS, maxAnswerTokens: 40, ppo: { ...RUN_DEFAULTS.ppo, episodes: 512 } });
  expect(runConfig({})).toEqual(RUN_DEFAULTS);
});

test('the gate compares on 400 prompts and lets a policy stray 4 nats from its parent, unless told otherwise', () => {
  expect(runConfig({}).gate).toEqual(GATE_DEFAULTS);
  expect(GATE_DEFAULTS).toMatchObject({ comparisons: 400, klToParent: 4 });
});

test.each([
  [{ ppo: { lr: 1 } }, /ppo/],
  [{ ppo: { minibatch: 0 } }, /ppo\.minibatch/],
  [{ ppo: { gamma: 1.5 } }, /ppo\.gamma/],
  [{ reward: { epochs: 1.5 } }, /reward\.epochs/],
  [{ gate: { comparisons: -1 } }, /gate\.comparisons/],
  [{ seed: -1 }, /seed/],
])('what cannot be is refused by name: %j', (given, named) => {
  expect(() => runConfig(given)).toThrow(named);
});
