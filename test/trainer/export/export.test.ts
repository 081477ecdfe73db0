import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ModelConfig } from '../../../schema/manifest.ts';
import {
  type FloatTensor,
  floats,
  readSafetensors,
  readTensors,
  writeSafetensors,
} from '../../../schema/safetensors.ts';
import { loadTokenizer } from '../../../schema/tokenizer.ts';
import { exportTo, requireWritable } from '../../../trainer/export/export.ts';
import { GGUF_TYPES, type GgufType, writeGguf } from '../../../trainer/export/gguf.ts';
import { readGguf } from '../../../trainer/import/gguf.ts';
import { importFrom } from '../../../trainer/import/import.ts';
import { sha256 } from '../../../trainer/manifest.ts';
import { SEED_FOLDER } from '../../support/seed.ts';
import { tinyFolder } from '../../support/tiny-folder.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-export-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);
const { files, manifest } = importFrom(SEED_FOLDER, 'seed');
const weightsIn = (path: string) => readTensors(importFrom(path, 'x').files.get('model.safetensors')!);
const weights = readTensors(files.get('model.safetensors')!);

test('a folder has the policy’s files as they were published, but for the edge’s image', () => {
  exportTo(at('hf'), files, 'seed', 'f16');
  expect(readdirSync(at('hf')).sort()).toEqual(
    manifest.files
      .map(({ name }) => name as string)
      .filter((name) => name !== 'edge.bin')
      .sort(),
  );
  for (const name of readdirSync(at('hf')))
    expect(Buffer.compare(readFileSync(join(at('hf'), name)), files.get(name)!), name).toBe(0);
  expect(importFrom(at('hf'), 'seed').manifest.files).toEqual(manifest.files);
});

test.each([
  ['qwen2', 'Qwen2ForCausalLM', ['self_attn.q_proj.bias', 'self_attn.k_proj.bias', 'self_attn.v_proj.bias']],
  ['qwen3', 'Qwen3ForCausalLM', ['self_attn.q_norm.weight', 'self_attn.k_norm.weight']],
] as const)('a %s comes back out of a folder and out of a .gguf file, with all that is its own', (type, name, own) => {
  const of = { model_type: type, architectures: [name], num_attention_heads: 2 } satisfies Partial<ModelConfig>;
  const given = importFrom(tinyFolder(at(type), of), 'x');
  expect(given.manifest.config).toMatchObject(of);
  const before = readTensors(given.files.get('model.safetensors')!);
  expect([...before.keys()]).toEqual(expect.arrayContaining(own.map((tensor) => `model.layers.1.${tensor}`)));
  for (const path of [at(`${type} again`), at(`${type}.gguf`)]) {
    exportTo(path, given.files, 'x', 'f32');
    const back = importFrom(path, 'x');
    expect(back.manifest.config).toEqual(given.manifest.config);
    expect(readTensors(back.files.get('model.safetensors')!)).toEqual(before);
    expect(sha256(back.files.get('edge.bin')!)).toBe(sha256(given.files.get('edge.bin')!));
  }
  expect(readGguf(readFileSync(at(`${type}.gguf`))).metadata.get('general.architecture')).toBe(type);
  const config = join(at(type), 'config.json');
  const written = readFileSync(config, 'utf8');
  const refused = (more: object) => {
    writeFileSync(config, JSON.stringify({ ...JSON.parse(written), ...more }));
    return expect(() => importFrom(at(type), 'x'));
  };
  refused({ use_sliding_window: true }).toThrow(/a sliding window is not supported/);
  refused({ architectures: ['LlamaForCausalLM'] }).toThrow(`a ${type} is no LlamaForCausalLM`);
  refused({ model_type: 'llama', architectures: ['LlamaForCausalLM'] }).toThrow(/self_attn/);
});

test('a token that was added comes back out of a .gguf file as special as it was', () => {
  const path = join(tinyFolder(at('added')), 'tokenizer.json');
  const file = JSON.parse(readFileSync(path, 'utf8'));
  file.added_tokens.push({ ...file.added_tokens[0], id: 7, content: '<tool>', special: false });
  const [own] = Object.entries(file.model.vocab).find(([, id]) => id === 7)!;
  delete file.model.vocab[own];
  file.model.vocab['<tool>'] = 7;
  file.model.merges = [];
  writeFileSync(path, JSON.stringify(file));
  exportTo(at('added.gguf'), importFrom(at('added'), 'x').files, 'x', 'f32');
  const { added } = loadTokenizer(
    new TextDecoder().decode(importFrom(at('added.gguf'), 'x').files.get('tokenizer.json')!),
  );
  expect(added.get('<tool>')).toEqual({ id: 7, special: false });
  expect(added.get('<|user|>')).toEqual({ id: 3, special: true });
});

