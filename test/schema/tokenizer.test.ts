// The tokenizer beside Hugging Face's, on the cases of test/golden/tokenizer.py.
import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, test } from 'vitest';
import { TOKEN_READ } from '../../functions/policy/room.ts';
import {
  byteLevelFile,
  decode,
  encode,
  loadTokenizer,
  readTokenizer,
  streamDecoder,
  type TokenizerFile,
  tokenizerJson,
  trainBpe,
} from '../../schema/tokenizer.ts';

interface Golden {
  corpus: string[];
  cases: string[];
  tokenizers: {
    name: string;
    file: TokenizerFile;
    /** After those of the cases come ids at random, which have no pieces. */
    rows: { pieces?: string[]; ids: number[]; text: string; with_special: string }[];
  }[];
}
const golden: Golden = JSON.parse(readFileSync(`${import.meta.dirname}/../golden/tokenizer.json`, 'utf8'));
const special = ['<|pad|>', '<|end|>', '<|user|>', '<|assistant|>'];
const [plain, digits] = golden.tokenizers;

test('whole words that are taken as they are, unmerged, never make a special token of what a person wrote', () => {
  const file = trainBpe(['hello'], { vocabSize: 258, special: ['hello'], individualDigits: false });
  file.model.ignore_merges = true;
  const t = loadTokenizer(JSON.stringify(file));
  expect(encode(t, 'hello')).not.toContain(0);
  expect(decode(t, encode(t, 'hello'))).toBe('hello');
  expect(encode(t, 'hello', { special: true })).toEqual([0]);
});

test('of a merge that is given twice the last place counts, as with Hugging Face', () => {
  const file = trainBpe([], { vocabSize: 256, special: [], individualDigits: false });
  const { vocab, merges } = file.model as unknown as { vocab: Record<string, number>; merges: [string, string][] };
  Object.assign(vocab, { ab: 256, bc: 257 });
  merges.push(['a', 'b'], ['b', 'c'], ['a', 'b']);
  expect(encode(loadTokenizer(JSON.stringify(file)), 'abc')).toEqual([vocab.a, 257]);
});

describe.each(golden.tokenizers)('$name', ({ file, rows }) => {
  const t = loadTokenizer(JSON.stringify(file));
  test('cuts where Hugging Face does', () => {
    for (const [i, text] of golden.cases.entries()) expect(t.split(text)).toEqual(rows[i]!.pieces!);
  });
  test('encodes as Hugging Face does', () => {
    for (const [i, text] of golden.cases.entries())
      expect({ text, ids: encode(t, text, { special: true }) }).toEqual({ text, ids: rows[i]!.ids });
  });
  test('decodes as Hugging Face does, also ids that break UTF-8', () => {
    for (const { ids, text, with_special } of rows) {
      expect(decode(t, ids)).toBe(text);
      expect(decode(t, ids, { special: true })).toBe(with_special);
    }
  });
  test('a file written and read again is the same tokenizer', () => {
    const again = loadTokenizer(tokenizerJson(t.file));
    expect(again.file).toEqual(file);
    expect(encode(again, golden.cases.join(' '))).toEqual(encode(t, golden.cases.join(' ')));
  });
});

test('what a person wrote never becomes a special token', () => {
  const t = loadTokenizer(JSON.stringify(digits!.file));
  for (const text of golden.cases) {
    const ids = encode(t, text);
    expect(ids.some((id) => t.special.has(id))).toBe(false);
    expect(decode(t, ids)).toBe(text);
  }
});

test('streaming gives the same text and never half a character', () => {
  const t = loadTokenizer(JSON.stringify(digits!.file));
  const text = golden.cases.join('\n');
  const next = streamDecoder(t);
  let all = '';
  for (const id of encode(t, text)) {
    const piece = next(id);
    expect(piece).not.toContain('\ufffd');
    all += piece;
  }
  expect(all + next()).toBe(text);
});

test('training gives the merges that Hugging Face gives, whatever the order of the texts', () => {
  for (const [individualDigits, theirs] of [
    [false, plain!.file],
    [true, digits!.file],
  ] as const) {
    const options = { vocabSize: 420, special, individualDigits };
    const ours = trainBpe(golden.corpus, options);
    expect(ours.model.merges).toEqual(theirs.model.merges);
    expect(ours.model.vocab).toEqual(theirs.model.vocab);
    expect(tokenizerJson(trainBpe(golden.corpus.toReversed(), options))).toBe(tokenizerJson(ours));
  }
});

