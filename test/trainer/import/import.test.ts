import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { type Dtype, readSafetensors, readTensors, writeSafetensors } from '../../../schema/safetensors.ts';
import { weightFiles } from '../../../trainer/import/from-folder.ts';
import { importFrom } from '../../../trainer/import/import.ts';
import { UserError } from '../../../trainer/user-error.ts';
import { SEED_FOLDER } from '../../support/seed.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-import-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The seed policy with one file changed. */
function changed(file: string, change: (bytes: Buffer<ArrayBuffer>) => string | Uint8Array): string {
  const to = mkdtempSync(join(folder, 'policy-'));
  cpSync(SEED_FOLDER, to, { recursive: true });
  writeFileSync(join(to, file), change(readFileSync(join(SEED_FOLDER, file))));
  return to;
}
const field = (file: string, name: string, value: unknown) =>
  changed(file, (bytes) => JSON.stringify({ ...JSON.parse(`${bytes}`), [name]: value }));
const config = (name: string, value: unknown) => field('config.json', name, value);

test('a folder is imported with its files as they are, and an image', () => {
  const { manifest, files } = importFrom(SEED_FOLDER, 'twin');
  expect(manifest.name).toBe('twin');
  expect(manifest.root).toBe(manifest.id);
  expect(files.get('model.safetensors')).toEqual(readFileSync(join(SEED_FOLDER, 'model.safetensors')));
  expect(manifest.files.map(({ name }) => name)).toContain('edge.bin');
});

test('what Hugging Face leaves out of a configuration, or says since transformers 5 in another place, is understood', () => {
  const terse = changed('config.json', (bytes) => {
    const { rope_theta, head_dim, num_key_value_heads, tie_word_embeddings, pad_token_id, bos_token_id, ...rest } =
      JSON.parse(`${bytes}`);
    expect([tie_word_embeddings, bos_token_id]).toEqual([true, null]);
    return JSON.stringify({
      ...rest,
      tie_word_embeddings,
      eos_token_id: [3, rest.eos_token_id],
      rope_parameters: { rope_theta, rope_type: 'default' },
    });
  });
  expect(importFrom(terse, 'x').manifest.config).toEqual(importFrom(SEED_FOLDER, 'x').manifest.config);
});

/** The seed policy with its weights in two files, and what its index says. */
function sharded(
  change: (map: Record<string, string>) => Record<string, string> = (map) => map,
  dtypes: Dtype[] = ['BF16', 'BF16'],
): string {
  const to = mkdtempSync(join(folder, 'policy-'));
  cpSync(SEED_FOLDER, to, { recursive: true });
  const all = [...readTensors(readFileSync(join(to, 'model.safetensors')))];
  rmSync(join(to, 'model.safetensors'));
  const weight_map: Record<string, string> = {};
  for (const [i, part] of [all.slice(0, 7), all.slice(7)].entries()) {
    const name = `model-0000${i + 1}-of-00002.safetensors`;
    writeFileSync(join(to, name), writeSafetensors(new Map(part), dtypes[i]!));
    for (const [tensor] of part) weight_map[tensor] = name;
  }
  const index = { metadata: { total_size: 1 }, weight_map: change(weight_map) };
  writeFileSync(join(to, 'model.safetensors.index.json'), JSON.stringify(index));
  return to;
}

test('weights in several files are those of one', () => {
  const whole = importFrom(SEED_FOLDER, 'x').files;
  const { files } = importFrom(sharded(), 'x');
  expect(files.get('edge.bin')).toEqual(whole.get('edge.bin'));
  const stored = (file: Uint8Array) => [...readSafetensors(new Uint8Array(file))].sort(([a], [b]) => (a < b ? -1 : 1));
  expect(stored(files.get('model.safetensors')!)).toEqual(stored(whole.get('model.safetensors')!));
  expect(weightFiles(sharded()).map((file) => basename(file))).toEqual([
    'model-00001-of-00002.safetensors',
    'model-00002-of-00002.safetensors',
  ]);
});

test('where all weights are in one file, an index of others beside it is let be', () => {
  const to = mkdtempSync(join(folder, 'policy-'));
  cpSync(SEED_FOLDER, to, { recursive: true });
  writeFileSync(join(to, 'model.safetensors.index.json'), JSON.stringify({ weight_map: { x: 'gone.safetensors' } }));
  expect(weightFiles(to).map((file) => basename(file))).toEqual(['model.safetensors']);
});

