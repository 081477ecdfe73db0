// Byte-level BPE that reads and writes Hugging Face's tokenizer.json, and trains one. What the file asks for and this
// code does not do is refused by name when it is loaded, so that ids are either Hugging Face's or none at all.
//
// Left out: normalizers but NFC, byte_fallback, WordPiece and Unigram, dropout, post-processors that add tokens.
import { MalformedFile } from './malformed.ts';
import { hashOf, type Merges, openTokenizer, rankOf, slotsOf, tableFor, type Vocabulary } from './vocabulary.ts';

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  [other: string]: unknown;
}
/** The file as it is stored. Fields that change nothing for us pass through unread. */
export interface TokenizerFile {
  version: string;
  added_tokens: AddedToken[];
  normalizer?: unknown;
  pre_tokenizer?: unknown;
  post_processor?: unknown;
  decoder?: unknown;
  model: { type: string; [other: string]: unknown };
  [other: string]: unknown;
}

/** Checked by hand: the decoder script, which reads these, has no memory for a library that does it. */
function checked(source: unknown): TokenizerFile {
  const { version, added_tokens: added, model } = (source ?? {}) as Partial<TokenizerFile>;
  const needs = (ok: boolean, what: string) => {
    if (!ok) throw new MalformedFile(`tokenizer.json: ${what}`);
  };
  needs(typeof version === 'string', 'version is no text');
  needs(Array.isArray(added), 'added_tokens is no list');
  for (const [i, token] of added!.entries()) {
    needs(Number.isSafeInteger(token?.id) && token.id >= 0, `added_tokens[${i}].id is no id`);
    needs(typeof token.content === 'string', `added_tokens[${i}].content is no text`);
    needs(typeof token.special === 'boolean', `added_tokens[${i}].special is no boolean`);
  }
  needs(typeof model?.type === 'string', 'model has no type');
  return source as TokenizerFile;
}

export interface Tokenizer {
  /** One more than the highest id. */
  size: number;
  /** Added tokens by their text, special or not. */
  added: Map<string, { id: number; special: boolean }>;
  /** The bytes an id stands for; undefined where the vocabulary has a hole. */
  bytesOf(id: number): Uint8Array | undefined;
  special: Set<number>;
  split: (text: string) => string[];
  normalize: (text: string) => string;
  /** Match added tokens, any or only those that are not special: in a text as it is, then in what the rest of it is normalized to. */
  sought: Record<'any' | 'plain', [asItIs: RegExp | undefined, normalized: RegExp | undefined]>;
  byteIds: Int32Array;
  merges: Merges;
  /** The id of a piece that is taken whole, −1 where it is not: where the file says ignore_merges. */
  whole: ((piece: Uint8Array) => number) | undefined;
  cache: Map<string, number[]>;
  /** Bytes that the cache takes, about. */
  cached: number;
}

// Printable bytes stand for themselves; the 68 others are moved up to U+0100 and on, in order.
const BYTE_CHARS: string[] = [];
{
  let moved = 0;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    BYTE_CHARS.push(String.fromCharCode(printable ? byte : 256 + moved++));
  }
}
/** By char code; −1 for those that stand for no byte. */
const CHAR_BYTES = new Int16Array(256 + 68).fill(-1);
for (const [byte, char] of BYTE_CHARS.entries()) CHAR_BYTES[char.charCodeAt(0)] = byte;
const encoder = new TextEncoder();

const GPT2_SPLIT =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

function refuse(what: string): never {
  throw new MalformedFile(`tokenizer.json: ${what} is not supported`);
}

/** Cuts a piece at every match, keeping both the matches and what lies between them. */
function isolate(pattern: RegExp) {
  return (pieces: string[]): string[] => {
    const out: string[] = [];
    for (const piece of pieces) {
      let end = 0;
      for (const match of piece.matchAll(pattern)) {
        if (match[0] === '') continue;
        if (match.index > end) out.push(piece.slice(end, match.index));
        out.push(match[0]);
        end = match.index + match[0].length;
      }
      if (end < piece.length) out.push(piece.slice(end));
    }
    return out;
  };
}

