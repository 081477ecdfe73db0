// What is wrong with what was given, in words.
import type { z } from 'zod';

/** A file that is not what its name says, or holds what is not supported; the message says which and what. */
export class MalformedFile extends Error {}

const dotted = (path: PropertyKey[]) =>
  path.reduce<string>(
    (text, key) => (typeof key === 'number' ? `${text}[${key}]` : text ? `${text}.${String(key)}` : String(key)),
    '',
  );

interface Fault {
  path: string;
  message: string;
}

function faultsOf(issue: z.core.$ZodIssue): Fault[] {
  if (issue.code === 'unrecognized_keys')
    return issue.keys.map((key) => ({ path: dotted([...issue.path, key]), message: 'is not known' }));
  if (issue.code === 'invalid_union' && issue.errors.length > 0) {
    const nearest = issue.errors.find((form) => form.some((inner) => inner.path.length > 0));
    if (nearest) return nearest.flatMap((inner) => faultsOf({ ...inner, path: [...issue.path, ...inner.path] }));
    if (issue.message !== 'Invalid input') return [{ path: dotted(issue.path), message: issue.message }];
    const each = issue.errors.flatMap((form) => form.map(({ message }) => message.replace(/^Invalid input: /, '')));
    return [{ path: dotted(issue.path), message: `Invalid input: ${each.join(', or ')}` }];
  }
  return [{ path: dotted(issue.path), message: issue.message }];
}

/**
 * Each place that did not parse. An unknown field is named itself; of several forms, what is wrong with the one that fits best is told, else
 * what the schema says of them, else what is wrong with each.
 */
export const faults = (error: z.ZodError): Fault[] => error.issues.flatMap(faultsOf);

/** The first of them, in a line. */
export function inWords(error: z.ZodError): string {
  const [first, ...rest] = faults(error);
  if (!first) return error.message;
  return `${first.path ? `${first.path}: ` : ''}${first.message}${rest.length > 0 ? ` (and ${rest.length} more)` : ''}`;
}
