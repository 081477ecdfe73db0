// The settings of supervised training, and a run's as they were given, checked before anything loads. Needs no training engine.

import { inWords } from '../schema/malformed.ts';
import { RUN_DEFAULTS, type RunConfig, RunSettings } from '../schema/run-config.ts';
import type { Shape } from './pack.ts';
import { UserError } from './user-error.ts';

export interface SftConfig {
  steps: number;
  /** Rows an update. */
  batch: number;
  shape: Shape;
  learningRate: number;
  warmup: number;
  weightDecay: number;
  seed: number;
}

export const SFT_DEFAULTS = { learningRate: 1.5e-3, warmup: 100, weightDecay: 0.05, seed: 0 };

/** The defaults with a run's own settings over them; an unknown name is refused with its path. */
export function runConfig(given: unknown): RunConfig {
  const parsed = RunSettings.safeParse(given);
  if (!parsed.success) throw new UserError(`the run's config: ${inWords(parsed.error)}`);
  const { reward, ppo, gate, ...rest } = parsed.data;
  const defined = (o: object) => Object.fromEntries(Object.entries(o).filter(([, value]) => value !== undefined));
  return {
    ...RUN_DEFAULTS,
    ...defined(rest),
    reward: { ...RUN_DEFAULTS.reward, ...reward },
    ppo: { ...RUN_DEFAULTS.ppo, ...ppo },
    gate: { ...RUN_DEFAULTS.gate, ...gate },
  } as RunConfig;
}