const escapeRegExp = (text: string) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');

/** An Oniguruma pattern as a JavaScript one, for the part of the two languages that means the same. */
function translate(source: string): RegExp {
  let out = '';
  let inClass = false;
  for (let i = 0; i < source.length; i++) {
    const char = source[i]!;
    if (char === '\\') {
      const next = source[++i] ?? '';
      if (next === 's') out += '\\p{White_Space}';
      else if (next === 'S') out += '\\P{White_Space}';
      else if (next === 'd') out += '\\p{Nd}';
      else if (/[pPrntf]/.test(next) || /[^\p{L}\p{N}]/u.test(next)) out += `\\${next}`;
      else refuse(`\\${next} in the Split pattern ${source}`);
      continue;
    }
    if (inClass) {
      if (char === '[' || source.startsWith('&&', i)) refuse(`a nested character class in the Split pattern ${source}`);
      if (char === ']') inClass = false;
    } else if (char === '[') {
      inClass = true;
    } else if (char === '.' || char === '^' || char === '$') {
      refuse(`${char} in the Split pattern ${source}`);
    } else if (
      char === '#' ||
      (char === '(' && source[i + 1] === '?' && !/^\(\?(?:[:=!]|<[=!]|i:)/.test(source.slice(i)))
    ) {
      refuse(`${source.slice(i, i + 3)} in the Split pattern ${source}`);
    }
    out += char;
    if (char === '[' && source[i + 1] === '^') out += source[++i];
  }
  try {
    return new RegExp(out, 'gu');
  } catch {
    return refuse(`the Split pattern ${source}`);
  }
}

type Step = (pieces: string[]) => string[];

function preTokenizer(node: unknown): Step[] {
  const spec = (node ?? {}) as Record<string, unknown>;
  switch (spec.type) {
    case 'Sequence':
      if (!Array.isArray(spec.pretokenizers)) refuse('a Sequence without pretokenizers');
      return (spec.pretokenizers as unknown[]).flatMap(preTokenizer);
    case 'ByteLevel':
      if (spec.add_prefix_space === true) refuse('ByteLevel with add_prefix_space');
      return spec.use_regex === false ? [] : [isolate(GPT2_SPLIT)];
    case 'Digits':
      return [isolate(spec.individual_digits ? /\p{N}/gu : /\p{N}+/gu)];
    case 'Split': {
      if (spec.behavior !== 'Isolated') refuse(`Split with behavior ${String(spec.behavior)}`);
      if (spec.invert === true) refuse('Split with invert');
      const { Regex: regex, String: text } = (spec.pattern ?? {}) as Record<string, unknown>;
      if (typeof regex === 'string') return [isolate(translate(regex))];
      if (typeof text === 'string') return [isolate(new RegExp(escapeRegExp(text), 'gu'))];
      return refuse('Split without a pattern');
    }
    default:
      return refuse(`pre_tokenizer ${String(spec.type)}`);
  }
}

const hasByteLevel = (node: unknown): boolean => {
  const spec = node as { type?: string; pretokenizers?: unknown[] } | null;
  return spec?.type === 'ByteLevel' || (spec?.pretokenizers ?? []).some(hasByteLevel);
};

/** What comes after the cutting: offsets, which nobody asks for here, and templates of nothing but the text. */
const addsNothing = (node: unknown): boolean => {
  const spec = node as { type?: string; single?: object[]; processors?: unknown[] } | null | undefined;
  if (spec?.type === 'TemplateProcessing') return spec.single?.length === 1 && 'Sequence' in spec.single[0]!;
  if (spec?.type === 'Sequence') return spec.processors?.every(addsNothing) === true;
  return !spec || spec.type === 'ByteLevel';
};

/** Matches any of the texts, group 1. */
function alternatives(texts: string[]): RegExp | undefined {
  if (texts.length === 0) return undefined;
  // Longest first, so that of two tokens that begin at one place the longer is taken, as Hugging Face does.
  const sorted = [...texts].sort((a, b) => b.length - a.length || (a < b ? -1 : 1));
  return new RegExp(`(${sorted.map(escapeRegExp).join('|')})`, 'u');
}

const soughtAmong = (added: TokenizerFile['added_tokens']): Tokenizer['sought']['any'] => {
  const pattern = (normalized: boolean) =>
    alternatives(added.filter((token) => (token.normalized === true) === normalized).map(({ content }) => content));
  return [pattern(false), pattern(true)];
};

const typeOf = (node: unknown): string => (node as { type?: string } | null)?.type ?? 'null';

const isPlain = (text: string) => /^[!-~]*$/.test(text);

/**
 * All ids' bytes, one after another: arrays of their own would take thirty times the memory. An added token is its own text.
 * @param entryOf by id, −1 where the vocabulary has none
 * @returns with them the ids whose bytes are not what the characters of the vocabulary's text stand for
 */
function packed(
  { bytes, from, to }: Vocabulary,
  entryOf: Int32Array,
  added: TokenizerFile['added_tokens'],
): { all: Uint8Array; starts: Int32Array; bytesOf: Tokenizer['bytesOf']; own: Set<number> } {
  const own = new Set(added.filter(({ content }) => !isPlain(content)).map(({ id }) => id));
  const texts = new Map(added.map(({ id, content }) => [id, encoder.encode(content)]));
  const starts = new Int32Array(entryOf.length + 1);
  let most = 0;
  for (const text of texts.values()) most += text.length;
  for (let id = 0; id < entryOf.length; id++) {
    const entry = entryOf[id]!; // by its number: what `of` makes for each is garbage of megabytes
    if (entry >= 0) most += to[entry]! - from[entry]!;
  }
  const all = new Uint8Array(most); // some more than they are: a copy without that would be garbage for a while
  const holes = new Set<number>();
  let at = 0;
  for (let id = 0; id < entryOf.length; id++) {
    const entry = entryOf[id]!;
    const text = texts.get(id);
    if (text) {
      all.set(text, at);
      at += text.length;
    } else if (entry < 0) holes.add(id);
    else {
      let end = at;
      for (let i = from[entry]!; i < to[entry]! && end >= 0; i++) {
        let code = bytes[i]!;
        if (code >= 0x80) code = code < 0xe0 ? ((code & 0x1f) << 6) | (bytes[++i]! & 0x3f) : CHAR_BYTES.length;
        const byte = CHAR_BYTES[code] ?? -1;
        all[end] = byte;
        end = byte < 0 ? -1 : end + 1;
      }
      // A token that was never made of bytes (a special one with a space in it, say) is its own text, too.
      if (end < 0) {
        all.set(bytes.subarray(from[entry], to[entry]), at);
        own.add(id);
      }
      at = end < 0 ? at + to[entry]! - from[entry]! : end;
    }
    starts[id + 1] = at;
  }
  const bytesOf = (id: number) =>
    id >= 0 && id < starts.length - 1 && !holes.has(id) ? all.subarray(starts[id], starts[id + 1]) : undefined;
  return { all, starts, bytesOf, own };
}

/** Finds ids by their bytes, those of the list but some. A Map of texts would take six times the memory, and views of them as garbage more. */
function finder(
  ids: Int32Array,
  but: (id: number) => boolean,
  all: Uint8Array,
  starts: Int32Array,
): (piece: Uint8Array) => number {
  const table = tableFor(ids.length);
  const slotOf = slotsOf(table, all, starts, starts.subarray(1));
  const seed = crypto.getRandomValues(new Int32Array(1))[0]!;
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    if (id < 0 || but(id)) continue;
    const [from, to] = [starts[id]!, starts[id + 1]!];
    table[slotOf(all, from, to, hashOf(all, from, to, seed))] = id;
  }
  return found(table, slotOf, seed);
}
// A function of its own, as splitting is: made within finder, it would hold on to what that was given.
const found = (table: Int32Array, slotOf: ReturnType<typeof slotsOf>, seed: number) => (piece: Uint8Array) =>
  table[slotOf(piece, 0, piece.length, hashOf(piece, 0, piece.length, seed))]!;