test('weights in several types are put together in one that loses nothing', () => {
  const { files } = importFrom(
    sharded((map) => map, ['BF16', 'F32']),
    'x',
  );
  const stored = readSafetensors(new Uint8Array(files.get('model.safetensors')!));
  expect(new Set([...stored.values()].map(({ dtype }) => dtype))).toEqual(new Set(['F32']));
});

test('a folder as transformers 5 saves it, the template in a file of its own, is the same policy', () => {
  const { manifest } = importFrom(SEED_FOLDER, 'x');
  const { chat_template } = manifest.tokenizer;
  const nothing = { type: 'TemplateProcessing', single: [{ Sequence: { id: 'A', type_id: 0 } }], special_tokens: {} };
  const saved = field('tokenizer_config.json', 'chat_template', undefined);
  writeFileSync(join(saved, 'chat_template.jinja'), chat_template);
  cpSync(join(field('tokenizer.json', 'post_processor', nothing), 'tokenizer.json'), join(saved, 'tokenizer.json'));
  const again = importFrom(saved, 'x');
  expect(again.manifest.tokenizer.chat_template).toBe(chat_template);
  const config = JSON.parse(new TextDecoder().decode(again.files.get('tokenizer_config.json')));
  expect(config.chat_template).toBe(chat_template); // so that what is exported has it

  const templates = [
    { name: 'tools', template: 'no' },
    { name: 'default', template: chat_template },
  ];
  const several = field('tokenizer_config.json', 'chat_template', templates);
  expect(importFrom(several, 'x').manifest.tokenizer.chat_template).toBe(chat_template);

  const begins = { ...nothing, single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, ...nothing.single] };
  expect(() => importFrom(field('tokenizer.json', 'post_processor', begins), 'x')).toThrow(
    /post_processor TemplateProcessing is not supported/,
  );
});

test('several files that are not what their index says are refused by name', () => {
  const refused = (change: (map: Record<string, string>) => Record<string, string>) =>
    expect(() => importFrom(sharded(change), 'x'));
  refused((map) => ({ ...map, 'model.norm.weight': 'other.safetensors' })).toThrow(
    /has no other\.safetensors, which its/,
  );
  refused((map) => ({ ...map, 'model.more.weight': map['model.norm.weight']! })).toThrow(
    /has no model\.more\.weight, which/,
  );
  for (const way of ['../model.safetensors', '/etc/x.safetensors', 'sub/x.safetensors', '.safetensors'])
    refused((map) => ({ ...map, x: way })).toThrow(/is no name of a \.safetensors file/);
  refused(({ 'model.norm.weight': _, ...map }) => map).toThrow(/there is no model\.norm\.weight/);
});

test('a Mistral that can look back on all it may be asked is a Llama', () => {
  const mistral = (more: object) =>
    changed('config.json', (bytes) =>
      JSON.stringify({
        ...JSON.parse(`${bytes}`),
        architectures: ['MistralForCausalLM'],
        model_type: 'mistral',
        ...more,
      }),
    );
  const { config } = importFrom(SEED_FOLDER, 'x').manifest;
  const imported = (more: object) => importFrom(mistral(more), 'x').manifest.config;
  for (const sliding_window of [undefined, null, config.max_position_embeddings])
    expect(imported({ sliding_window })).toEqual(config);
  const short = { sliding_window: config.max_position_embeddings - 1 };
  expect(() => imported(short)).toThrow(/sliding_window of \d+ is not supported; lower max_position_embeddings/);
  expect(() => imported({ model_type: 'mixtral' })).toThrow(/architectures|model_type/);
});

test('a folder may be called like a GGUF file', () => {
  const to = join(mkdtempSync(join(folder, 'policy-')), 'x.gguf');
  cpSync(SEED_FOLDER, to, { recursive: true });
  expect(importFrom(to, 'x').manifest.files).toEqual(importFrom(SEED_FOLDER, 'x').manifest.files);
});

