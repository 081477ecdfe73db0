// response_format json_object: what comes out is one JSON object, whatever the model would rather have said.
import { expect, test } from 'vitest';
import { batcher } from '../../../functions/policy/batch.ts';
import { ContextOverflow } from '../../../functions/policy/choice.ts';
import { completer } from '../../../functions/policy/complete.ts';
import { bytesToEnd, isWhole, jsonStart, LEAST_JSON, maskJson, takeByte } from '../../../functions/policy/json.ts';
import { loadDecoder } from '../../../functions/policy/node.ts';
import type { Tokenizer } from '../../../schema/tokenizer.ts';
import { type Random, random } from '../../../trainer/random.ts';
import { seedPolicy } from '../../support/seed.ts';
import { collect, image, never, request, template, tokenizer } from './answers.ts';

/** Whether the machine takes the bytes to their end; a prefix is never whole, and never nearer to its end than it says. */
function accepts(bytes: Uint8Array): boolean {
  const s = jsonStart();
  const toEnd: number[] = [];
  for (const byte of bytes) {
    if (isWhole(s)) return false;
    toEnd.push(bytesToEnd(s));
    if (!takeByte(s, byte)) return false;
  }
  if (!isWhole(s)) return false;
  expect(bytesToEnd(s)).toBe(0);
  for (const [i, least] of toEnd.entries()) expect(least).toBeLessThanOrEqual(bytes.length - i);
  return true;
}
function isObject(bytes: Uint8Array): boolean {
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value) && text.endsWith('}');
  } catch {
    return false;
  }
}

const pieces = [
  'a',
  'é',
  '日',
  '🙂',
  '\\"',
  '\\\\',
  '\\/',
  '\\n',
  '\\u00e9',
  '\\uD83D',
  ' ',
  '߿',
  'ࠀ',
  '\ud7ff',
  '\ue000',
];
const numbers = ['0', '-0', '7', '-12', '0.5', '1e9', '2E-3', '10.25e+07', '-0.0e0'];
const one = <T>(of: T[], rng: Random) => of[Math.floor(rng() * of.length)]!;
const many = (rng: Random, make: () => string) =>
  Array.from({ length: Math.floor(rng() * 4) }, make).join(one([',', ', ', ' ,\n'], rng));
const string = (rng: Random) => `"${Array.from({ length: Math.floor(rng() * 4) }, () => one(pieces, rng)).join('')}"`;
function value(rng: Random, depth: number): string {
  const kind = Math.floor(rng() * (depth > 3 ? 3 : 5));
  if (kind === 0) return string(rng);
  if (kind === 1) return one(numbers, rng);
  if (kind === 2) return one(['true', 'false', 'null'], rng);
  return kind === 3 ? `[${many(rng, () => value(rng, depth + 1))}]` : object(rng, depth + 1);
}
const object = (rng: Random, depth = 0): string =>
  `{${one(['', ' ', '\r\n\t'], rng)}${many(rng, () => `${string(rng)}${one([':', ' : '], rng)}${value(rng, depth)}`)}}`;

test('takes what JSON.parse takes, of objects, and refuses what it refuses', () => {
  const rng = random(7, 'json');
  const utf8 = new TextEncoder();
  let [right, wrong] = [0, 0];
  for (let i = 0; i < 400; i++) {
    const document = utf8.encode(object(rng));
    expect(accepts(document), new TextDecoder().decode(document)).toBe(true);
    for (let k = 0; k < 20; k++) {
      const odd = [...document];
      const at = Math.floor(rng() * odd.length);
      const byte = rng() < 0.5 ? one([...utf8.encode('{}[]:,"\\ \n0e.-+truefalsn')], rng) : Math.floor(rng() * 256);
      odd.splice(at, one([0, 1, 1, 3], rng), ...(rng() < 0.7 ? [byte] : []));
      const bytes = Uint8Array.from(odd);
      const expected = isObject(bytes);
      expect(accepts(bytes), JSON.stringify(new TextDecoder().decode(bytes))).toBe(expected);
      if (expected) right++;
      else wrong++;
    }
  }
  expect(right).toBeGreaterThan(500);
  expect(wrong).toBeGreaterThan(500);
});

test('an end of as many bytes as it says is there, wherever it stands', () => {
  const rng = random(8, 'json');
  const utf8 = new TextEncoder();
  const ends = [...utf8.encode('{}[]":0nulltruefalse'), 0x80, 0xa0, 0x90];
  const seen = new Set<number>();
  for (let i = 0; i < 100; i++) {
    const s = jsonStart();
    for (const byte of utf8.encode(object(rng))) {
      const nearer = ends.some((end) => {
        const next = structuredClone(s);
        return takeByte(next, end) && bytesToEnd(next) === bytesToEnd(s) - 1;
      });
      expect(nearer, `${bytesToEnd(s)} bytes in mode ${s.mode}`).toBe(true);
      seen.add(s.mode);
      takeByte(s, byte);
    }
  }
  expect(seen.size).toBeGreaterThan(12);
});