test.each<[GgufType, number]>([
  ['f32', 0],
  ['f16', 2 ** -11],
  ['q8_0', 1 / 254 + 2 ** -10],
])('a .gguf file in %s comes back as the same policy', (type, off) => {
  const path = at(`${type}.gguf`);
  exportTo(path, files, 'seed', type);
  const back = importFrom(path, 'seed');
  for (const name of ['config.json', 'tokenizer_config.json', 'generation_config.json'])
    expect(JSON.parse(Buffer.from(back.files.get(name)!).toString())).toMatchObject(
      name === 'config.json' ? manifest.config : {},
    );
  expect(back.manifest.tokenizer).toEqual(manifest.tokenizer);
  const { metadata } = readGguf(readFileSync(path));
  expect(metadata.get('tokenizer.ggml.add_bos_token')).toBe(false); // the template says what a prompt begins with
  expect([metadata.get('general.name'), metadata.get('general.file_type')]).toEqual(['seed', GGUF_TYPES[type][1]]);
  for (const [name, { shape, data }] of weightsIn(path)) {
    const given = weights.get(name)!;
    expect(shape).toEqual(given.shape);
    const width = shape.length > 1 ? 32 : 1;
    for (let block = 0; block < data.length; block += width) {
      const most = Math.max(...given.data.subarray(block, block + width).map(Math.abs));
      for (let i = block; i < block + width; i++)
        if (!(Math.abs(data[i]! - given.data[i]!) <= (width > 1 ? off : 0) * most + 1e-7))
          throw new Error(`${name}[${i}] is ${data[i]}, not ${given.data[i]}`);
    }
  }
});

test('norms of a .gguf file stay float32 in what is kept of it, whatever its matrices are', () => {
  const path = join(tinyFolder(at('norms')), 'model.safetensors');
  const tensors = new Map(readTensors(readFileSync(path)));
  const norm = { shape: tensors.get('model.norm.weight')!.shape, data: tensors.get('model.norm.weight')!.data.slice() };
  norm.data.fill(1 + 2 ** -20);
  writeFileSync(path, writeSafetensors(tensors.set('model.norm.weight', norm), 'F32'));
  exportTo(at('norms.gguf'), importFrom(at('norms'), 'x').files, 'x', 'f16');
  const kept = readSafetensors(Buffer.from(importFrom(at('norms.gguf'), 'x').files.get('model.safetensors')!));
  expect(kept.get('model.embed_tokens.weight')!.dtype).toBe('F16');
  expect(floats(kept.get('model.norm.weight')!)).toEqual(norm.data);
});

test('numbers are rounded to the bits that llama.cpp’s own package rounds them to', () => {
  const { format, shape, bytes } = readGguf(readFileSync('test/golden/blocks.gguf')).tensors.get('as.F32')!;
  const tensor: FloatTensor = { shape, data: format.read(bytes) };
  const expected = JSON.parse(readFileSync('test/golden/quantised.json', 'utf8')) as Record<GgufType, string>;
  for (const type of Object.keys(GGUF_TYPES) as GgufType[]) {
    const written = readGguf(writeGguf({}, new Map([['x', tensor]]), type)).tensors.get('x')!;
    expect(createHash('sha256').update(written.bytes).digest('hex'), type).toBe(expected[type]);
  }
  const ties = { shape: [1, 32], data: new Float32Array(32).fill(127).fill(-2.5, 1, 2).fill(2.5, 2, 3) };
  const inBytes = readGguf(writeGguf({}, new Map([['x', ties]]), 'q8_0')).tensors.get('x')!;
  expect([...inBytes.format.read(inBytes.bytes).slice(0, 4)]).toEqual([127, -3, 3, 127]);
  const row = { shape: [1, 48], data: new Float32Array(48).fill(0.1) };
  expect(readGguf(writeGguf({}, new Map([['x', row]]), 'q8_0')).tensors.get('x')!.format.name).toBe('F16');
});

test('a folder that cannot be written whole leaves nothing in the way of the next try', () => {
  const unwritable = new Map([...files, ['no-such-folder/file', new Uint8Array(1)]]);
  expect(() => exportTo(at('half'), unwritable, 'seed', 'f16')).toThrow('ENOENT');
  requireWritable(at('half'));
  expect(existsSync(at('half'))).toBe(false);
  mkdirSync(at('own'));
  expect(() => exportTo(at('own'), unwritable, 'seed', 'f16')).toThrow('ENOENT');
  requireWritable(at('own'));
  expect(readdirSync(at('own'))).toEqual([]);
});

test('what a file cannot hold is refused in a line, and nothing is written over', () => {
  const large = new Map(weights).set('model.embed_tokens.weight', {
    ...weights.get('model.embed_tokens.weight')!,
    data: weights.get('model.embed_tokens.weight')!.data.map((x, i) => (i === 5 ? 1e5 : x)),
  });
  const grown = new Map(files).set('model.safetensors', writeSafetensors(large, 'F32'));
  expect(() => exportTo(at('large.gguf'), grown, 'x', 'f16')).toThrow(/token_embd.* half precision .*--type f32/);
  const file = JSON.parse(Buffer.from(files.get('tokenizer.json')!).toString());
  file.pre_tokenizer = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: true };
  const other = new Map(files).set('tokenizer.json', new TextEncoder().encode(JSON.stringify(file)));
  expect(() => exportTo(at('other.gguf'), other, 'x', 'f16')).toThrow(/has no name for .*export to a folder/);

  mkdirSync(at('empty'));
  for (const free of ['empty', 'new', 'new.gguf']) expect(() => requireWritable(at(free))).not.toThrow();
  writeFileSync(at('taken.gguf'), '');
  writeFileSync(at('a file'), '');
  for (const taken of ['hf', 'taken.gguf', 'a file'])
    expect(() => requireWritable(at(taken))).toThrow(/is there already: nothing is written over/);
  expect(() => requireWritable(at('missing/x.gguf'))).toThrow(/there is no folder .*missing: make it first/);
  expect(() => requireWritable(at('new'), 'q8_0')).toThrow(/--type q8_0 is of .gguf files/);
  expect(() => requireWritable(at('new.gguf'), 'q8_0')).not.toThrow();
});
