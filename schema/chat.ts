// Messages to prompt ids by a policy's chat template (Jinja, as Hugging Face's tokenizer_config.json has it). What a
// person wrote can never become a special token, whatever it spells; what the template writes can.
import { Template } from '@huggingface/jinja';
import { MalformedFile } from './malformed.ts';
import type { ModelConfig } from './manifest.ts';
import type { Message } from './message.ts';
import { cut, encode, type Tokenizer } from './tokenizer.ts';

/** The encoder of a policy: its template with its own first and last token. */
export function policyEncoder(t: Tokenizer, config: ModelConfig, template: string) {
  const nameOf = (id: number | null) => (id === null ? '' : new TextDecoder().decode(t.bytesOf(id)));
  return chatEncoder(t, { template, bosToken: nameOf(config.bos_token_id), eosToken: nameOf(config.eos_token_id) });
}

interface ChatOptions {
  template: string;
  bosToken?: string;
  eosToken?: string;
}

/** The template refused these messages (raise_exception, an unknown role order). */
export class ChatTemplateError extends Error {}

// Noncharacters: no text that means anything holds one, and should it, another is taken.
const MARKS = Array.from({ length: 32 }, (_, i) => String.fromCodePoint(0xfdd0 + i));

/**
 * Compiles a template once; the function it gives renders messages and, with `generation`, the opening of the answer.
 *
 * A special token's text is broken wherever contents could take part in it, by a mark after its first and before its last
 * character; the marks go again once special tokens have been found. So filters such as trim still see real contents, and
 * not even a token half written by the template and half by a person comes about. What the template itself looks for in
 * contents, such as the end of a model's thoughts, stays whole.
 */
export function chatEncoder(t: Tokenizer, { template, bosToken, eosToken }: ChatOptions) {
  const compiled = compile(template);
  const specials = [...t.added.keys()];
  const sought = soughtBy(
    compiled,
    specials.filter((text) => t.special.has(t.added.get(text)!.id)),
  );
  const borders = (chars: string[]) => [...new Set(chars)].map((char) => char.replace(/[\\\]^-]/g, '\\$&')).join('');
  const first = borders(specials.map((text) => [...text].at(0)!));
  const last = borders(specials.map((text) => [...text].at(-1)!));
  const openings = specials.length > 0 ? new RegExp(`([${first}])`, 'gu') : undefined;
  const closings = specials.length > 0 ? new RegExp(`([${last}])`, 'gu') : undefined;
  const broken = (content: string, mark: string) => {
    if (!openings) return content;
    const parts = sought ? content.split(sought) : [content];
    return parts
      .map((part, i) => (i % 2 === 1 ? part : part.replace(openings, `$1${mark}`).replace(closings!, `${mark}$1`)))
      .join('');
  };

  return (messages: Message[], { generation = true } = {}): number[] => {
    const mark = MARKS.find((char) => !template.includes(char) && messages.every((m) => !m.content.includes(char)));
    if (!mark) throw new ChatTemplateError('the messages hold every noncharacter from U+FDD0 to U+FDEF');
    let text: string;
    try {
      text = compiled.render({
        messages: messages.map(({ role, content }) => ({ role, content: broken(content, mark) })),
        add_generation_prompt: generation,
        bos_token: bosToken ?? '',
        eos_token: eosToken ?? '',
      });
    } catch (error) {
      throw new ChatTemplateError(`the chat template: ${error instanceof Error ? error.message : String(error)}`);
    }
    const ids: number[] = [];
    for (const part of cut(t, text, 'any')) {
      if (typeof part === 'number') ids.push(part);
      else for (const id of encode(t, part.replaceAll(mark, ''))) ids.push(id);
    }
    return ids;
  };
}

/** Any text that the template names, of which no part could belong to a special token. */
function soughtBy({ parsed }: Template, specials: string[]): RegExp | null {
  const texts = literalsIn(parsed)
    .filter((text) => text.length > 1 && specials.every((special) => areApart(text, special)))
    .sort((a, b) => b.length - a.length);
  if (texts.length === 0) return null;
  return new RegExp(`(${texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')).join('|')})`, 'u');
}

/** The strings of a parsed template's expressions. */
function literalsIn(node: unknown): string[] {
  if (typeof node !== 'object' || node === null) return [];
  if (node instanceof Map) return [...node].flatMap(([key, value]) => [...literalsIn(key), ...literalsIn(value)]);
  const { type, value } = node as { type?: string; value?: unknown };
  return type === 'StringLiteral' ? [value as string] : Object.values(node).flatMap(literalsIn);
}

/** Whether they can neither overlap nor hold one another. */
function areApart(a: string, b: string): boolean {
  if (a.includes(b) || b.includes(a)) return false;
  for (let n = 1; n < Math.min(a.length, b.length); n++)
    if (a.endsWith(b.slice(0, n)) || b.endsWith(a.slice(0, n))) return false;
  return true;
}

function compile(template: string): Template {
  try {
    return new Template(template);
  } catch (error) {
    throw new MalformedFile(`the chat template: ${error instanceof Error ? error.message : String(error)}`);
  }
}
