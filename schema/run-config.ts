// What a run may be told: every name of its settings with its default, and the check of what is given.

import { z } from 'zod';

export interface RewardConfig {
  learningRate: number;
  epochs: number;
  /** Judgements a step. */
  judgements: number;
  warmup: number;
  weightDecay: number;
  /** What a correction weighs, beside 1 for any other vote. */
  correctionWeight: number;
  /** What PPO and the gate's judge go by is the score, and of each aspect so many times what sets it apart from the score. */
  mix: Record<string, number>;
  /** Reward models that are fitted beside one another; the gate's judge is always one. */
  members: number;
  seed: number;
}
export const REWARD_DEFAULTS: Omit<RewardConfig, 'seed'> = {
  learningRate: 4e-4,
  epochs: 3,
  judgements: 16,
  warmup: 10,
  weightDecay: 0.01,
  correctionWeight: 1,
  mix: {},
  members: 1,
};

export interface PpoConfig {
  /** Answers drawn in all, and in an iteration. */
  episodes: number;
  rollout: number;
  /** Answers drawn to each prompt of an iteration: they share its tokens, which makes them cheaper than as many prompts. */
  answersPerPrompt: number;
  /** Answers an update. */
  minibatch: number;
  epochs: number;
  learningRate: number;
  beta: number;
  klTarget: number;
  horizon: number;
  gamma: number;
  lambda: number;
  clip: number;
  /** A loss is no larger than this many times the advantage, where that is negative; Infinity for no such bound. */
  dualClip: number;
  /** An iteration's updates end when the policy is this far, in approxkl, from where they began; Infinity for never. */
  stopKl: number;
  /** Of several reward models, the standard deviation of their scores counts so many times against an answer. */
  spreadPenalty: number;
  /** Scores beyond this, in standard deviations, count as this; Infinity for any. */
  scoreClip: number;
  valueClip: number;
  valueWeight: number;
  whitenRewards: boolean;
  temperature: number;
  /** The score of an answer that was cut before its end, or ended too soon. */
  missingEosScore: number;
  /** An answer of fewer tokens, its EOS apart, ended too soon. */
  minTokens: number;
  /** Values come from a model of their own, which begins as the parent, not from a head on the policy's states. */
  separateValue: boolean;
  importanceCap: number;
  /** Nats a sequence; a batch beyond it is a blow-up, and ends the run. */
  klLimit: number;
  seed: number;
}
export const PPO_DEFAULTS: Omit<PpoConfig, 'seed'> = {
  episodes: 1024,
  rollout: 64,
  answersPerPrompt: 4,
  minibatch: 32,
  epochs: 2,
  learningRate: 4e-4,
  beta: 0.2,
  klTarget: 3,
  horizon: 640,
  gamma: 1,
  lambda: 0.95,
  clip: 0.2,
  dualClip: Number.POSITIVE_INFINITY,
  stopKl: Number.POSITIVE_INFINITY,
  spreadPenalty: 0,
  scoreClip: Number.POSITIVE_INFINITY,
  valueClip: 0.2,
  valueWeight: 0.1,
  whitenRewards: false,
  temperature: 1,
  missingEosScore: -1,
  minTokens: 0,
  separateValue: false,
  importanceCap: 2,
  klLimit: 20,
};

export interface GateConfig {
  /** Prompts of B and C on which the two compete, one answer each; where there are fewer prompts, several answers. */
  comparisons: number;
  /** Nats an answer that packing may put between the image and what was trained, beyond what it puts between the parent's. */
  klOfImage: number;
  klToParent: number;
  klToRoot: number;
  /** Mean answer length over the parent's, both ways. */
  lengthRatio: number;
  /** How much the share of answers that repeat themselves may grow. */
  repetitionGrowth: number;
  seed: number;
}
export const GATE_DEFAULTS: Omit<GateConfig, 'seed'> = {
  comparisons: 400,
  klOfImage: 1,
  klToParent: 4,
  klToRoot: 8,
  lengthRatio: 1.4,
  repetitionGrowth: 0.05,
};

/** Of which matrices LoRA's adapters stand: attention's, the MLP's, or both. */
export const LORA_PARTS = ['attention', 'mlp'] as const;
export const MAX_RANK = 256;
export interface LoraConfig {
  /** Columns of A, rows of B. */
  rank: number;
  on: (typeof LORA_PARTS)[number][];
}

export interface RunConfig {
  seed: number;
  /** Answers are drawn up to this length, but no longer than any judged one. */
  maxAnswerTokens: number;
  /** Reward models and policy are trained by adapters in place of all weights: for models that are large for the machine. */
  lora: LoraConfig | null;
  reward: Omit<RewardConfig, 'seed'>;
  ppo: Omit<PpoConfig, 'seed'>;
  gate: Omit<GateConfig, 'seed'>;
}
export const RUN_DEFAULTS: RunConfig = {
  seed: 0,
  maxAnswerTokens: 128,
  lora: null,
  reward: REWARD_DEFAULTS,
  ppo: PPO_DEFAULTS,
  gate: GATE_DEFAULTS,
};

const count = z.int().positive();
const whole = z.int().nonnegative();
const positive = z.number().positive();
const atLeast0 = z.number().nonnegative();
const share = z.number().min(0).max(1);

/** A run's own settings, as `POST /v1/runs` and `--config` take them; an unknown name is refused. */
export const RunSettings = z.strictObject({
  seed: whole.optional(),
  maxAnswerTokens: count.optional(),
  lora: z
    .strictObject({
      rank: count.max(MAX_RANK, `above ${MAX_RANK}: adapters that thick save nothing`),
      on: z
        .array(z.enum(LORA_PARTS))
        .min(1)
        .default([...LORA_PARTS]),
    })
    .nullable()
    .optional(),
  reward: z
    .strictObject({
      learningRate: atLeast0,
      epochs: count,
      judgements: count,
      warmup: count,
      weightDecay: atLeast0,
      correctionWeight: positive,
      mix: z.record(z.string(), z.number().min(-10).max(10)),
      members: count.max(16),
    } satisfies Record<keyof typeof REWARD_DEFAULTS, z.ZodType>)
    .partial()
    .optional(),
  ppo: z
    .strictObject({
      episodes: count,
      rollout: count,
      answersPerPrompt: count,
      minibatch: count,
      epochs: count,
      learningRate: atLeast0,
      beta: atLeast0,
      klTarget: positive,
      horizon: positive,
      gamma: share,
      lambda: share,
      clip: positive,
      dualClip: z.number().gt(1),
      stopKl: positive,
      spreadPenalty: atLeast0,
      scoreClip: positive,
      valueClip: positive,
      valueWeight: atLeast0,
      whitenRewards: z.boolean(),
      temperature: positive,
      missingEosScore: z.number(),
      minTokens: whole,
      separateValue: z.boolean(),
      importanceCap: positive,
      klLimit: positive,
    } satisfies Record<keyof typeof PPO_DEFAULTS, z.ZodType>)
    .partial()
    .refine(
      ({ episodes = PPO_DEFAULTS.episodes, rollout = PPO_DEFAULTS.rollout }) => episodes >= rollout,
      `fewer episodes than one iteration has (rollout: ${PPO_DEFAULTS.rollout} unless set): ask for more`,
    )
    .optional(),
  gate: z
    .strictObject({
      comparisons: count,
      klOfImage: z.number(),
      klToParent: z.number(),
      klToRoot: z.number(),
      lengthRatio: positive,
      repetitionGrowth: z.number(),
    } satisfies Record<keyof typeof GATE_DEFAULTS, z.ZodType>)
    .partial()
    .optional(),
});