test('a long piece without a space is no trap', () => {
  const t = loadTokenizer(JSON.stringify(plain!.file));
  const text = 'a'.repeat(200_000);
  expect(decode(t, encode(t, text))).toBe(text);
  // what is quadratic in its length would take hours
}, 30_000);

test.each<[string, (file: TokenizerFile) => void]>([
  ['normalizer NFKC', (f) => Object.assign(f, { normalizer: { type: 'NFKC' } })],
  ['byte_fallback', (f) => Object.assign(f.model, { byte_fallback: true })],
  ['model Unigram', (f) => Object.assign(f.model, { type: 'Unigram' })],
  ['decoder Metaspace', (f) => Object.assign(f, { decoder: { type: 'Metaspace' } })],
  ['pre_tokenizer Metaspace', (f) => Object.assign(f, { pre_tokenizer: { type: 'Metaspace' } })],
  [
    'pre_tokenizer Punctuation',
    (f) => (f.pre_tokenizer as { pretokenizers: unknown[] }).pretokenizers.push({ type: 'Punctuation' }),
  ],
  ['add_prefix_space', (f) => Object.assign(f, { pre_tokenizer: { type: 'ByteLevel', add_prefix_space: true } })],
  ['post_processor TemplateProcessing', (f) => Object.assign(f, { post_processor: { type: 'TemplateProcessing' } })],
  ['lstrip', (f) => Object.assign(f.added_tokens[0]!, { lstrip: true })],
  [
    '\\\\w in the Split pattern',
    (f) =>
      (f.pre_tokenizer as { pretokenizers: unknown[] }).pretokenizers.push({
        type: 'Split',
        behavior: 'Isolated',
        pattern: { Regex: '\\w+' },
      }),
  ],
])('%s is refused by name', (name, spoil) => {
  const file = structuredClone(digits!.file);
  spoil(file);
  expect(() => loadTokenizer(JSON.stringify(file))).toThrow(new RegExp(name));
});

test('a merge of unknown tokens, two tokens of one id, and no tokenizer at all are refused', () => {
  const merge = structuredClone(digits!.file);
  (merge.model.merges as string[][])[3] = ['zz', 'y'];
  expect(() => loadTokenizer(JSON.stringify(merge))).toThrow('merge 3');
  const twice = structuredClone(digits!.file);
  Object.assign(twice.model.vocab as object, { zzzz: 17 });
  expect(() => loadTokenizer(JSON.stringify(twice))).toThrow('two tokens have the id 17');
  expect(() => loadTokenizer(JSON.stringify({ hello: 1 }))).toThrow('tokenizer.json');
  const empty = { ...digits!.file, added_tokens: [], model: { ...digits!.file.model, vocab: {}, merges: [] } };
  expect(() => loadTokenizer(JSON.stringify(empty))).toThrow('the vocabulary is empty');
});

test('of two special tokens that begin alike the longer is taken, whatever their order', () => {
  for (const names of [
    ['<|a|>', '<|a|>b'],
    ['<|a|>b', '<|a|>'],
  ]) {
    const t = loadTokenizer(JSON.stringify(trainBpe([], { vocabSize: 258, special: names, individualDigits: false })));
    const ids = encode(t, '<|a|>b<|a|>c', { special: true });
    expect(ids.slice(0, 2)).toEqual([names.indexOf('<|a|>b'), names.indexOf('<|a|>')]);
  }
});

test('an id that stands for nothing has no bytes, and is no text', () => {
  const file = structuredClone(golden.tokenizers[0]!.file);
  const { size } = loadTokenizer(JSON.stringify(file));
  Object.assign(file.model.vocab as object, { far: size + 2 });
  const tokenizer = loadTokenizer(JSON.stringify(file));
  expect(tokenizer.size).toBe(size + 3);
  expect([size, size + 1].map((id) => tokenizer.bytesOf(id))).toEqual([undefined, undefined]);
  expect(tokenizer.bytesOf(size + 2)).toBeDefined();
  expect(decode(tokenizer, [size, size + 1])).toBe('');
});