const composed = (text: string) => text.normalize('NFC');
const unchanged = (text: string) => text;

// A function of its own: made within readTokenizer, it would hold on to all that is there.
const splitting = (normalize: (text: string) => string, steps: Step[]) => (text: string) =>
  steps.reduce((pieces, step) => step(pieces), [normalize(text)]);

/** The tokenizer of a file's text, as a Worker reads it, and the file. */
export function loadTokenizer(json: string): Tokenizer & { file: TokenizerFile } {
  const file: TokenizerFile = JSON.parse(json); // first: whoever asks tells what is no JSON by its SyntaxError
  return { ...readTokenizer(encoder.encode(json)), file };
}

/** @param json a tokenizer.json, which is written over. Throws MalformedFile, or SyntaxError where it is no JSON. */
export function readTokenizer(json: Uint8Array): Tokenizer {
  const { rest, vocabulary, merges } = openTokenizer(json);
  const file = checked(rest);
  const model = file.model;
  if (model.type !== 'BPE') refuse(`model ${model.type}`);
  if (model.byte_fallback === true) refuse('byte_fallback');
  if (model.dropout) refuse('dropout');
  if (model.continuing_subword_prefix) refuse('continuing_subword_prefix');
  if (model.end_of_word_suffix) refuse('end_of_word_suffix');
  if (file.normalizer && typeOf(file.normalizer) !== 'NFC') refuse(`normalizer ${typeOf(file.normalizer)}`);
  if (!hasByteLevel(file.pre_tokenizer)) refuse(`pre_tokenizer ${typeOf(file.pre_tokenizer)} without ByteLevel`);
  if (typeOf(file.decoder) !== 'ByteLevel') refuse(`decoder ${typeOf(file.decoder)}`);
  if (!addsNothing(file.post_processor)) refuse(`post_processor ${typeOf(file.post_processor)}`);
  const steps = preTokenizer(file.pre_tokenizer);
  const normalize = file.normalizer ? composed : unchanged;

  const { ids } = vocabulary;
  let size = 0;
  for (let entry = 0; entry < ids.length; entry++) size = Math.max(size, ids[entry]! + 1);
  for (const { id } of file.added_tokens) size = Math.max(size, id + 1);
  if (size > 1 << 24) throw new MalformedFile('tokenizer.json: ids go beyond 16,777,216');

  const entryOf = new Int32Array(size).fill(-1);
  for (let entry = 0; entry < ids.length; entry++) {
    const id = ids[entry]!;
    if (id < 0) continue;
    if (entryOf[id]! >= 0) throw new MalformedFile(`tokenizer.json: two tokens have the id ${id}`);
    entryOf[id] = entry;
  }

  const added = new Map<string, { id: number; special: boolean }>();
  const special = new Set<number>();
  let next = 0; // the id that Hugging Face gives to a token that the vocabulary has not, whatever the file says
  for (let entry = 0; entry < ids.length; entry++) if (ids[entry]! >= 0) next++;
  if (next === 0) throw new MalformedFile('tokenizer.json: the vocabulary is empty');
  for (const token of file.added_tokens) {
    for (const flag of ['lstrip', 'rstrip', 'single_word'])
      if (token[flag] === true) refuse(`${flag} of the added token ${token.content}`);
    if (token.content.length < 2)
      refuse(`the added token ${JSON.stringify(token.content)} of fewer than two characters`);
    if (token.normalized === true && normalize(token.content) !== token.content)
      refuse(`the added token ${token.content}, which is sought in normalized text and is none,`);
    const inVocab = vocabulary.find(encoder.encode(token.content));
    if (inVocab < 0 ? entryOf[token.id]! >= 0 : inVocab !== token.id)
      throw new MalformedFile(`tokenizer.json: the added token ${token.content} has an id that is another's`);
    if (inVocab < 0 && token.id !== next++)
      throw new MalformedFile(
        `tokenizer.json: the added token ${token.content} has the id ${token.id}; the next in order, which Hugging Face gives it, is ${next - 1}`,
      );
    added.set(token.content, { id: token.id, special: token.special });
    if (token.special) special.add(token.id);
  }

  const byteIds = Int32Array.from(BYTE_CHARS, (char) => vocabulary.find(encoder.encode(char)));
  if (model.unk_token && byteIds.includes(-1)) refuse('unk_token with bytes missing from the vocabulary');

  const { all, starts, bytesOf, own } = packed(vocabulary, entryOf, file.added_tokens);
  let whole: Tokenizer['whole'];
  if (model.ignore_merges === true) {
    // Its bytes are found by what they are, not by the characters that stand for them in the vocabulary.
    for (const { id, content, special } of file.added_tokens)
      if (!special && entryOf[id]! >= 0 && !isPlain(content) && [...content].every((char) => BYTE_CHARS.includes(char)))
        refuse(`the added token ${content} with ignore_merges`);
    whole = finder(ids, (id) => special.has(id) || own.has(id), all, starts);
  }
  return {
    size,
    added,
    bytesOf,
    special,
    split: splitting(normalize, steps),
    normalize,
    sought: { any: soughtAmong(file.added_tokens), plain: soughtAmong(file.added_tokens.filter((t) => !t.special)) },
    byteIds,
    merges: merges(),
    whole,
    cache: new Map(),
    cached: 0,
  };
}

