// What the demo is played with: questions, what a good answer to them is, and people who judge. The seed policy has its support
// desk; a real chat model is asked about everyday things.

import type { z } from 'zod';
import type { RunSettings } from '../../schema/run-config.ts';
import type { Random } from '../random.ts';
import { aspects, type Measured, measure, measured } from './measure.ts';
import { judge, RANKING, type RaterConfig, type VoteKind, verdict, voteKinds } from './raters.ts';
import { type Question, sentenceGold, sentenceQuestions } from './sentences.ts';
import { gold, type Ticket, tickets } from './world.ts';

export interface Budget {
  judging: number;
  /** By what a run does. */
  training: Record<string, number>;
  evaluation: number;
}
export const secondsOf = (budget: Budget, stage: keyof Budget): number =>
  stage === 'training' ? Object.values(budget.training).reduce((a, b) => a + b) : budget[stage];

export interface Scene<Asked extends { text: string }> {
  /** Votes a round, and how many more questions are asked a round that nobody votes on: the gate asks them, too. */
  judgements: number;
  kinds(count: number, rng: Random): VoteKind[];
  unjudged: number;
  evaluations: number;
  /** Answers to each question of the evaluation. */
  draws: number;
  /** The mark to aim at: the mean of the best of so many answers, to so many of the evaluation's questions. */
  best: { of: number; questions: number };
  maxTokens: number;
  /** Of the runs that the cron starts. */
  config: z.infer<typeof RunSettings>;
  /** Seconds that are meant to be enough on two cores: for each round's stages, and for all that is measured before, between and after. */
  budget: Budget;
  asked(use: 'judging' | 'evaluation', seed: number, count: number): Asked[];
  /** From 0 to 1. */
  gold(asked: Asked, answer: string): number;
  judge(
    rng: Random,
    asked: Asked,
    answers: string[],
    raters: RaterConfig,
  ): ReturnType<typeof verdict> & { cohorts: Record<string, string> };
  measure(asked: Asked[], answers: string[]): Measured;
}

export const SUPPORT_DESK: Scene<Ticket> = {
  judgements: 400,
  kinds: voteKinds,
  unjudged: 500,
  evaluations: 1000,
  draws: 1,
  best: { of: 16, questions: 100 },
  maxTokens: 40,
  config: {},
  budget: {
    judging: 20,
    training: { 'start, engine and compiling': 25, 'reward model and judge': 20, ppo: 45, 'gate and publishing': 15 },
    evaluation: 30,
  },
  asked: tickets,
  gold: (asked, answer) => gold(asked, answer).mean,
  judge(rng, asked, answers, raters) {
    const { cohort, ...judged } = judge(rng, asked, answers, raters);
    return { ...judged, cohorts: { outlook: cohort, dialect: asked.dialect } };
  },
  measure,
};

/** For a chat model of a hundred million weights and more, which is trained by adapters. */
export const SENTENCES: Scene<Question> = {
  judgements: 200,
  // an order of many tells most, and a real model has much to learn from few: InstructGPT's raters had four to nine before them
  kinds: (count) => Array.from({ length: count }, () => ({ ...RANKING, answers: 6 })),
  unjudged: 100,
  evaluations: 200,
  // what a question's answers differ by is most of what all answers differ by
  draws: 6,
  best: { of: 8, questions: 25 },
  maxTokens: 48,
  config: {
    lora: { rank: 8, on: ['attention', 'mlp'] },
    reward: { learningRate: 2e-4, judgements: 8, epochs: 1 },
    // a nat costs half a deviation of the score: what so few judgements teach holds only near by (LOG.md)
    ppo: { learningRate: 1e-3, episodes: 320, rollout: 64, minibatch: 16, beta: 0.5 },
    // three answers to each prompt; who speaks without filler says less, so an answer may shrink to half
    gate: { comparisons: 300, lengthRatio: 2 },
  },
  budget: {
    judging: 280,
    training: { 'reward model': 390, ppo: 400, judge: 220, 'gate and publishing': 310 },
    evaluation: 500,
  },
  asked: sentenceQuestions,
  gold: (asked, answer) => sentenceGold(asked, answer).mean,
  judge: (rng, asked, answers, raters) => ({
    ...verdict(
      rng,
      answers.map((answer) => sentenceGold(asked, answer).mean),
      0.75,
      raters,
    ),
    cohorts: {},
  }),
  measure(asked, answers) {
    const scores = asked.map((question, i) => sentenceGold(question, answers[i]!));
    return measured(
      scores.map((score) => score.mean),
      answers,
      aspects(scores),
    );
  },
};
