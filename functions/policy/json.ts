// response_format json_object: which tokens may come next so that the answer is one JSON object (RFC 8259), whole within the tokens
// it may have. A machine reads the answer's bytes; a token is allowed where the machine takes all its bytes and what then closes
// everything that is open still fits, a token a byte at the worst.
import type { Tokenizer } from '../../schema/tokenizer.ts';

const START = 0; // the object itself
const FIRST_KEY = 1; // a key, or the end of the object
const KEY = 2;
const COLON = 3;
const VALUE = 4;
const FIRST_VALUE = 5; // a value, or the end of the array
const AFTER = 6; // a comma, or an end
const STRING = 7;
const ESCAPE = 8; // after a backslash
const HEX = 9; // of \u0000, `left` to come
const CONTINUATION = 10; // bytes of a character, `left` to come, the next from `low` to `high`
const LITERAL = 11; // true, false, null: `rest` is to come
const SIGN = 12; // a digit must come
const ZERO = 13; // no digit may come
const INTEGER = 14;
const POINT = 15; // a digit must come
const FRACTION = 16;
const EXPONENT = 17; // a sign or a digit must come
const EXPONENT_SIGN = 18; // a digit must come
const POWER = 19;
const DONE = 20;

/** Tokens that an object takes at least: {}, a byte each. */
export const LEAST_JSON = 2;

/** What is open, innermost first. */
interface Open {
  isArray: boolean;
  below: Open | undefined;
  depth: number;
}
export interface JsonState {
  mode: number;
  open: Open | undefined;
  isKey: boolean;
  left: number;
  low: number;
  high: number;
  rest: string;
  /** White space in a row: of more than a little there may be no end. */
  spaces: number;
}
const MOST_SPACES = 20;

export const jsonStart = (): JsonState => ({
  mode: START,
  open: undefined,
  isKey: false,
  left: 0,
  low: 0,
  high: 0,
  rest: '',
  spaces: 0,
});

/** How many bytes the shortest end takes. */
export function bytesToEnd({ mode, open, isKey, left, rest }: JsonState): number {
  const string = isKey ? 3 : 1; // its quote, and :0 after a key
  const depth = open?.depth ?? 0;
  switch (mode) {
    case START:
      return LEAST_JSON;
    case KEY:
      return depth + 4; // "":0
    case COLON:
      return depth + 2;
    case VALUE:
    case SIGN:
    case POINT:
    case EXPONENT:
    case EXPONENT_SIGN:
      return depth + 1;
    case STRING:
      return depth + string;
    case ESCAPE:
      return depth + string + 1;
    case HEX:
    case CONTINUATION:
      return depth + string + left;
    case LITERAL:
      return depth + rest.length;
    default:
      return depth;
  }
}

const code = (character: string) => character.charCodeAt(0);
const QUOTE = code('"');
const BACKSLASH = code('\\');
const COMMA = code(',');
const MINUS = code('-');
const DOT = code('.');
const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39;
const isHex = (byte: number) => isDigit(byte) || ((byte | 32) >= 0x61 && (byte | 32) <= 0x66);
const isSpace = (byte: number) => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
const isExponent = (byte: number) => (byte | 32) === 0x65;
const ESCAPED = new Set([...'"\\/bfnrt'].map(code));