/** tokenizer.json, byte for byte the same for the same tokenizer. */
export const tokenizerJson = (file: TokenizerFile): string => `${JSON.stringify(file, null, 1)}\n`;

/** A binary heap of numbers, least first. */
function push(heap: number[], value: number): void {
  let at = heap.push(value) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (heap[parent]! <= value) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = value;
}

function pop(heap: number[]): number {
  const least = heap[0]!;
  const last = heap.pop()!;
  if (heap.length === 0) return least;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= last) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
  return least;
}

/** Merges a piece's bytes by rank, the leftmost first among equals; n log n, since a piece may be a whole request. */
function mergePiece(t: Tokenizer, piece: string): number[] {
  const utf8 = encoder.encode(piece);
  const whole = t.whole?.(utf8) ?? -1;
  if (whole >= 0) return [whole];
  const ids: number[] = [];
  for (const byte of utf8) if (t.byteIds[byte]! >= 0) ids.push(t.byteIds[byte]!); // Hugging Face drops the others too
  const count = ids.length;
  const next = Int32Array.from({ length: count }, (_, i) => i + 1);
  const previous = Int32Array.from({ length: count }, (_, i) => i - 1);
  const heap: number[] = [];
  const PLACE = 2 ** 26; // a heap's key is rank, then place; pieces are far shorter than this
  const offer = (at: number) => {
    if (at < 0 || next[at]! >= count) return;
    const rank = rankOf(t.merges, ids[at]!, ids[next[at]!]!);
    if (rank >= 0) push(heap, rank * PLACE + at);
  };
  for (let i = 0; i < count; i++) offer(i);
  while (heap.length > 0) {
    const key = pop(heap);
    const at = key % PLACE;
    const rank = (key - at) / PLACE;
    const right = next[at]!;
    // An older pair, gone by now: one of the two is -1, or is none.
    if (rankOf(t.merges, ids[at]!, ids[right]!) !== rank) continue;
    ids[at] = t.merges.merged[rank]!;
    ids[right] = -1;
    next[at] = next[right]!;
    if (next[at]! < count) previous[next[at]!] = at;
    offer(previous[at]!);
    offer(at);
  }
  return ids.filter((id) => id >= 0);
}