const notANumber = (bytes: Buffer<ArrayBuffer>) => {
  const { bytes: norm } = readSafetensors(bytes).get('model.norm.weight')!;
  norm.fill(0xff);
  return bytes;
};
test.each<[string, () => string, RegExp]>([
  ['weights that end too soon', () => changed('model.safetensors', (bytes) => bytes.subarray(0, 1e6)), /outside of/],
  ['no weights', () => changed('model.safetensors', () => ''), /model\.safetensors: .*shorter/],
  ['a number that is none', () => changed('model.safetensors', notANumber), /: model\.norm\.weight .* not finite/],
  ['a configuration that is not JSON', () => changed('config.json', () => '{'), /config\.json is not JSON/],
  [
    'another architecture',
    () => changed('config.json', (b) => `${b}`.replace('LlamaForCausalLM', 'GPT2LMHeadModel')),
    /"GPT2LMHeadModel" is not supported; one of LlamaForCausalLM, Mistral/,
  ],
  ['a matrix of another shape', () => config('intermediate_size', 256), /\[512,192\].*\[256,192\]/],
  ['heads that the decoder does not have', () => config('head_dim', 32), /: a head_dim of 32 is not supported/],
  ['fewer ids than the tokenizer has', () => config('vocab_size', 512), /ids up to 1023.*vocab_size of 512/],
  ['an end of text beyond the vocabulary', () => config('eos_token_id', 5000), /eos_token_id is 5000/],
  ['no architecture', () => config('architectures', undefined), /architectures: undefined is not supported; one of/],
  ['quantised weights', () => config('quantization_config', { bits: 4 }), /quantised weights are not supported/],
  ['layers without number', () => config('num_hidden_layers', 1e9), /num_hidden_layers: Too big/],
  ['scaled RoPE', () => changed('config.json', (b) => `${b}`.replace('{', '{"rope_scaling": {"factor": 2},')), /RoPE/],
  [
    'scaled RoPE as transformers 5 writes it',
    () =>
      changed('config.json', (b) => `${b}`.replace('{', '{"rope_parameters": {"rope_type": "linear", "factor": 4},')),
    /rope_parameters: scaled RoPE is not supported/,
  ],
  ['no tokenizer', () => changed('tokenizer.json', () => '{}'), /tokenizer\.json: version/],
  [
    'a tokenizer with two vocabularies, which a Worker would refuse',
    () => changed('tokenizer.json', (b) => `${b}`.replace('"vocab": {', '"vocab": {"zz": 1}, "vocab": {')),
    /tokenizer\.json: model\.vocab is there twice/,
  ],
  [
    'a tokenizer that is nested without end',
    () =>
      changed('tokenizer.json', (b) =>
        `${b}`.replace('"pre_tokenizer": {', `"x": ${'['.repeat(20_000)}${']'.repeat(20_000)}, "pre_tokenizer": {`),
      ),
    /tokenizer\.json: is nested more than 100 deep/,
  ],
  ['a generation configuration that is not JSON', () => changed('generation_config.json', () => '{'), /n is not JSON/],
  [
    'one of other types',
    () => changed('generation_config.json', () => '{"eos_token_id": "</s>"}'),
    /g\.json: eos_token/,
  ],
  ['a template that is none', () => changed('tokenizer_config.json', () => '{"chat_template": "{% for"}'), /template/],
])('%s is refused in a line that names the folder', (_, make, words) => {
  const path = make();
  const refused = () => importFrom(path, 'x');
  expect(refused).toThrow(UserError);
  expect(refused).toThrow(words);
  expect(refused).toThrow(path);
  expect(refused).not.toThrow(/\n|another server/);
});

test.each(['model.safetensors', 'model.gguf'])('of a file of more than 2 GiB (%s) a line says so', (name) => {
  const path = changed('config.json', (bytes) => `${bytes}`);
  const file = join(path, name);
  writeFileSync(file, '');
  truncateSync(file, 3 * 2 ** 30); // of zeros that take no place
  const refused = () => importFrom(name.endsWith('.gguf') ? file : path, 'x');
  expect(refused).toThrow(UserError);
  expect(refused).toThrow(`${file} is larger than the 2 GiB that are read of one file`);
});

test('a long context is no fault: the cache is of as many positions as it has room for', () => {
  expect(importFrom(config('max_position_embeddings', 131_072), 'x').manifest.config.max_position_embeddings).toBe(
    131_072,
  );
});

test('what cannot be served is refused by its config, before its weights are read, with the arithmetic and the way out', () => {
  const shape = (changes: object) =>
    changed('config.json', (bytes) => JSON.stringify({ ...JSON.parse(`${bytes}`), ...changes }));
  const large = shape({ hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 22 });
  const small = shape({ hidden_size: 32, intermediate_size: 32, num_hidden_layers: 90 });
  for (const [path, why] of [
    [large, /its 4-bit image of \d{3}\.\d MB, .* make \d{3}\.\d MB, and a Worker has 128\.0 MB/],
    [small, /512 positions need a cache of \d+\.\d MB, and 33\.6 MB are for it/],
  ] as const) {
    rmSync(join(path, 'model.safetensors'));
    const refused = () => importFrom(path, 'x');
    expect(refused).toThrow(UserError);
    expect(refused).toThrow(`${path} is too large to be served in a Worker: `);
    expect(refused).toThrow(why);
    expect(refused).toThrow('plumb import https://');
  }
});