/** Takes a byte; false where none such may come, and then the state is of no more use. */
export function takeByte(s: JsonState, byte: number): boolean {
  switch (s.mode) {
    case STRING:
      if (byte === QUOTE) s.mode = s.isKey ? COLON : AFTER;
      else if (byte === BACKSLASH) s.mode = ESCAPE;
      else if (byte >= 0x80) return beginCharacter(s, byte);
      return byte >= 0x20;
    case CONTINUATION:
      if (byte < s.low || byte > s.high) return false;
      s.low = 0x80;
      s.high = 0xbf;
      if (--s.left === 0) s.mode = STRING;
      return true;
    case ESCAPE:
      s.mode = STRING;
      if (byte === 0x75) {
        s.mode = HEX;
        s.left = 4;
        return true;
      }
      return ESCAPED.has(byte);
    case HEX:
      if (--s.left === 0) s.mode = STRING;
      return isHex(byte);
    case LITERAL:
      if (byte !== s.rest.charCodeAt(0)) return false;
      s.rest = s.rest.slice(1);
      if (s.rest === '') s.mode = AFTER;
      return true;
    case SIGN:
      s.mode = byte === 0x30 ? ZERO : INTEGER;
      return isDigit(byte);
    case POINT:
      s.mode = FRACTION;
      return isDigit(byte);
    case EXPONENT:
      s.mode = byte === 0x2b || byte === MINUS ? EXPONENT_SIGN : POWER;
      return s.mode === EXPONENT_SIGN || isDigit(byte);
    case EXPONENT_SIGN:
      s.mode = POWER;
      return isDigit(byte);
    case DONE:
      return false;
  }
  if (s.mode >= ZERO && s.mode <= POWER) {
    if (isDigit(byte)) return s.mode !== ZERO;
    if (byte === DOT && s.mode <= INTEGER) {
      s.mode = POINT;
      return true;
    }
    if (isExponent(byte) && s.mode !== POWER) {
      s.mode = EXPONENT;
      return true;
    }
    s.mode = AFTER; // the number has ended
  }
  // Between the parts.
  if (isSpace(byte)) return ++s.spaces <= MOST_SPACES;
  s.spaces = 0;
  switch (s.mode) {
    case START:
      return byte === 0x7b && enter(s, false);
    case FIRST_KEY:
      if (byte === 0x7d) return leave(s);
      return beginKey(s, byte);
    case KEY:
      return beginKey(s, byte);
    case COLON:
      s.mode = VALUE;
      return byte === 0x3a;
    case FIRST_VALUE:
      if (byte === 0x5d) return leave(s);
      return beginValue(s, byte);
    case VALUE:
      return beginValue(s, byte);
    default: // AFTER
      if (byte === COMMA) {
        s.mode = s.open!.isArray ? VALUE : KEY;
        return true;
      }
      return byte === (s.open!.isArray ? 0x5d : 0x7d) && leave(s);
  }
}

function enter(s: JsonState, isArray: boolean): boolean {
  s.open = { isArray, below: s.open, depth: (s.open?.depth ?? 0) + 1 };
  s.mode = isArray ? FIRST_VALUE : FIRST_KEY;
  return true;
}

function leave(s: JsonState): boolean {
  s.open = s.open!.below;
  s.mode = s.open ? AFTER : DONE;
  return true;
}

function beginKey(s: JsonState, byte: number): boolean {
  s.mode = STRING;
  s.isKey = true;
  return byte === QUOTE;
}

const LITERALS = new Map(['true', 'false', 'null'].map((word) => [code(word), word.slice(1)]));

function beginValue(s: JsonState, byte: number): boolean {
  s.isKey = false;
  if (byte === 0x7b || byte === 0x5b) return enter(s, byte === 0x5b);
  const literal = LITERALS.get(byte);
  if (literal) {
    s.mode = LITERAL;
    s.rest = literal;
    return true;
  }
  s.mode = byte === QUOTE ? STRING : byte === MINUS ? SIGN : byte === 0x30 ? ZERO : INTEGER;
  return s.mode !== INTEGER || isDigit(byte);
}

/** UTF-8 as RFC 3629 has it: nothing longer than it need be, no surrogates, nothing above U+10FFFF. */
function beginCharacter(s: JsonState, byte: number): boolean {
  if (byte < 0xc2 || byte > 0xf4) return false;
  s.mode = CONTINUATION;
  s.left = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  s.low = byte === 0xe0 ? 0xa0 : byte === 0xf0 ? 0x90 : 0x80;
  s.high = byte === 0xed ? 0x9f : byte === 0xf4 ? 0x8f : 0xbf;
  return true;
}

export function takeToken(s: JsonState, tokenizer: Tokenizer, id: number): boolean {
  for (const byte of tokenizer.bytesOf(id) ?? []) if (!takeByte(s, byte)) return false;
  return true;
}