test('white space ends, at last', () => {
  const s = jsonStart();
  let taken = 0;
  while (takeByte(s, 0x20)) taken++;
  expect(taken).toBe(20);
});

test('of both tokenizers there is a token for each byte that an end may take', () => {
  for (const { byteIds } of [tokenizer, seedPolicy().policy.tokenizer]) {
    const needed = [...new TextEncoder().encode('{}[]":0nulltruefalse'), 0x80, 0xa0, 0x90];
    expect(needed.filter((byte) => byteIds[byte]! < 0)).toEqual([]);
  }
});

test('a token may come where each of its bytes may, and the end can still be reached', () => {
  const spelled = [
    'a',
    'é',
    '", "',
    '":',
    '": {"',
    '"}',
    '}}',
    '\\',
    '\\"',
    'u00e9',
    '1',
    '1}',
    ', ',
    '[',
    '{"',
    'true',
    '',
    '"',
    '\n',
    ' "',
  ];
  const bytes = [
    ...spelled.map((text) => new TextEncoder().encode(text)),
    Uint8Array.of(0xc3),
    Uint8Array.of(0xa9, 0x61),
    undefined,
  ];
  const vocabulary = { bytesOf: (id: number) => bytes[id], special: new Set([0]) } as unknown as Tokenizer;
  const beginnings = [
    '',
    '{',
    '{"',
    '{"a',
    '{"a"',
    '{"a":',
    '{"a":"',
    '{"a":"b"',
    '{"a":[1',
    '{"a":[',
    '{"a":1,',
    '{"a":"\\',
    '{"a":"\\u00',
    '{"a":tr',
    '{"a":-',
  ];
  let allowed = 0;
  for (const text of beginnings) {
    const s = jsonStart();
    for (const byte of new TextEncoder().encode(text)) expect(takeByte(s, byte)).toBe(true);
    for (const left of [bytesToEnd(s), bytesToEnd(s) + 1, bytesToEnd(s) + 4, 100]) {
      const logits = new Float32Array(bytes.length);
      maskJson(logits, s, vocabulary, left);
      for (const [id, own] of bytes.entries()) {
        const after = { ...s };
        const fits = id !== 0 && own !== undefined && own.length > 0 && own.every((byte) => takeByte(after, byte));
        const expected = fits && bytesToEnd(after) < left;
        expect(logits[id] === 0, `${text} and token ${id}, ${left} left`).toBe(expected);
        if (expected) allowed++;
      }
    }
  }
  expect(allowed).toBeGreaterThan(100);
});

test('500 prompts to a model that knows no JSON: 500 objects, each within its tokens', async () => {
  const complete = batcher(loadDecoder(image, { slots: 16 }), tokenizer, template);
  const ends = { stop: 0, length: 0 };
  await Promise.all(
    Array.from({ length: 25 }, async (_, worker) => {
      for (let i = worker; i < 500; i += 25) {
        const maxTokens = LEAST_JSON + (i % 40);
        const input = { messages: [{ role: 'user' as const, content: `order ${i}` }] };
        const asked = request({ input, maxTokens, seed: i, temperature: i % 3 === 0 ? 0 : 1.5, json: true });
        const [answer] = (await collect(complete(asked, never))).answers;
        const parsed = JSON.parse(answer!.text);
        expect(parsed !== null && typeof parsed === 'object' && !Array.isArray(parsed), answer!.text).toBe(true);
        expect(answer!.completionTokens).toBeLessThanOrEqual(maxTokens);
        ends[answer!.finishReason as 'stop' | 'length']++;
      }
    }),
  );
  expect(ends).toEqual({ stop: 500, length: 0 });
});

test('choices of one request, whose context ends before their tokens do, are objects, too; the log-probabilities stay the model’s', async () => {
  const decoder = loadDecoder(image, { slots: 4, context: 40 });
  const complete = completer(decoder, tokenizer, template);
  const { answers, promptTokens } = await collect(
    complete(request({ json: true, n: 6, maxTokens: 400, topLogprobs: 2 }), never),
  );
  for (const { text, logprobs, completionTokens } of answers) {
    expect(() => JSON.parse(text)).not.toThrow();
    expect(promptTokens + completionTokens!).toBeLessThanOrEqual(40);
    expect(logprobs.flatMap(({ bytes }) => bytes)).toEqual([...new TextEncoder().encode(text)]);
    for (const { logprob, top } of logprobs) expect(logprob).toBeLessThanOrEqual(top[0]!.logprob);
    expect(logprobs.some(({ logprob, top }) => logprob < top[1]!.logprob)).toBe(true);
  }
  const tight = completer(loadDecoder(image, { context: promptTokens + 1 }), tokenizer, template);
  await expect(collect(tight(request({ json: true }), never))).rejects.toThrow(ContextOverflow);
  expect((await collect(tight(request(), never))).answers).toHaveLength(1);
});