/** Bytes of pieces whose ids are remembered: a Worker has no memory for all that people write. */
const CACHE = 5e5;

const decoder = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });
/** A text by itself: V8 makes a part of a text a view of it, which keeps all of it in memory. */
const copyOf = (part: string) => decoder.decode(encoder.encode(part));

function encodePlain(t: Tokenizer, text: string, out: number[]): void {
  for (const piece of t.split(text)) {
    let ids = t.cache.get(piece);
    if (!ids) {
      ids = mergePiece(t, piece);
      if (piece.length <= 64) {
        if (t.cached > CACHE) {
          t.cache.clear();
          t.cached = 0;
        }
        t.cache.set(copyOf(piece), ids);
        t.cached += 80 + 2 * piece.length + 8 * ids.length;
      }
    }
    for (const id of ids) out.push(id);
  }
}

/** A text in parts: the ids of added tokens, and what lies between them, never empty. As Hugging Face's AddedVocabulary does. */
export function cut(t: Tokenizer, text: string, which: keyof Tokenizer['sought']): (string | number)[] {
  const [asItIs, normalized] = t.sought[which];
  const parts = (pattern: RegExp | undefined, text: string) =>
    // Odd parts are the tokens that the pattern's group caught.
    (pattern ? text.split(pattern) : [text])
      .map((part, i) => (i % 2 === 1 ? t.added.get(part)!.id : part))
      .filter((part) => part !== '');
  return parts(asItIs, text).flatMap((part) =>
    typeof part === 'string' && normalized ? parts(normalized, t.normalize(part)) : [part],
  );
}

