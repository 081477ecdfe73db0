import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { MalformedFile } from '../../../schema/malformed.ts';
import { type FloatTensor, readTensors } from '../../../schema/safetensors.ts';
import { encode } from '../../../schema/tokenizer.ts';
import { ggufMetadata, ggufTensors, writeGguf } from '../../../trainer/export/gguf.ts';
import { dtypesOf, tensorsOf, textsOf } from '../../../trainer/import/from-gguf.ts';
import { type GgufValue, readGguf } from '../../../trainer/import/gguf.ts';
import { importFrom } from '../../../trainer/import/import.ts';
import { readPolicy } from '../../../trainer/policy.ts';
import { random } from '../../../trainer/random.ts';
import { UserError } from '../../../trainer/user-error.ts';
import { randomModel } from '../../support/model.ts';
import { SEED_FOLDER, seedPolicy } from '../../support/seed.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-gguf-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array) => new Uint8Array(buffer, byteOffset, byteLength);

const golden = readFileSync('test/golden/blocks.gguf');
const expected = JSON.parse(readFileSync('test/golden/blocks.json', 'utf8')) as Record<
  string,
  { shape: number[]; first: number[]; sha256: string }
>;
const { policy } = seedPolicy();
const weights = readTensors(readFileSync(join(SEED_FOLDER, 'model.safetensors')));
const metadata = ggufMetadata(policy, 'x');
const tensors = ggufTensors(policy.config, weights);
const asFile = (
  change: Record<string, GgufValue> = {},
  of: Map<string, FloatTensor> = tensors,
  without?: string,
): string => {
  const path = join(folder, 'policy.gguf');
  const pairs = Object.entries({ ...metadata, ...change }).filter(([key]) => key !== without);
  writeFileSync(path, writeGguf(Object.fromEntries(pairs), of));
  return path;
};

test("llama.cpp's own file reads as its package reads it, every format bit for bit", () => {
  const { metadata: pairs, tensors: found } = readGguf(golden);
  expect(Object.fromEntries(pairs)).toEqual({
    'general.architecture': 'llama',
    'a.text': 'grün\n',
    'a.list': ['a', '', 'ü'],
    numbers: [1, -2, 3],
    yes: true,
    large: 2 ** 40,
    small: -300,
    half: 0.5,
  });
  expect([...found.keys()].sort()).toEqual(Object.keys(expected).sort());
  for (const [name, { shape, format, bytes }] of found) {
    const floats = format.read(bytes);
    expect(shape, name).toEqual(expected[name]!.shape);
    expect([...floats.slice(0, 4)], name).toEqual(expected[name]!.first.map(Math.fround));
    const sha256 = createHash('sha256').update(bytesOf(floats));
    expect(sha256.digest('hex'), name).toBe(expected[name]!.sha256);
  }
});

test.each([
  [['F32', 'Q8_0'], 'F32'],
  [['BF16'], 'BF16'],
  [['BF16', 'Q8_0'], 'F32'],
  [['BF16', 'F16'], 'F32'],
  [['F16'], 'F16'],
  [['Q4_1', 'Q6_K'], 'F16'],
])('weights of a file in %s are kept in %s', (formats, kept) => {
  const { metadata, tensors: all } = readGguf(golden);
  const some = formats.map((name) => [...all].find(([, { format }]) => format.name === name)!);
  const [, { bytes }] = some[0]!;
  const norm = { format: [...all.values()].find(({ format }) => format.name === 'F32')!.format, shape: [4], bytes };
  expect(dtypesOf({ metadata, tensors: new Map([...some, ['norm', norm]]) })).toEqual({
    matrices: kept,
    vectors: 'F32',
  });
});

test("queries lie as Hugging Face has them again, after the converter's permutation", () => {
  const gguf = readGguf(golden);
  const only = new Map([...gguf.tensors].filter(([name]) => name.startsWith('blk')));
  const { metadata: pairs } = readGguf(
    writeGguf(
      {
        ...metadata,
        'llama.attention.head_count': 2,
        'llama.attention.head_count_kv': 2,
        'llama.rope.dimension_count': 8,
        'llama.attention.key_length': 8,
      },
      tensors,
    ),
  );
  only.set('token_embd.weight', gguf.tensors.get('as.F32')!);
  const q = tensorsOf({ metadata: pairs, tensors: only }).get('model.layers.0.self_attn.q_proj.weight')!;
  expect([...q.data]).toEqual(Array.from({ length: 64 }, (_, i) => i));
});

