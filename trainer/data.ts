// What the stages read: lines of JSON in TRL's shapes, checked before anything starts, and the token rows they become.

import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { ChatTemplateError } from '../schema/chat.ts';
import type { Message } from '../schema/message.ts';
import { encode } from '../schema/tokenizer.ts';
import type { Policy } from './policy.ts';
import { UserError } from './user-error.ts';

/** A prompt and an answer as token ids; the answer ends with EOS unless it was cut. */
export interface Row {
  prompt: number[];
  answer: number[];
}

const TextPart = z.strictObject({ type: z.literal('text'), text: z.string() });
/** A message as files have it: OpenAI's parts of text are one text, its developers speak as the system does, and names are left out. */
const FileMessage = z
  .strictObject({
    role: z.enum(['system', 'developer', 'user', 'assistant']),
    content: z.union([z.string(), z.array(TextPart).min(1)], 'expected a string, or parts of text'),
    name: z.string().optional(),
    weight: z.literal([0, 1]).optional(),
  })
  .transform(({ role, content, weight }): Message & { weight?: 0 | 1 } => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
    ...(weight !== undefined && { weight }),
  }));
const Conversation = z.array(FileMessage).min(1);
export const TextOrMessages = z.union([z.string(), Conversation], 'expected a string or messages');

/** TRL's implicit prompt: whole conversations stand in chosen and rejected, and what these begin with alike is what was asked. */
export function withPrompt(line: unknown): unknown {
  const { prompt, chosen, rejected } = (line ?? {}) as Record<string, unknown>;
  if (prompt !== undefined || !Array.isArray(chosen)) return line;
  const other = Array.isArray(rejected) ? rejected : chosen;
  const most = Math.min(chosen.length, other.length) - 1;
  let alike = 0;
  while (alike < most && JSON.stringify(chosen[alike]) === JSON.stringify(other[alike])) alike++;
  if (alike === 0) return line;
  const asked = { ...(line as object), prompt: chosen.slice(0, alike), chosen: chosen.slice(alike) };
  return Array.isArray(rejected) ? { ...asked, rejected: rejected.slice(alike) } : asked;
}

const SftForms = z.union(
  [
    z.looseObject({ messages: Conversation }),
    z.looseObject({ prompt: Conversation, completion: Conversation }),
    z.looseObject({ prompt: z.string(), completion: z.string() }),
    z.looseObject({ prompt: Conversation, chosen: Conversation }),
    z.looseObject({ prompt: z.string(), chosen: z.string() }),
    z.looseObject({ text: z.string() }),
  ],
  'expected {messages}, {prompt, completion} or {prompt, chosen} (strings or messages), or {text}',
);
const SftLine = z.preprocess(withPrompt, SftForms);
export type SftLine = z.infer<typeof SftLine>;

function readText(path: string): string {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new UserError(`there is no file ${path}`);
    if (code === 'EISDIR') throw new UserError(`${path} is a folder: name a file in it`);
    throw new UserError(`cannot read ${path}: ${code}`);
  }
  if (!isUtf8(bytes) || bytes.includes(0)) {
    const lines = bytes.toString('latin1').split('\n');
    const at = lines.findIndex((line) => line.includes('\0') || !isUtf8(Buffer.from(line, 'latin1')));
    throw new UserError(`${path} is not text in UTF-8 (line ${at + 1}): save it as UTF-8`);
  }
  const text = bytes.toString('utf8').replace(/^\uFEFF/, '');
  if (text.trim() === '') throw new UserError(`${path} has no rows`);
  return text;
}

/** Of several forms, what is wrong with the one whose fields are all there; else what is said of them together. */
function nearest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== 'invalid_union') return issue;
  const isMissing = ({ path, message }: z.core.$ZodIssue) =>
    path.length === 1 && message.endsWith('received undefined');
  const form = issue.errors.find((faults) => !faults.some(isMissing) && faults.some(({ path }) => path.length > 1));
  return form ? nearest({ ...form[0]!, path: [...issue.path, ...form[0]!.path] }) : issue;
}

/**
 * What is made of each line of a JSONL file that a schema knows. Those that are malformed and those that nothing can be made
 * of are named together by number and reason, up to 20, and nothing is started.
 */
export function readLines<T, R>(path: string, schema: z.ZodType<T>, make: (value: T, at: number) => R): R[] {
  const text = readText(path);
  if (/^\s*\[/.test(text))
    throw new UserError(`${path} is one JSON array: write JSON Lines, each object on a line of its own (jq -c '.[]')`);
  const rows: R[] = [];
  const bad: string[] = [];
  text.split('\n').forEach((line, index) => {
    if (line.trim() === '') return;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      bad.push(`line ${index + 1}: not JSON`);
      return;
    }
    const parsed = schema.safeParse(value);
    if (!parsed.success) {
      const issue = nearest(parsed.error.issues[0]!);
      bad.push(`line ${index + 1}: ${issue.path.length > 0 ? `${issue.path.join('.')}: ` : ''}${issue.message}`);
      return;
    }
    try {
      rows.push(make(parsed.data, index + 1));
    } catch (error) {
      if (!(error instanceof UserError || error instanceof ChatTemplateError)) throw error;
      bad.push(`line ${index + 1}: ${error.message}`);
    }
  });
  if (bad.length > 0) {
    const more = bad.length > 20 ? [`and ${bad.length - 20} more`] : [];
    throw new UserError(
      [`${path} has ${bad.length} bad line${bad.length > 1 ? 's' : ''}`, ...bad.slice(0, 20), ...more].join('\n  '),
    );
  }
  if (rows.length === 0) throw new UserError(`${path} has no rows`);
  return rows;
}