test('an added token has the id that Hugging Face gives it, whatever the file says, or is refused', () => {
  const { file, size } = loadTokenizer(JSON.stringify(golden.tokenizers[0]!.file));
  const withAdded = (...ids: number[]) =>
    loadTokenizer(
      JSON.stringify({
        ...file,
        added_tokens: [...file.added_tokens, ...ids.map((id, i) => ({ id, content: `<|${i}|>`, special: true }))],
      }),
    );
  expect(withAdded(size, size + 1).size).toBe(size + 2);
  const told = (i: number, id: number, next: number) =>
    `the added token <|${i}|> has the id ${id}; the next in order, which Hugging Face gives it, is ${next}`;
  expect(() => withAdded(size + 2)).toThrow(told(0, size + 2, size));
  expect(() => withAdded(size, size + 2)).toThrow(told(1, size + 2, size + 1));
  // where the vocabulary has a hole Hugging Face counts its tokens, whatever else is added of them
  const vocab = Object.entries(file.model.vocab as Record<string, number>);
  const last = vocab.find(([, id]) => id === size - 1)![0];
  file.model = { ...file.model, vocab: { ...Object.fromEntries(vocab), [last]: size + 1 } };
  file.added_tokens.push({ id: size + 1, content: last, special: false });
  expect(withAdded(size).size).toBe(size + 2);
  expect(() => withAdded(size + 2)).toThrow(told(0, size + 2, size));
});

test('added tokens are sought in the text, those that are to be normalized after it is, as Hugging Face does', () => {
  const { file, size } = loadTokenizer(JSON.stringify(golden.tokenizers[3]!.file)); // it has NFC
  const added = [
    { content: 'café', normalized: true },
    { content: '<|a|>', normalized: false },
    { content: '<|a|>b', normalized: true },
    { content: 'über', normalized: false },
  ].map((token, i) => ({ ...token, id: size + i, special: false }));
  const t = loadTokenizer(JSON.stringify({ ...file, added_tokens: [...file.added_tokens, ...added] }));
  const told = (text: string) => encode(t, text).map((id) => (id >= size ? added[id - size]!.content : '.'));
  // what tokenizers 0.23.3 makes of them
  expect(told('a café b')).toEqual(['.', '.', 'café', '.', '.']);
  expect(told('a cafe\u0301 b')).toEqual(['.', '.', 'café', '.', '.']);
  expect(told('<|a|>b')).toEqual(['<|a|>', '.']);
  expect(told('u\u0308ber über')).toEqual(['.', '.', 'über']);
  expect(told('<|a|>\u0338')).toEqual(['<|a|>', '.', '.']);
  const decomposed = [{ id: size, content: 'cafe\u0301', normalized: true, special: false }];
  expect(() => loadTokenizer(JSON.stringify({ ...file, added_tokens: [...file.added_tokens, ...decomposed] }))).toThrow(
    'the added token cafe\u0301, which is sought in normalized text and is none, is not supported',
  );
});

test('a piece that is a token by itself is taken whole where the file ignores merges', () => {
  const { file } = loadTokenizer(JSON.stringify(golden.tokenizers[0]!.file));
  const vocab = file.model.vocab as Record<string, number>;
  const size = Object.keys(vocab).length;
  // of no merge: one with a space and ä, as a vocabulary spells them; one spelt as no piece is; and one that is special
  const more = { 'ĠqzqÃ¤': size, 'qz zq': size + 1, '<|x|>': size + 2 };
  const tokenizer = (ignore_merges: boolean, ...added: TokenizerFile['added_tokens']) =>
    loadTokenizer(
      JSON.stringify({
        ...file,
        pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: false }, // a text is a piece
        added_tokens: [...file.added_tokens, ...added, { id: size + 2, content: '<|x|>', special: true }],
        model: { ...file.model, ignore_merges, vocab: { ...vocab, ...more } },
      }),
    );
  expect(encode(tokenizer(true), ' qzqä')).toEqual([size]);
  expect(encode(tokenizer(false), ' qzqä')).not.toContain(size);
  const odd = { id: size, content: 'ĠqzqÃ¤', special: false }; // as text it is one thing, as a piece another
  expect(() => tokenizer(true, odd)).toThrow('the added token ĠqzqÃ¤ with ignore_merges is not supported');
  expect(() => tokenizer(false, odd)).not.toThrow();
  for (const text of ['qz zq', '<|x|>', ' qzqä!qzqä', 'Ġqzqä', 'The end of it', '']) {
    const whole = encode(tokenizer(true), text);
    expect(whole.filter((id) => id > size)).toEqual([]);
    expect(decode(tokenizer(true), whole)).toBe(text);
  }
});

