// A policy as llama.cpp's file (GGUF, version 3; ../import/gguf.ts draws it): configuration, tokenizer and chat template as metadata, matrices
// in single or half precision or in blocks of 8 bits, norms in single precision.
//
// Left out: tokenizers that cut text in a way that llama.cpp has no name for.

import type { ModelConfig } from '../../schema/manifest.ts';
import { type FloatTensor, narrow } from '../../schema/safetensors.ts';
import { CONTROL, halves, LAYER_TENSORS, OTHER_TENSORS, PRE_TOKENIZERS, USER_DEFINED } from '../import/from-gguf.ts';
import type { GgufValue } from '../import/gguf.ts';
import type { Policy } from '../policy.ts';
import { UserError } from '../user-error.ts';

/** What matrices are written in, with llama.cpp's numbers of a tensor's type and of a file's. */
export const GGUF_TYPES = { f32: [0, 0], f16: [1, 1], q8_0: [8, 7] } as const;
export type GgufType = keyof typeof GGUF_TYPES;

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array | Uint16Array) =>
  new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);

function inHalf(name: string, data: Float32Array): Uint8Array {
  if (data.some((x) => Math.abs(x) >= 65_520))
    throw new UserError(`${name} has numbers that half precision does not hold: write it with --type f32`);
  return bytesOf(narrow(data, 'F16'));
}

/** Blocks of 32 numbers: a scale in half precision, then each number's share of it in 8 bits, as llama.cpp's quantize_row_q8_0 rounds. */
function eightBits(data: Float32Array): Uint8Array {
  const count = data.length / 32;
  const out = new Uint8Array(count * 34);
  const scales = new Float32Array(count);
  for (let b = 0; b < count; b++) {
    let most = 0;
    for (let i = 0; i < 32; i++) most = Math.max(most, Math.abs(data[32 * b + i]!));
    const scale = Math.fround(most / 127);
    const inverse = scale > 0 ? Math.fround(1 / scale) : 0;
    scales[b] = scale;
    for (let i = 0; i < 32; i++) {
      const x = Math.fround(data[32 * b + i]! * inverse);
      out[34 * b + 2 + i] = Math.sign(x) * Math.floor(Math.abs(x) + 0.5); // half away from zero
    }
  }
  const narrowed = narrow(scales, 'F16');
  for (let b = 0; b < count; b++) {
    out[34 * b] = narrowed[b]! & 255;
    out[34 * b + 1] = narrowed[b]! >> 8;
  }
  return out;
}

/** In the type that is asked for; single numbers a row (norms) and rows that are no whole blocks go in a more exact one. */
function encoded(name: string, { shape, data }: FloatTensor, type: GgufType): { type: number; bytes: Uint8Array } {
  const exact: GgufType = shape.length < 2 ? 'f32' : type === 'q8_0' && shape.at(-1)! % 32 > 0 ? 'f16' : type;
  const bytes = exact === 'f32' ? bytesOf(data) : exact === 'f16' ? inHalf(name, data) : eightBits(data);
  return { type: GGUF_TYPES[exact][0], bytes };
}

/** Keys of numbers that may be whole and are none the less no whole numbers to llama.cpp. */
const FLOATS = /\.(rope\.freq_base|attention\.layer_norm_rms_epsilon)$/;
/** GGUF's numbers of its types of values. */
const VALUE = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;
const ALIGNMENT = 32;
const aligned = (n: number) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;

/** The file of some metadata (a whole number is u32, a list of numbers i32) and of tensors, rows first. */
export function writeGguf(
  metadata: Record<string, GgufValue>,
  tensors: Map<string, FloatTensor>,
  type: GgufType = 'f32',
): Uint8Array {
  const parts: Uint8Array[] = [];
  let length = 0;
  const put = (bytes: Uint8Array) => {
    parts.push(bytes);
    length += bytes.length;
  };
  const u32 = (value: number) => put(new Uint8Array(Uint32Array.of(value).buffer));
  const u64 = (value: number) => put(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  const text = (value: string) => {
    const bytes = new TextEncoder().encode(value);
    u64(bytes.length);
    put(bytes);
  };
  const typed = (key: string, value: GgufValue) => {
    if (Array.isArray(value)) {
      const texts = typeof value[0] === 'string';
      u32(VALUE.array);
      u32(texts ? VALUE.string : VALUE.i32);
      u64(value.length);
      if (texts) for (const item of value) text(item as string);
      else put(new Uint8Array(Int32Array.from(value as number[]).buffer));
    } else if (typeof value === 'string') {
      u32(VALUE.string);
      text(value);
    } else if (typeof value === 'boolean') {
      u32(VALUE.bool);
      put(Uint8Array.of(Number(value)));
    } else if (FLOATS.test(key) || !Number.isInteger(value)) {
      u32(VALUE.f32);
      put(new Uint8Array(Float32Array.of(value).buffer));
    } else {
      u32(VALUE.u32);
      u32(value);
    }
  };

  put(new TextEncoder().encode('GGUF'));
  u32(3);
  u64(tensors.size);
  u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    text(key);
    typed(key, value);
  }
  const data: Uint8Array[] = [];
  let place = 0;
  for (const [name, tensor] of tensors) {
    const { type: own, bytes } = encoded(name, tensor, type);
    text(name);
    u32(tensor.shape.length);
    for (const n of tensor.shape.toReversed()) u64(n);
    u32(own);
    u64(place);
    data.push(bytes);
    place += aligned(bytes.length);
  }
  for (const bytes of data) {
    put(new Uint8Array(aligned(length) - length));
    put(bytes);
  }
  put(new Uint8Array(aligned(length) - length));
  return new Uint8Array(Buffer.concat(parts));
}

