// Vocabulary and merges read from a file's bytes beside what JSON.parse makes of them.
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { openTokenizer, rankOf } from '../../schema/vocabulary.ts';
import { random } from '../../trainer/random.ts';

const golden = JSON.parse(readFileSync(`${import.meta.dirname}/../golden/tokenizer.json`, 'utf8'));
const utf8 = new TextEncoder();
const MOST = 2 ** 31 - 1;

interface Read {
  rest: unknown;
  ids: [string, number][];
  merges: [left: number, right: number, merged: number, rank: number][];
}

/** By JSON.parse. Throws where a file is no JSON, or not of this kind. */
function parsed(text: string): Read {
  const rest = JSON.parse(text.replace(/^\ufeff/, ''));
  const model = rest?.model ?? {};
  const ids = Object.entries<unknown>(model.vocab ?? {}).map(([token, id]): [string, number] => {
    if (!Number.isInteger(id) || (id as number) < 0) throw new Error(`id of ${token}`);
    return [token, Math.min(id as number, MOST) + 0];
  });
  for (const [key, ok] of [
    ['vocab', (part: unknown) => typeof part === 'object' && part !== null && !Array.isArray(part)],
    ['merges', Array.isArray],
  ] as const)
    if (key in Object(model) && !ok(model[key])) throw new Error(key);
  const idOf = new Map(ids);
  const places = new Map<string, Read['merges'][number]>();
  for (const [rank, merge] of (model.merges ?? []).entries()) {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((token) => typeof token !== 'string'))
      throw new Error(`merge ${rank}`);
    const [left, right, merged] = [pair[0], pair[1], pair.join('')].map((token) => idOf.get(token));
    if (left === undefined || right === undefined || merged === undefined) throw new Error(`merge ${rank}`);
    places.set(`${left} ${right}`, [left, right, merged, rank]); // of a pair given twice the last place
  }
  if (model.vocab) model.vocab = {};
  if (model.merges) model.merges = [];
  return { rest, ids: ids.sort(), merges: [...places.values()].sort() };
}

function read(text: string): Read {
  const { rest, vocabulary, merges } = openTokenizer(utf8.encode(text));
  const { ids, bytes, from, to, find } = vocabulary;
  const tokens = [...ids.keys()].filter((entry) => ids[entry]! >= 0);
  const pairs = tokens.map((entry): [string, number] => {
    const token = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      bytes.subarray(from[entry], to[entry]),
    );
    expect(find(utf8.encode(token))).toBe(ids[entry]);
    return [token, ids[entry]!];
  });
  const all = merges();
  const places = new Map<string, Read['merges'][number]>();
  for (const [i, left] of all.left.entries()) {
    const right = all.right[i]!;
    const rank = rankOf(all, left, right);
    if (rank >= 0 && all.merged[rank]! >= 0) places.set(`${left} ${right}`, [left, right, all.merged[rank]!, rank]);
  }
  return { rest, ids: pairs.sort(), merges: [...places.values()].sort() };
}
const outcome = (reader: (text: string) => Read, text: string) => {
  try {
    return reader(text);
  } catch (error) {
    expect(['MalformedFile', 'SyntaxError', 'Error']).toContain((error as Error).constructor.name);
    return 'refused';
  }
};

