// The settings of supervised training, and a run's as they were given, checked before anything loads. Needs no training engine.

import { inWords } from '../schema/malformed.ts';
import { type LoraConfig, RUN_DEFAULTS, type RunConfig, RunSettings } from '../schema/run-config.ts';
import type { Shape } from './pack.ts';
import { UserError } from './user-error.ts';

export interface SftConfig {
  steps: number;
  /** Rows an update. */
  batch: number;
  shape: Shape;
  learningRate: number;
  /** Steps in which the rate rises to its peak; then it falls to a fiftieth, in a line or along half a cosine. */
  warmup: number;
  schedule: (typeof SCHEDULES)[number];
  weightDecay: number;
  /** So many measurements of the held-out loss in a row without a better one end the training, and the best weights count; 0: all steps, the last weights. */
  patience: number;
  /** Adapters are trained in place of the weights, and merged with them in the end. */
  lora: LoraConfig | null;
  seed: number;
}
export const SCHEDULES = ['linear', 'cosine'] as const;

export const SFT_DEFAULTS = {
  learningRate: 1.5e-3,
  warmup: 100,
  schedule: 'linear',
  weightDecay: 0.05,
  patience: 0,
  lora: null,
  seed: 0,
} as const;

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