const UNUSED = 5;

/** What the metadata of a policy's file says; its keys are llama.cpp's. */
export function ggufMetadata({ config, tokenizer, chatTemplate }: Policy, name: string): Record<string, GgufValue> {
  const { model, pre_tokenizer, normalizer } = tokenizer.file;
  const whole = (model as { ignore_merges?: boolean }).ignore_merges ?? false;
  const pre = Object.entries(PRE_TOKENIZERS).find(
    ([, known]) =>
      JSON.stringify(known.cut) === JSON.stringify(pre_tokenizer) &&
      JSON.stringify(known.normalizer ?? null) === JSON.stringify(normalizer ?? null) &&
      (known.whole ?? false) === whole,
  );
  if (!pre)
    throw new UserError(
      `the tokenizer cuts text in a way that a .gguf file has no name for (known: ${Object.keys(PRE_TOKENIZERS).join(', ')}): export to a folder`,
    );
  const { vocab, merges } = model as unknown as { vocab: Record<string, number>; merges: (string | string[])[] };
  // Rows of the embedding that no token has are named as llama.cpp's converter names them.
  const tokens = Array.from({ length: config.vocab_size }, (_, id) => `[PAD${id}]`);
  const types = tokens.map(() => UNUSED);
  for (const [token, id] of Object.entries(vocab)) [tokens[id], types[id]] = [token, 1];
  for (const [token, { id, special }] of tokenizer.added)
    [tokens[id], types[id]] = [token, special ? CONTROL : USER_DEFINED];
  return {
    'general.architecture': config.model_type,
    'general.name': name,
    ...shapeOf(config),
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre[0],
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': types,
    'tokenizer.ggml.merges': merges.map((pair) => (typeof pair === 'string' ? pair : pair.join(' '))),
    ...(config.bos_token_id === null ? {} : { 'tokenizer.ggml.bos_token_id': config.bos_token_id }),
    'tokenizer.ggml.eos_token_id': config.eos_token_id,
    'tokenizer.ggml.padding_token_id': config.pad_token_id,
    'tokenizer.ggml.add_bos_token': false, // a prompt has what its template says
    'tokenizer.chat_template': chatTemplate,
  };
}

const shapeOf = (config: ModelConfig): Record<string, GgufValue> =>
  Object.fromEntries(Object.entries(sizesOf(config)).map(([name, value]) => [`${config.model_type}.${name}`, value]));
const sizesOf = (config: ModelConfig): Record<string, GgufValue> => ({
  block_count: config.num_hidden_layers,
  context_length: config.max_position_embeddings,
  embedding_length: config.hidden_size,
  feed_forward_length: config.intermediate_size,
  'attention.head_count': config.num_attention_heads,
  'attention.head_count_kv': config.num_key_value_heads,
  'rope.dimension_count': config.head_dim,
  'attention.key_length': config.head_dim,
  'attention.value_length': config.head_dim,
  'rope.freq_base': config.rope_theta,
  'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
  vocab_size: config.vocab_size,
});

/** GGUF's names by Hugging Face's. */
const NAMES = new Map(Object.entries({ ...LAYER_TENSORS, ...OTHER_TENSORS }).map(([gguf, name]) => [name, gguf]));

/** A model's tensors under GGUF's names; a Llama's queries and keys with the dimensions that RoPE turns together side by side. */
export function ggufTensors(
  { model_type, head_dim }: ModelConfig,
  tensors: Map<string, FloatTensor>,
): Map<string, FloatTensor> {
  const out = new Map<string, FloatTensor>();
  for (const [name, tensor] of tensors) {
    const [, layer, kind, part] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
    const to = kind ? `blk.${layer}.${NAMES.get(kind)}.${part}` : NAMES.get(name)!;
    const turned = model_type === 'llama' && /[qk]_proj$/.test(kind ?? '');
    out.set(to, turned ? { ...tensor, data: halves(tensor.data, head_dim, tensor.shape[1]!, 'together') } : tensor);
  }
  return out;
}