const spellings: [string, (file: object) => string][] = [
  ['dense', (file) => JSON.stringify(file)],
  ['indented', (file) => JSON.stringify(file, null, 2).replaceAll('\n', '\r\n\t')],
  [
    'with escapes',
    (file) => JSON.stringify(file).replace(/[^ -~]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`),
  ],
  ['with a byte order mark', (file) => `\ufeff${JSON.stringify(file)}`],
  [
    'with merges before the vocabulary',
    ({ model, ...file }: { model?: { vocab?: object } }) => {
      const { vocab, ...others } = model!;
      return JSON.stringify({ model: { ...others, vocab }, ...file });
    },
  ],
  [
    'with merges as texts',
    ({ model, ...file }: { model?: { merges?: string[][] } }) =>
      JSON.stringify({ ...file, model: { ...model, merges: model!.merges!.map((pair) => pair.join(' ')) } }),
  ],
];

test.each(spellings)('a file %s is read as JSON.parse reads it', (_, spell) => {
  for (const { file } of golden.tokenizers) {
    const text = spell(file);
    const expected = parsed(text);
    expect(expected.ids.length).toBeGreaterThan(300);
    expect(expected.merges.length).toBeGreaterThan(50);
    expect(read(text)).toEqual(expected);
  }
});

const file = (vocab: string, merges = '[]') => `{"model":{"vocab":${vocab},"merges":${merges}}}`;

test.each([
  [
    'escapes of every kind',
    file('{"\\"":0,"\\\\":1,"\\/":2,"\\b\\f\\n\\r\\t":3,"\\u0120a":4,"\\ud83d\\ude00":5,"😀!":6}'),
  ],
  ['a text that is there twice', file('{"a":0,"b":1,"a":7}', '[["b","b"]]').replace('"b":1', '"b":1,"bb":2')],
  ['keys that objects have', file('{"__proto__":0,"constructor":1,"toString":2}')],
  [
    'what looks like structure within texts',
    file('{"{":0,"}":1,"[\\"":2,",":3,":":4,"]{":5}', '[["]","{"]]').replace('"]{"', '"]":6,"]{"'),
  ],
  ['ids spelt otherwise', file('{"a":1e3,"b":2.0,"c":-0}')],
  ['neither', '{"model":{"type":"BPE"}}'],
  ['nothing in them', file('{ }', '[ ]')],
  ['no model', '{"version":"1.0"}'],
  ['a model that is no object', '{"model":[{"vocab":{"a":1}}]}'],
  ['no object at all', '[1, 2]'],
])('%s: as JSON.parse has it', (_, text) => {
  expect(read(text)).toEqual(parsed(text));
});

test.each([
  ['a vocabulary that is a list', file('["a","b"]'), 'model.vocab is no object'],
  ['merges that are no list', file('{}', '{"a":1}'), 'model.merges is no list'],
  ['two models', '{"model":{"merges":[]},"model":{"vocab":{}}}', 'model is there twice'],
  ['what is too deep', `{"pre_tokenizer":${'['.repeat(200)}${']'.repeat(200)}}`, 'is nested more than 100 deep'],
  ['two vocabularies', '{"model":{"vocab":{},"vocab":{}}}', 'model.vocab is there twice'],
  ['a character that is no byte order mark before it', `\uf000${file('{"a":1}')}`, 'not valid JSON'],
  ['an id behind a byte order mark', file('{"a":\ufeff1}'), 'not valid JSON'],
  ['an id that is none', file('{"a":-1}'), 'the id of a is not a number'],
  [
    'a merge of three',
    file('{"a":0,"aa":1,"aaa":2}', '[["a","a","a"]]'),
    'merge 0 is not two tokens that make a third',
  ],
  ['a merge with two spaces', file('{"a":0}', '["a  a"]'), 'merge 0 is not two tokens that make a third'],
  [
    'a merge of what is no token',
    file('{"a":0,"b":1}', '["a b"]'),
    'merge 0 (["a","b"]) is not two tokens that make a third',
  ],
  ['a vocabulary that ends with a comma', file('{"a":0,}'), 'no text at byte'],
  ['merges that end with a comma', file('{"a":0,"aa":1}', '["a a",]'), 'no merge at byte'],
  ['entries without a comma', file('{"a":0 "b":1}'), 'no , at byte'],
  ['a line break within a text', file('{"a\n":0}'), 'a text with what no text has'],
  ['an escape that is none', file('{"\\x":0}'), '\\x at byte'],
  ['a file that is cut', file('{"a":0}').slice(0, -4), 'ends too soon'],
])('%s is refused by name', (_, text, words) => {
  expect(() => read(text)).toThrow(words);
});

test('half of a pair of surrogates is what it is in UTF-8, and what follows is read', () => {
  const { ids } = read(file('{"\\ud83d\\u0041":0,"\\ud83dx":1,"\\ude00":2,"\\ud83d\\ud83d\\ude00":3}'));
  expect(ids.sort((a, b) => a[1] - b[1])).toEqual([
    ['\ufffdA', 0],
    ['\ufffdx', 1],
    ['\ufffd', 2],
    ['\ufffd😀', 3],
  ]);
});

test('depth is no trap', () => {
  const deep = '['.repeat(200_000);
  expect(() => openTokenizer(utf8.encode(`{"model":{"vocab":${deep}`))).toThrow('is nested more than 100 deep');
});

test('of 3,000 damaged files it refuses those that JSON.parse or a look at them refuses, and reads the others alike', () => {
  const rng = random(11, 'damage');
  const pieces = [
    '"',
    '\\',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    ' ',
    '\\u0120',
    '\\ud83d',
    '\\ud83d\\ude00',
    '\x01',
    'null',
    '1e3',
    '-1',
    '.5',
    '007',
    'é',
    '"a b"',
    '["a","b"]',
    '\\n',
    '\\x',
    '\\u12',
    'true',
    '{"a":1}',
    '"model":',
  ];
  const told = { refused: 0, read: 0 };
  const small = structuredClone(golden.tokenizers[0].file);
  const kept = new Set<string>();
  small.model.merges = small.model.merges.slice(0, 30);
  for (const pair of small.model.merges as string[][]) for (const token of [...pair, pair.join('')]) kept.add(token);
  small.model.vocab = Object.fromEntries(Object.entries(small.model.vocab).filter(([token]) => kept.has(token)));
  for (let i = 0; i < 3000; i++) {
    let text = spellings[i % spellings.length]![1](small);
    for (let edits = rng.int(1, 4); edits > 0; edits--) {
      const at = rng.int(0, text.length);
      text = text.slice(0, at) + pieces[rng.int(0, pieces.length)] + text.slice(at + rng.int(0, 4));
    }
    const expected = outcome(parsed, text);
    told[expected === 'refused' ? 'refused' : 'read']++;
    expect({ text, read: outcome(read, text) }).toEqual({ text, read: expected });
  }
  expect(told.refused).toBeGreaterThan(300);
  expect(told.read).toBeGreaterThan(100);
});
