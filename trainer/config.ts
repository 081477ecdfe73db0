// The settings of supervised training, and a run's as they were given, checked before anything loads. Needs no training engine.

import { inWords } from '../schema/malformed.ts';
import { type RunConfig, RunSettings, runConfigOf } from '../schema/run-config.ts';
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
  return runConfigOf(parsed.data);
}