/** A prompt that leaves no room for an answer is refused. */
export function requireRoom(policy: Policy, prompt: number[]): number[] {
  const context = policy.config.max_position_embeddings;
  if (prompt.length >= context)
    throw new UserError(`the prompt has ${prompt.length} tokens, and the policy takes ${context} with the answer`);
  return prompt;
}

export const readSftLines = <R>(path: string, make: (line: SftLine, at: number) => R): R[] =>
  path.endsWith('.txt')
    ? textPieces(readText(path)).map((text, i) => make({ text }, i))
    : readLines(path, SftLine, make);

/** Characters from which on a piece of plain text ends with the next blank line. */
const PIECE = 1000;
/** Documents of a plain text: paragraphs together, until there is enough of them. */
export function textPieces(text: string): string[] {
  const pieces: string[] = [];
  let open = '';
  for (const paragraph of text.split(/\n\s*\n/).map((part) => part.trim())) {
    if (paragraph === '') continue;
    open = open ? `${open}\n\n${paragraph}` : paragraph;
    if (open.length < PIECE) continue;
    pieces.push(open);
    open = '';
  }
  return open ? [...pieces, open] : pieces;
}

/** Token rows of a line for supervised training; answers are cut at `answerTokens`, long texts become several rows. */
export function sftRows(policy: Policy, line: SftLine, answerTokens: number): Row[] {
  const eos = policy.config.eos_token_id;
  const cut = ({ prompt, answer }: Row): Row => ({ prompt, answer: answer.slice(0, answerTokens) });
  if ('text' in line) {
    const ids = [...encode(policy.tokenizer, line.text as string), eos];
    const rows: Row[] = [];
    for (let i = 0; i < ids.length; i += answerTokens)
      rows.push({ prompt: [i === 0 ? eos : ids[i - 1]!], answer: ids.slice(i, i + answerTokens) });
    return rows;
  }
  const { prompt, said } = asked(line);
  const turns = [...prompt, ...said];
  const messages = turns.map(({ role, content }) => ({ role, content }));
  // Every assistant turn after the prompt is an answer to what came before it, but those that OpenAI's weight leaves out.
  const rows = turns.flatMap(({ role, content, weight }, index) =>
    role === 'assistant' && index >= Math.max(1, prompt.length) && weight !== 0
      ? [cut(answerRow(policy, messages.slice(0, index), content))]
      : [],
  );
  const field = ['messages', 'completion', 'chosen'].find((name) => name in line);
  if (rows.length === 0) throw new UserError(`${field}: no assistant answers anything`);
  return rows;
}

/** A prompt as messages: a plain text is the user's. */
export const promptOf = (prompt: string | Message[]): Message[] =>
  typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt;

type Turn = Message & { weight?: 0 | 1 };

/** Of a line that is no whole text: what was there before, and what is to be learnt from. */
function asked(line: SftLine): { prompt: Turn[]; said: Turn[] } {
  if ('messages' in line) return { prompt: [], said: line.messages as Turn[] };
  type Said = string | Turn[];
  const { prompt, ...rest } = line as { prompt: Said } & ({ completion: Said } | { chosen: Said });
  const said = 'completion' in rest ? rest.completion : rest.chosen;
  return {
    prompt: promptOf(prompt),
    said: typeof said === 'string' ? [{ role: 'assistant', content: said }] : said,
  };
}

/** All that is said in a line, for a tokenizer to learn from. */
export function textsIn(line: SftLine): string[] {
  if ('text' in line) return [line.text as string];
  const { prompt, said } = asked(line);
  return [...prompt, ...said].map(({ content }) => content);
}

/** What two lines of one conversation have in common: all up to the first that the user says. A system message is many conversations'. */
export function openingOf(messages: Message[]): string {
  const first = messages.findIndex(({ role }) => role === 'user');
  return JSON.stringify(messages.slice(0, Math.max(first, 0) + 1).map(({ role, content }) => [role, content]));
}

/** The opening of a line's conversation; a whole text is one by itself. */
export function rootOf(line: SftLine, index: number): string {
  if ('text' in line) return `${index}`;
  return openingOf('messages' in line ? (line.messages as Message[]) : asked(line).prompt);
}

/** A conversation and its answer as ids. */
export function answerRow(policy: Policy, messages: Message[], answer: string): Row {
  return {
    prompt: policy.encodePrompt(messages),
    answer: [...encode(policy.tokenizer, answer), policy.config.eos_token_id],
  };
}
