// What a run may be told, checked before anything loads: every name of the stages' settings, with its default.

import { z } from 'zod';
import { RUN_DEFAULTS, type RunConfig } from './run.ts';
import { UserError } from './user-error.ts';

const settings = <T extends object>(defaults: T) =>
  z
    .strictObject(
      Object.fromEntries(
        Object.entries(defaults).map(([name, value]) => [
          name,
          (typeof value === 'boolean' ? z.boolean() : z.number()).optional(),
        ]),
      ),
    )
    .optional();

const Overrides = z.strictObject({
  seed: z.int().nonnegative().optional(),
  maxAnswerTokens: z.int().positive().optional(),
  reward: settings(RUN_DEFAULTS.reward),
  ppo: settings(RUN_DEFAULTS.ppo),
  gate: settings(RUN_DEFAULTS.gate),
});

/** The defaults with a run's own settings over them; an unknown name is refused with its path. */
export function runConfig(given: unknown): RunConfig {
  const parsed = Overrides.safeParse(given);
  if (!parsed.success) throw new UserError(`the run's config: ${z.prettifyError(parsed.error)}`);
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