test('of pieces, however many and odd, no more is remembered than a Worker has memory for', () => {
  const t = loadTokenizer(JSON.stringify(golden.tokenizers[0]!.file));
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const used = () => {
    collect();
    return process.memoryUsage().heapUsed;
  };
  // 64 letters of three bytes each, no two pieces alike
  const piece = (n: number) =>
    Array.from({ length: 64 }, (_, k) => String.fromCodePoint(0x4e00 + ((n + k * k) % 20_000))).join('');
  let asked = 0;
  const ask = (pieces: number) => {
    for (const end = asked + pieces; asked < end; asked++) encode(t, piece(asked));
  };
  /** Two pieces among what is not remembered, which is not to stay for them. */
  const askAtLength = (texts: number) => {
    for (let i = 0; i < texts; i++) {
      const words = [piece(asked++), piece(asked++)].map((word) => word.slice(0, 24));
      encode(t, words.join(` ${'a '.repeat(50_000)}`));
    }
  };
  askAtLength(1);
  ask(100);
  const before = used();
  let most = 0;
  for (let i = 0; i < 20; i++) {
    ask(250);
    askAtLength(10);
    most = Math.max(most, used() - before);
  }
  expect(most).toBeLessThan(0.8e6);
  const sizes = [1, 2].map(() => {
    ask(120);
    return t.cache.size;
  });
  expect(Math.max(...sizes)).toBeGreaterThan(100); // begun anew, not given up
  encode(t, 'a'.repeat(10_000));
  expect([...t.cache.keys()].every(({ length }) => length <= 64)).toBe(true);
});

test.each([false, true])(
  'of 49,000 tokens reading takes no more memory beside the file than a Worker has for it (ignore_merges: %s)',
  async (ignore) => {
    const alphabet = trainBpe([], { vocabSize: 256, special: [], individualDigits: false });
    const bytes = Object.keys(alphabet.model.vocab as object);
    const pairs = Array.from({ length: 49_000 }, (_, i): [string, string] => [bytes[i >> 8]!, bytes[i & 255]!]);
    const tokens = [...bytes, ...pairs.map((pair) => pair.join(''))];
    const file = byteLevelFile(tokens, pairs, [], alphabet.pre_tokenizer as object);
    file.model.ignore_merges = ignore;
    const json = new TextEncoder().encode(JSON.stringify(file));
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const used = () => {
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      return heapUsed + arrayBuffers;
    };
    const taken: number[] = [];
    for (let i = 0; i < 5; i++) {
      const copy = json.slice();
      collect();
      const before = used();
      const t = readTokenizer(copy);
      taken.push(used() - before); // with what is garbage by now; the first time also what the compiler takes
      expect(encode(t, 'ab')).toEqual([256 + pairs.findIndex((pair) => pair.join('') === 'ab')]);
    }
    const median = taken.sort((a, b) => a - b)[2]!;
    expect(median).toBeLessThan((ignore ? TOKEN_READ : 69) * tokens.length);
    expect(median).toBeGreaterThan(20 * tokens.length); // of which it keeps so much
    const read: ReturnType<typeof readTokenizer>[] = [];
    const keep = () => read.push(readTokenizer(json.slice()));
    /** What is used when all that was let go is known to be: buffers are freed by another thread. */
    const settled = async () => {
      for (let i = 0; i < 4; i++) {
        collect();
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      return used();
    };
    keep();
    const before = await settled();
    for (let i = 0; i < 4; i++) keep();
    const kept = ((await settled()) - before) / 4; // and nothing of the file
    expect(kept).toBeLessThan(45 * tokens.length);
    expect(read).toHaveLength(5);
  },
);