test('a policy is the same out of a GGUF file: configuration, ids, prompts, weights, image', () => {
  const path = asFile();
  const read = readPolicy(path);
  expect(read.config).toEqual(policy.config);
  expect(read.chatTemplate).toBe(policy.chatTemplate);
  const text = 'My order 1207 was late. <|eos|> Naïve 日本\n';
  expect(encode(read.tokenizer, text)).toEqual(encode(policy.tokenizer, text));
  expect(encode(read.tokenizer, text, { special: true })).toEqual(encode(policy.tokenizer, text, { special: true }));
  const said = [{ role: 'user' as const, content: text }];
  expect(read.encodePrompt(said)).toEqual(policy.encodePrompt(said));
  const { files, manifest } = importFrom(path, 'out of a file');
  expect(manifest.config).toEqual(policy.config);
  const again = readTensors(files.get('model.safetensors')!);
  expect([...again.keys()].sort()).toEqual([...weights.keys()].sort());
  for (const [name, { shape, data }] of weights) {
    expect(again.get(name)!.shape, name).toEqual(shape);
    expect(Buffer.compare(bytesOf(again.get(name)!.data), bytesOf(data)), name).toBe(0);
  }
  const image = (files: Map<string, Uint8Array>) => createHash('sha256').update(files.get('edge.bin')!).digest('hex');
  expect(image(files)).toBe(image(importFrom(SEED_FOLDER, 'out of a folder').files));
});

test('what Llama 3 calls its pre-tokenizer also says that whole words are tokens before anything is merged', () => {
  const merging = (pre: string) => {
    const { file } = readPolicy(asFile({ 'tokenizer.ggml.pre': pre })).tokenizer;
    return (file.model as { ignore_merges?: boolean }).ignore_merges;
  };
  expect(['llama-bpe', 'gpt-2'].map(merging)).toEqual([true, false]);
});