/**
 * Text to ids. Only with `special` does text that spells a special token become it: set it for what a template wrote,
 * never for what a person wrote.
 */
export function encode(t: Tokenizer, text: string, { special = false } = {}): number[] {
  const out: number[] = [];
  for (const part of cut(t, text, special ? 'any' : 'plain')) {
    if (typeof part === 'number') out.push(part);
    else encodePlain(t, part, out);
  }
  return out;
}

/** Ids to text; special tokens are left out unless asked for. Bytes that are no UTF-8 become U+FFFD. */
export function decode(t: Tokenizer, ids: Iterable<number>, { special = false } = {}): string {
  const next = streamDecoder(t, { special });
  let text = '';
  for (const id of ids) text += next(id);
  return text + next();
}

/** Decodes one id a call, holding back an unfinished UTF-8 sequence; called without an id it gives what was held. */
export function streamDecoder(t: Tokenizer, { special = false } = {}): (id?: number) => string {
  const utf8 = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });
  return (id) => {
    if (id === undefined) return utf8.decode();
    if (!special && t.special.has(id)) return '';
    const bytes = t.bytesOf(id);
    return bytes ? utf8.decode(bytes, { stream: true }) : '';
  };
}

interface BpeOptions {
  vocabSize: number;
  /** Special tokens, first in the vocabulary in this order. */
  special: string[];
  individualDigits: boolean;
}

/**
 * Learns merges as Hugging Face's BpeTrainer does with the byte alphabet: the most frequent pair first, of equals the one
 * of lower ids. The same texts give the same file, in whatever order they come.
 */
