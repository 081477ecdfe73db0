// Ids: a prefix that says what the thing is, and a ULID that sorts by time of making.
import { ulid } from 'ulid';
import { z } from 'zod';

const PREFIXES = {
  policy: 'pol',
  sample: 'smp',
  feedback: 'fb',
  rater: 'rtr',
  task: 'tsk',
  run: 'run',
  snapshot: 'snp',
  release: 'rel',
  key: 'key',
} as const;
export type Kind = keyof typeof PREFIXES;

export const newId = (kind: Kind): string => `${PREFIXES[kind]}_${ulid()}`;

export const idSchema = (kind: Kind) =>
  z
    .string()
    .regex(
      new RegExp(`^${PREFIXES[kind]}_[0-7][0-9A-HJKMNP-TV-Z]{25}$`),
      `not a ${kind} id (${PREFIXES[kind]}_ and a ULID)`,
    );
