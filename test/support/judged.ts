// Judgements as tests write them: answers, and what is said of them.
import type { Row } from '../../trainer/data.ts';
import type { Judgement } from '../../trainer/judgements.ts';

export const judged = (rows: Row[], rest: Partial<Judgement>): Judgement => ({
  id: 'j',
  root: 'r',
  kind: 'choice',
  rater: null,
  cohorts: {},
  rows,
  texts: rows.map((_, i) => `answer ${i}`),
  stages: [],
  thumbs: [],
  ratings: [],
  outcomes: [],
  ...rest,
});