export function trainBpe(texts: Iterable<string>, { vocabSize, special, individualDigits }: BpeOptions): TokenizerFile {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const pre_tokenizer = individualDigits
    ? { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] }
    : byteLevel;
  const alphabet = [...BYTE_CHARS].sort();
  if (vocabSize < special.length + 256)
    throw new Error(`a vocabulary of ${vocabSize} does not hold ${special.length} special tokens and 256 bytes`);
  const tokens = [...special, ...alphabet];
  const byteIds = BYTE_CHARS.map((char) => special.length + alphabet.indexOf(char));
  const idOf = new Map(tokens.map((token, id) => [token, id]));

  const steps = preTokenizer(pre_tokenizer);
  const counts = new Map<string, number>();
  for (const text of texts)
    for (const piece of steps.reduce((pieces, step) => step(pieces), [text]))
      counts.set(piece, (counts.get(piece) ?? 0) + 1);
  const words = [...counts].map(([piece, count]) => ({
    ids: Array.from(encoder.encode(piece), (byte) => byteIds[byte]!),
    count,
  }));

  // Pairs are keyed left · vocabSize + right, which sorts as (left, right) does.
  const pairCounts = new Map<number, number>();
  const pairWords = new Map<number, Set<number>>();
  const change = (key: number, by: number, word: number) => {
    pairCounts.set(key, (pairCounts.get(key) ?? 0) + by);
    if (by < 0) return;
    const where = pairWords.get(key);
    if (where) where.add(word);
    else pairWords.set(key, new Set([word]));
  };
  for (const [w, { ids, count }] of words.entries())
    for (let i = 1; i < ids.length; i++) change(ids[i - 1]! * vocabSize + ids[i]!, count, w);

  // The heap's order is (count descending, key ascending). Counts that fell since are put right when they come up.
  const before = (a: readonly [number, number], b: readonly [number, number]) =>
    a[0] !== b[0] ? a[0] > b[0] : a[1] < b[1];
  const heap: (readonly [number, number])[] = [];
  const offer = (entry: readonly [number, number]) => {
    let at = heap.push(entry) - 1;
    while (at > 0 && before(entry, heap[(at - 1) >> 1]!)) {
      heap[at] = heap[(at - 1) >> 1]!;
      at = (at - 1) >> 1;
    }
    heap[at] = entry;
  };
  const take = () => {
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  };
  for (const [key, count] of pairCounts) offer([count, key]);

  const merges: [string, string][] = [];
  while (tokens.length < vocabSize && heap.length > 0) {
    const [claimed, key] = take();
    const count = pairCounts.get(key) ?? 0;
    if (count < 1) continue;
    if (count !== claimed) {
      offer([count, key]);
      continue;
    }
    const right = key % vocabSize;
    const left = (key - right) / vocabSize;
    const text = tokens[left]! + tokens[right]!;
    let id = idOf.get(text);
    if (id === undefined) {
      id = tokens.push(text) - 1;
      idOf.set(text, id);
    }
    merges.push([tokens[left]!, tokens[right]!]);
    const grown = new Set<number>();
    const where = pairWords.get(key)!;
    pairWords.delete(key);
    for (const w of where) {
      const { ids, count: times } = words[w]!;
      for (let i = 0; i + 1 < ids.length; i++) {
        if (ids[i] !== left || ids[i + 1] !== right) continue;
        const around: [number, number, number][] = [];
        if (i > 0) around.push([ids[i - 1]!, left, 0], [ids[i - 1]!, id, 1]);
        if (i + 2 < ids.length) around.push([right, ids[i + 2]!, 0], [id, ids[i + 2]!, 1]);
        for (const [a, b, born] of around) {
          change(a * vocabSize + b, born ? times : -times, w);
          if (born) grown.add(a * vocabSize + b);
        }
        ids.splice(i, 2, id);
      }
    }
    pairCounts.delete(key);
    for (const k of grown) offer([pairCounts.get(k) ?? 0, k]);
  }

  return byteLevelFile(
    tokens,
    merges,
    special.map((content, id) => ({ id, content, special: true })),
    pre_tokenizer,
  );
}

/** The file of a byte-level BPE: tokens by their ids, merges in their order, added tokens, and how text is cut before. */
export function byteLevelFile(
  tokens: string[],
  merges: (string | [string, string])[],
  added: { id: number; content: string; special: boolean }[],
  pre_tokenizer: object,
): TokenizerFile {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map(({ id, content, special }) => ({ id, content, ...flags, special })),
    normalizer: null,
    pre_tokenizer,
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}
