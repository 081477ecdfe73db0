// Rows of the datasets, one vote's each, in the two shapes that TRL reads: conversational, and standard (strings).
// No column is ever null or absent: readers fix a column's type from the first rows.
import { z } from 'zod';
import { idSchema } from './ids.ts';

const Said = z.strictObject({ role: z.enum(['system', 'user', 'assistant']), content: z.string() });
const Prompt = z.union([z.array(Said), z.string()]);
const Completion = z.union([z.tuple([Said]), z.string()]);

const columns = {
  id: z.string(),
  rater: idSchema('rater'),
  /** JSON text: cohorts differ from row to row, and a column has one type. */
  cohorts: z.string(),
  policy: z.string(),
  weight: z.number(),
  created_at: z.iso.datetime(),
};

export const DATASETS = {
  preference: z.strictObject({ prompt: Prompt, chosen: Completion, rejected: Completion, ...columns }),
  unpaired: z.strictObject({ prompt: Prompt, completion: Completion, label: z.boolean(), ...columns }),
  ranking: z.strictObject({ prompt: Prompt, completions: z.array(Completion), ranks: z.array(z.int()), ...columns }),
  correction: z.strictObject({ prompt: Prompt, chosen: Completion, rejected: Completion, ...columns }),
  rating: z.strictObject({ prompt: Prompt, completion: Completion, aspect: z.string(), value: z.int(), ...columns }),
};
export type DatasetKind = keyof typeof DATASETS;
export type DatasetRow = { [K in DatasetKind]: z.infer<(typeof DATASETS)[K]> }[DatasetKind];
