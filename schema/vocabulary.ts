// The two large parts of a tokenizer.json, its vocabulary and its merges, read from the file's bytes where they lie. A text of the whole and
// objects for its hundred thousand entries take five times the file's memory, and who swaps a policy's tokenizer has a decoder beside it.
import { MalformedFile } from './malformed.ts';

export interface Vocabulary {
  /** Of an entry, which are numbered as the file has them; −1 where there is none, or a later one has the same text. */
  ids: Int32Array;
  /** Where an entry's text begins and ends, in UTF-8. */
  bytes: Uint8Array;
  from: Int32Array;
  to: Int32Array;
  /** The id of a token by its text in UTF-8, −1 where there is none. */
  find(text: Uint8Array): number;
}

/** A hash of pairs of ids, in a table twice as long as they are many: half of what a Map takes, which keeps such keys as objects. */
export interface Merges {
  left: Int32Array;
  right: Int32Array;
  /** By rank, as the two above: what they become. */
  merged: Int32Array;
  /** By hash, a rank, or −1. */
  ranks: Int32Array;
}

const [QUOTE, BACKSLASH, COMMA, COLON, SPACE] = [0x22, 0x5c, 0x2c, 0x3a, 0x20];
const [OPEN, CLOSE, OPEN_LIST, CLOSE_LIST, ZERO] = [0x7b, 0x7d, 0x5b, 0x5d, 0x30];
const ESCAPES: Record<string, string> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' };
const utf8 = new TextEncoder();
const plain = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true });
/** Nothing that tokenizers are made of is as deep, and what walks through it need not care. */
const DEEPEST = 100;

/** FNV-1a, which goes on from the hash of what comes before. */
export function hashOf(bytes: Uint8Array, from: number, to: number, hash: number): number {
  for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash;
}
/** Room for so many, a power of two, at most half full. */
export const tableFor = (entries: number) => new Int32Array(1 << Math.ceil(Math.log2(2 * entries + 1))).fill(-1);
const pairHash = (left: number, right: number) => {
  const mixed = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return mixed ^ (mixed >>> 15);
};

/** Finds in a table that is never full the slot of the text with these bytes, or an empty one: entries are texts from one place to another. */
export const slotsOf =
  (table: Int32Array, texts: Uint8Array, from: Int32Array, to: Int32Array) =>
  (bytes: Uint8Array, first: number, last: number, hash: number): number => {
    const mask = table.length - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const entry = table[slot]!;
      if (entry < 0) return slot;
      const shift = from[entry]! - first;
      if (to[entry]! !== last + shift) continue;
      let i = first;
      while (i < last && bytes[i] === texts[i + shift]) i++;
      if (i === last) return slot;
    }
  };

/** The rank of a pair of ids, −1 where it has none. */
export function rankOf({ left, right, ranks }: Merges, a: number, b: number): number {
  for (let slot = pairHash(a, b); ; slot++) {
    const rank = ranks[slot & (ranks.length - 1)]!;
    if (rank < 0 || (left[rank] === a && right[rank] === b)) return rank;
  }
}

/**
 * @param json a tokenizer.json. It is written over: texts are freed of their escapes in place, and the vocabulary's stay there.
 * @returns the file with an empty vocabulary and no merges; its vocabulary; and its merges, which are read when they are asked for: what else
 * is wrong with a file is then known. Throws SyntaxError or MalformedFile.
 */