/** A vocabulary as the mask wants it, made once. */
interface Shelf {
  /** Without bytes, or special. */
  never: number[];
  /** The others, in the order of their bytes. */
  sorted: Int32Array;
  /** How many bytes each begins with that the one before has too. */
  shared: Uint16Array;
  /** 1 for those that leave a string as they found it. */
  plain: Uint8Array;
  /** The states after each byte of the token that is being tried. */
  states: JsonState[];
}
const shelves = new WeakMap<Tokenizer, Shelf>();

function shelfOf(tokenizer: Tokenizer, vocabulary: number): Shelf {
  const known = shelves.get(tokenizer);
  if (known) return known;
  const ids = Array.from({ length: vocabulary }, (_, id) => id);
  const bytesOf = (id: number) => (tokenizer.special.has(id) ? undefined : tokenizer.bytesOf(id)) ?? new Uint8Array();
  const common = (a: Uint8Array, b: Uint8Array) => {
    let n = 0;
    while (n < a.length && n < b.length && a[n] === b[n]) n++;
    return n;
  };
  const some = ids.filter((id) => bytesOf(id).length > 0);
  const compared = (a: Uint8Array, b: Uint8Array, n: number) => (a[n] ?? -1) - (b[n] ?? -1);
  const sorted = Int32Array.from(some).sort((a, b) => {
    const [x, y] = [bytesOf(a), bytesOf(b)];
    return compared(x, y, common(x, y));
  });
  const longest = some.reduce((most, id) => Math.max(most, bytesOf(id).length), 0);
  const shelf: Shelf = {
    never: ids.filter((id) => bytesOf(id).length === 0),
    sorted,
    shared: Uint16Array.from(sorted, (id, i) => (i === 0 ? 0 : common(bytesOf(sorted[i - 1]!), bytesOf(id)))),
    plain: new Uint8Array(vocabulary),
    states: Array.from({ length: longest + 1 }, jsonStart),
  };
  for (const id of sorted) {
    const string = { ...jsonStart(), mode: STRING };
    const isText = !bytesOf(id).includes(QUOTE) && !bytesOf(id).includes(BACKSLASH);
    shelf.plain[id] = isText && takeToken(string, tokenizer, id) && string.mode === STRING ? 1 : 0;
  }
  shelves.set(tokenizer, shelf);
  return shelf;
}

function copy(to: JsonState, from: JsonState): JsonState {
  to.mode = from.mode;
  to.open = from.open;
  to.isKey = from.isKey;
  to.left = from.left;
  to.low = from.low;
  to.high = from.high;
  to.rest = from.rest;
  to.spaces = from.spaces;
  return to;
}

/** Low enough that nothing is left of its probability. */
const NEVER = -1e30;

/** Bans what may not come next, of an answer whose object is not whole yet and that may have `left` more tokens, two at least. */
export function maskJson(logits: Float32Array, s: JsonState, tokenizer: Tokenizer, left: number): void {
  const { never, sorted, shared, plain, states } = shelfOf(tokenizer, logits.length);
  for (const id of never) logits[id] = NEVER;
  const isString = s.mode === STRING;
  const hasRoom = bytesToEnd(s) < left;
  copy(states[0]!, s);
  // states[0 … known] are those of the bytes that the token has in common with the last that was tried.
  let known = 0;
  let refused = false; // the byte after those
  for (const [i, id] of sorted.entries()) {
    const common = shared[i]!;
    if (common <= known) {
      known = common;
      refused = false;
    } else if (refused) {
      logits[id] = NEVER; // it begins with what was refused
      continue;
    }
    if (isString && plain[id] === 1) {
      if (!hasRoom) logits[id] = NEVER;
      continue;
    }
    const bytes = tokenizer.bytesOf(id)!;
    while (known < bytes.length && !refused) {
      if (takeByte(copy(states[known + 1]!, states[known]!), bytes[known]!)) known++;
      else refused = true;
    }
    if (refused || bytesToEnd(states[known]!) >= left) logits[id] = NEVER;
  }
}

export const isWhole = (s: JsonState): boolean => s.mode === DONE;