test.each<[string, () => string, RegExp]>([
  [
    'another architecture',
    () => asFile({ 'general.architecture': 'mamba' }),
    /architecture mamba; supported are llama, qwen2, qwen3/,
  ],
  ['another tokenizer', () => asFile({ 'tokenizer.ggml.model': 'llama' }), /tokenizer of the kind llama/],
  ['another pre-tokenizer', () => asFile({ 'tokenizer.ggml.pre': 'viking' }), /pre-tokenizer viking; supported are/],
  [
    'scaled RoPE',
    () => asFile({ 'llama.rope.scaling.type': 'yarn' }),
    /llama\.rope\.scaling\.type is yarn: not supported/,
  ],
  ['RoPE of a part of each head', () => asFile({ 'llama.rope.dimension_count': 32 }), /turns 32 of a head's 64/],
  ['layers without number', () => asFile({ 'llama.block_count': 2 ** 31 - 1 }), /num_hidden_layers: Too big/],
  [
    'a token twice',
    () => {
      const tokens = metadata['tokenizer.ggml.tokens'] as string[];
      return asFile({ 'tokenizer.ggml.tokens': tokens.with(9, tokens[8]!) });
    },
    /the vocabulary has a token twice/,
  ],
  [
    'attention to a window',
    () => asFile({ 'llama.attention.sliding_window': 64 }),
    /attention\.sliding_window is 64: not supported/,
  ],
  ['experts', () => asFile({ 'llama.expert_count': 8 }), /expert_count is 8/],
  [
    'biases',
    () => asFile({}, new Map([...tensors, ['blk.0.attn_q.bias', { shape: [192], data: new Float32Array(192) }]])),
    /attn_q\.bias is not supported/,
  ],
  [
    'an unknown tensor',
    () => asFile({}, new Map([...tensors, ['blk.0.extra.weight', { shape: [4], data: new Float32Array(4) }]])),
    /blk\.0\.extra\.weight is no part of a llama/,
  ],
  [
    'a missing tensor',
    () => asFile({}, new Map([...tensors].filter(([name]) => name !== 'blk.1.ffn_up.weight'))),
    /no model\.layers\.1\.mlp\.up_proj/,
  ],
  ['no template', () => asFile({}, tensors, 'tokenizer.chat_template'), /has no tokenizer\.chat_template/],
  ['a number that is a text', () => asFile({ 'llama.block_count': '4' }), /llama\.block_count is not a finite number/],
  [
    'a number without end',
    () => asFile({ 'llama.attention.layer_norm_rms_epsilon': Number.NaN }),
    /layer_norm_rms_epsilon is not a finite number/,
  ],
  ['no file', () => join(folder, 'none.gguf'), /there is no file .*none\.gguf/],
  ['a folder of that name', () => folder, /not a policy/],
])('%s: refused in a line', (_, path, message) => {
  const refused = () => importFrom(path(), 'x');
  expect(refused).toThrow(UserError);
  expect(refused).toThrow(message);
});

test('a format that is not read is refused by its name', () => {
  const file = Buffer.from(writeGguf({}, new Map([['x', { shape: [256], data: new Float32Array(256) }]])));
  file.writeUInt32LE(11, file.indexOf('x') + 1 + 4 + 8);
  expect(() => readGguf(file)).toThrow(
    'x is Q3_K; supported are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16',
  );
});

test.each<[string, (bytes: Buffer) => void, RegExp]>([
  ['another kind of file', (b) => b.write('GGML'), /does not begin with GGUF/],
  ['big-endian', (b) => b.writeUInt32BE(3, 4), /version 50331648/],
  ['more tensors than can be', (b) => b.writeBigUInt64LE(2n ** 63n, 8), /says 9223372036854775808/],
  ['a text beyond the end', (b) => b.writeBigUInt64LE(2n ** 40n, 24), /ends inside key 0/],
  [
    'a list of more than there is',
    (b) => b.writeBigUInt64LE(2n ** 50n, b.indexOf('numbers') + 7 + 8),
    /numbers says 1125899906842624 values/,
  ],
  [
    'a tensor beyond the end',
    (b) => b.writeBigUInt64LE(2n ** 40n, b.indexOf('as.F32') + 6 + 4 + 16 + 4),
    /as\.F32 goes beyond/,
  ],
  ['overlapping tensors', (b) => b.writeBigUInt64LE(0n, b.indexOf('as.F16') + 6 + 4 + 16 + 4), /overlaps/],
  ['a tensor between two places', (b) => b.writeBigUInt64LE(33n, b.indexOf('as.F16') + 6 + 4 + 16 + 4), /lies at 33/],
  [
    'rows of a broken block',
    (b) => b.writeBigUInt64LE(511n, b.indexOf('as.Q8_0') + 7 + 4),
    /rows of 511, not whole blocks of 32/,
  ],
])('%s: said', (_, damage, message) => {
  const bytes = Buffer.from(golden);
  damage(bytes);
  expect(() => readGguf(bytes)).toThrow(message);
});

test('lists in lists in lists are read four deep', () => {
  const nested = (deep: number) => {
    const file = Buffer.alloc(24 + 8 + 1 + 4 + 12 * deep + 4);
    file.write('GGUF');
    file.writeUInt32LE(3, 4);
    file.writeBigUInt64LE(1n, 16); // pairs
    file.writeBigUInt64LE(1n, 24); // the key's length
    file.write('k', 32);
    file.writeUInt32LE(9, 33); // a list
    for (let i = 0; i < deep; i++) {
      file.writeUInt32LE(i + 1 < deep ? 9 : 4, 37 + 12 * i);
      file.writeBigUInt64LE(1n, 41 + 12 * i);
    }
    file.writeUInt32LE(7, 37 + 12 * deep);
    return file;
  };
  expect(readGguf(nested(4)).metadata.get('k')).toEqual([[[[7]]]]);
  expect(() => readGguf(nested(5))).toThrow(/nests arrays more than 4 deep/);
});

/** Bytes changed at random before `header`, or from there on one in four times; one in four files is cut short. */
function* damaged(file: Uint8Array, header: number): Generator<Buffer> {
  const rng = random(7);
  const below = (n: number) => rng.int(0, n);
  const extremes = [0n, 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
  for (let i = 0; i < 1000; i++) {
    const bytes = Buffer.from(file);
    for (let change = 0; change <= below(3); change++)
      if (below(4) === 0) bytes[header + below(bytes.length - header)] = below(256);
      else if (below(2) === 0) bytes[below(header)] = below(256);
      else bytes.writeBigUInt64LE(extremes[below(extremes.length)]!, below(header - 8));
    yield below(4) === 0 ? bytes.subarray(0, below(bytes.length)) : bytes;
  }
}

test('a thousand damaged files of every format are read or refused in words, none past its end', () => {
  let read = 0;
  for (const file of damaged(golden, golden.indexOf('blk.0.attn_q.weight') + 60)) {
    try {
      for (const { format, bytes } of readGguf(file).tensors.values()) format.read(bytes);
      read++;
    } catch (error) {
      expect(error).toBeInstanceOf(MalformedFile);
    }
  }
  expect(read).toBeGreaterThan(0);
  expect(read).toBeLessThan(1000);
});

test('a thousand damaged policies are read or refused in words', () => {
  const config = { ...policy.config, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, head_dim: 16 };
  const small = { ...config, num_attention_heads: 2, num_key_value_heads: 1 };
  const whole = writeGguf(ggufMetadata({ ...policy, config: small }, 'x'), ggufTensors(small, randomModel(small, 1)));
  const refusals = new Set<string>();
  let read = 0;
  const names = Buffer.from(whole).indexOf('blk.1.attn_q.weight');
  for (const file of damaged(whole, names)) {
    try {
      const gguf = readGguf(file);
      textsOf(gguf);
      tensorsOf(gguf);
      read++;
    } catch (error) {
      expect(error).toBeInstanceOf(MalformedFile);
      refusals.add((error as Error).message);
    }
  }
  expect(read).toBeGreaterThan(0);
  expect(refusals.size).toBeGreaterThan(20);
});