export function openTokenizer(json: Uint8Array): { rest: unknown; vocabulary: Vocabulary; merges: () => Merges } {
  const start = [0xef, 0xbb, 0xbf].every((byte, i) => json[i] === byte) ? 3 : 0; // a byte order mark
  let at = start;
  // Drawn anew, so that nobody can choose tokens that all come to one place of the table.
  const seed = crypto.getRandomValues(new Int32Array(1))[0]!;
  const fail = (what: string): never => {
    throw new MalformedFile(`tokenizer.json: ${what}`);
  };
  const next = () => {
    while (json[at] === SPACE || json[at] === 10 || json[at] === 13 || json[at] === 9) at++;
    return json[at];
  };
  const pass = (char: number) => {
    if (next() !== char) fail(`no ${String.fromCharCode(char)} at byte ${at}`);
    at++;
  };

  /** Passes over whatever comes, however deep: what it is JSON.parse will say. Returns how many are in it, where it is a list or an object. */
  const skip = (): number => {
    let depth = 0;
    let commas = 0;
    do {
      const char = next();
      if (char === undefined) fail('ends too soon');
      if (char === QUOTE) {
        for (at++; at < json.length && json[at] !== QUOTE; at++) if (json[at] === BACKSLASH) at++;
        at++;
      } else if (char === OPEN || char === OPEN_LIST) {
        if (++depth > DEEPEST) fail(`is nested more than ${DEEPEST} deep`);
        at++;
      } else if (char === CLOSE || char === CLOSE_LIST) {
        depth--;
        at++;
      } else if (char === COMMA || char === COLON) {
        if (char === COMMA && depth === 1) commas++;
        at++;
      } else
        do at++;
        while (json[at]! > SPACE && json[at] !== COMMA && json[at] !== CLOSE && json[at] !== CLOSE_LIST);
    } while (depth > 0);
    return commas + 1;
  };
  const charAt = (i: number) => (i < json.length ? String.fromCharCode(json[i]!) : 'undefined');
  const parsed = (from: number, to: number): unknown => JSON.parse(plain.decode(json.subarray(from, to)));

  /** What is in braces: `entry` passes over a value. */
  const object = (entry: (key: string) => void) => {
    pass(OPEN);
    if (next() === CLOSE) return void at++;
    for (;;) {
      const from = at;
      if (next() !== QUOTE) fail(`no " at byte ${at}`);
      skip();
      const key = parsed(from, at) as string;
      pass(COLON);
      next();
      entry(key);
      if (next() !== COMMA) break;
      at++;
    }
    pass(CLOSE);
  };

  // where the two are

  const places = new Map<string, { from: number; to: number; most: number }>();
  let models = 0;
  if (next() === OPEN)
    object((key) => {
      if (key === 'model' && ++models > 1) fail('model is there twice');
      if (key !== 'model' || json[at] !== OPEN) return void skip();
      object((part) => {
        const from = at;
        const most = skip();
        if (part !== 'vocab' && part !== 'merges') return;
        if (places.has(part)) fail(`model.${part} is there twice`);
        places.set(part, { from, to: at, most });
      });
    });
  let text = '';
  let end = start;
  for (const [part, { from, to }] of [...places].sort(([, a], [, b]) => a.from - b.from)) {
    text += `${plain.decode(json.subarray(end, from))}${part === 'vocab' ? '{}' : '[]'}`;
    end = to;
  }
  const rest: unknown = JSON.parse(text + plain.decode(json.subarray(end)));

  /** Reads a text and writes it, without escapes, to a place that is not after it; returns that one's end. */
  const string = (to: number): number => {
    pass(QUOTE);
    for (;;) {
      const byte = json[at++];
      if (byte === QUOTE) return to;
      if (byte === undefined || byte < SPACE) fail(`a text with what no text has at byte ${at - 1}`);
      if (byte === BACKSLASH) {
        const from = at++ - 1;
        if (charAt(from + 1) === 'u') {
          at += 4;
          // of a pair of surrogates both
          if (
            /^d[89ab]/i.test(plain.decode(json.subarray(from + 2, at))) &&
            charAt(at) === '\\' &&
            charAt(at + 1) === 'u'
          )
            at += 6;
          let code = JSON.parse(`"${plain.decode(json.subarray(from, at))}"`) as string;
          if (code.length === 2 && code.codePointAt(0)! < 0x10000) {
            code = code[0]!; // the second is none of a pair, and read by itself
            at -= 6;
          }
          to += utf8.encodeInto(code, json.subarray(to)).written;
        } else {
          const char = charAt(from + 1);
          if (!/["\\/bfnrt]/.test(char) || char === 'undefined') fail(`\\${char} at byte ${from}`);
          json[to++] = (ESCAPES[char] ?? char).charCodeAt(0);
        }
      } else json[to++] = byte!;
    }
  };

  // the vocabulary

  const vocab = places.get('vocab');
  const most = vocab?.most ?? 0;
  const [from, to, ids] = [new Int32Array(most), new Int32Array(most), new Int32Array(most).fill(-1)];
  let entries = 0;
  if (vocab) {
    at = vocab.from;
    if (json[at] !== OPEN) fail('model.vocab is no object');
    at++;
    while (next() !== CLOSE) {
      const first = at + 1;
      const last = string(first);
      pass(COLON);
      next();
      const number = at;
      let id = 0;
      while (json[at]! >= ZERO && json[at]! <= ZERO + 9 && at < number + 9) id = 10 * id + json[at++]! - ZERO;
      const digits = at - number;
      if (digits === 0 || (digits > 1 && json[number] === ZERO) || (next() !== COMMA && json[at] !== CLOSE)) {
        at = number;
        skip();
        id = parsed(number, at) as number; // 1e3 is a number, too
        if (!(Number.isInteger(id) && id >= 0))
          fail(`the id of ${plain.decode(json.subarray(first, last))} is not a number`);
      }
      from[entries] = first;
      to[entries] = last;
      ids[entries++] = Math.min(id, 2 ** 31 - 1); // more than whoever asks allows
      if (next() === COMMA) {
        at++;
        if (next() === CLOSE) fail(`no text at byte ${at}`);
      } else if (json[at] !== CLOSE) fail(`no , at byte ${at}`);
    }
  }
  const table = tableFor(entries);
  const slotOf = slotsOf(table, json, from, to);
  for (let entry = 0; entry < entries; entry++) {
    const hash = hashOf(json, from[entry]!, to[entry]!, seed);
    const slot = slotOf(json, from[entry]!, to[entry]!, hash);
    if (table[slot]! >= 0) ids[table[slot]!] = -1; // of a text that is there twice the last counts, as in any JSON
    table[slot] = entry;
  }
  const idOf = (bytes: Uint8Array, first: number, last: number, hash: number): number => {
    const entry = table[slotOf(bytes, first, last, hash)]!;
    return entry < 0 ? -1 : ids[entry]!;
  };

  // Of a merge: where its two texts, side by side, begin, meet and end. Not a list of three: a hundred thousand are garbage of megabytes.
  let first = 0;
  let middle = 0;
  let last = 0;
  /** Reads a merge, "a b" or ["a", "b"]; whether it is one. */
  const pair = (): boolean => {
    first = at + 1;
    if (json[at] === QUOTE) {
      const end = string(first);
      middle = first;
      while (middle < end && json[middle] !== SPACE) middle++;
      last = end - 1;
      for (let i = middle; i < last; i++) {
        json[i] = json[i + 1]!;
        if (json[i] === SPACE) return false;
      }
      return middle < end;
    }
    if (json[at] !== OPEN_LIST) return false;
    at++;
    if (next() !== QUOTE) return false;
    middle = string(first);
    if (next() !== COMMA) return false;
    at++;
    if (next() !== QUOTE) return false;
    last = string(middle);
    if (next() !== CLOSE_LIST) return false;
    at++;
    return true;
  };
  const merges = (): Merges => {
    const list = places.get('merges');
    const most = list?.most ?? 0;
    const [left, right, merged] = [new Int32Array(most), new Int32Array(most), new Int32Array(most)];
    const ranks = tableFor(most);
    at = list?.from ?? 0;
    if (list && json[at++] !== OPEN_LIST) fail('model.merges is no list');
    for (let rank = 0; list && next() !== CLOSE_LIST; rank++) {
      if (!pair()) fail(`merge ${rank} is not two tokens that make a third`);
      const hash = hashOf(json, first, middle, seed);
      left[rank] = idOf(json, first, middle, hash);
      right[rank] = idOf(json, middle, last, hashOf(json, middle, last, seed));
      merged[rank] = idOf(json, first, last, hashOf(json, middle, last, hash));
      if (left[rank]! < 0 || right[rank]! < 0 || merged[rank]! < 0) {
        const told = [json.subarray(first, middle), json.subarray(middle, last)].map((token) => plain.decode(token));
        fail(`merge ${rank} (${JSON.stringify(told)}) is not two tokens that make a third`);
      }
      let slot = pairHash(left[rank]!, right[rank]!) & (ranks.length - 1);
      for (; ranks[slot]! >= 0; slot = (slot + 1) & (ranks.length - 1))
        if (left[ranks[slot]!] === left[rank] && right[ranks[slot]!] === right[rank]) break;
      ranks[slot] = rank; // of a pair given twice Hugging Face keeps the last
      if (next() === COMMA) {
        at++;
        if (next() === CLOSE_LIST) fail(`no merge at byte ${at}`);
      } else if (json[at] !== CLOSE_LIST) fail(`no , at byte ${at}`);
    }
    return { left, right, merged, ranks };
  };
  const find = (text: Uint8Array) => idOf(text, 0, text.length, hashOf(text, 0, text.length, seed));
  return { rest, vocabulary: { ids, bytes: json, from, to, find }, merges };
}
