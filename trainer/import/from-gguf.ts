// A policy out of a GGUF file: Hugging Face's files (configuration, tokenizer, chat template, generation settings) from its
// metadata, and its weights in float32 under Hugging Face's names. What the file asks for and the model code does not do is
// refused by name.
//
// Left out: architectures but llama, qwen2 and qwen3; tokenizers but byte-level BPE (SentencePiece, WordPiece).

import { existsSync, readFileSync, statSync } from 'node:fs';
import { MalformedFile } from '../../schema/malformed.ts';
import type { Dtype, FloatTensor } from '../../schema/safetensors.ts';
import { byteLevelFile } from '../../schema/tokenizer.ts';
import { reading, UserError } from '../user-error.ts';
import { type Gguf, type GgufTensor, type GgufValue, readGguf } from './gguf.ts';

/** Whether a policy is one GGUF file and not a folder; a folder may be called so, too. */
export const isGguf = (path: string): boolean =>
  path.endsWith('.gguf') && !statSync(path, { throwIfNoEntry: false })?.isDirectory();

export function openGguf(path: string): Gguf {
  if (!existsSync(path)) throw new UserError(`there is no file ${path}`);
  if (!statSync(path).isFile()) throw new UserError(`${path} is no regular file, whose end can be known`);
  return reading(path, () => readGguf(readFileSync(path)));
}

const fail = (what: string): never => {
  throw new MalformedFile(`GGUF: ${what}`);
};

/** Reads metadata by type; what is missing or another type is said with its key. */
function reader({ metadata }: Gguf) {
  const get = <T extends GgufValue>(
    key: string,
    is: (value: GgufValue) => value is T,
    what: string,
    otherwise?: T,
  ): T => {
    const value = metadata.get(key);
    if (value === undefined) return otherwise ?? fail(`has no ${key}`);
    return is(value) ? value : fail(`${key} is not ${what}`);
  };
  const isNumber = (value: GgufValue): value is number => typeof value === 'number' && Number.isFinite(value);
  const isText = (value: GgufValue): value is string => typeof value === 'string';
  const isTexts = (value: GgufValue): value is string[] => Array.isArray(value) && value.every(isText);
  const isNumbers = (value: GgufValue): value is number[] => Array.isArray(value) && value.every(isNumber);
  return {
    number: (key: string, otherwise?: number) => get(key, isNumber, 'a finite number', otherwise),
    text: (key: string, otherwise?: string) => get(key, isText, 'a text', otherwise),
    texts: (key: string) => get(key, isTexts, 'a list of texts'),
    numbers: (key: string, otherwise?: number[]) => get(key, isNumbers, 'a list of numbers', otherwise),
  };
}

/** Metadata has single precision; a configuration says 1e-5, not 9.999999747378752e-6. */
const short = (value: number) => Number(value.toPrecision(7));

/** Whether the output matrix is the embedding: such files have no matrix of its own. */
const isTied = ({ tensors }: Gguf) => !tensors.has('output.weight');

/** What Hugging Face calls an architecture of GGUF's. */
const ARCHITECTURES = { llama: 'LlamaForCausalLM', qwen2: 'Qwen2ForCausalLM', qwen3: 'Qwen3ForCausalLM' } as const;

function config(gguf: Gguf) {
  const get = reader(gguf);
  const named = get.text('general.architecture');
  const arch = Object.hasOwn(ARCHITECTURES, named) ? (named as keyof typeof ARCHITECTURES) : undefined;
  if (!arch)
    return fail(`a model of the architecture ${named}; supported are ${Object.keys(ARCHITECTURES).join(', ')}`);
  for (const key of gguf.metadata.keys())
    if (
      /^\w+\.(rope\.scaling\.|expert_|attention\.(sliding_window|clamp))/.test(key) &&
      gguf.metadata.get(key) !== 'none' &&
      gguf.metadata.get(key) !== 0
    )
      fail(`${key} is ${gguf.metadata.get(key)}: not supported`);
  const biases = arch === 'qwen2' ? /(?<!attn_[qkv])\.bias$/ : /\.bias$/;
  const unknown = [...gguf.tensors.keys()].filter((name) => biases.test(name) || /^rope_freqs|_exps\./.test(name));
  if (unknown.length > 0) fail(`the tensor ${unknown[0]} is not supported (biases, scaled RoPE and experts are not)`);
  const heads = get.number(`${arch}.attention.head_count`);
  const hidden = get.number(`${arch}.embedding_length`);
  const keyLength = get.number(`${arch}.attention.key_length`, hidden / heads);
  const headDim = get.number(`${arch}.rope.dimension_count`, keyLength);
  if (keyLength !== headDim) fail(`RoPE turns ${headDim} of a head's ${keyLength} dimensions: not supported`);
  const eos = get.number('tokenizer.ggml.eos_token_id');
  return {
    architectures: [ARCHITECTURES[arch]],
    model_type: arch,
    vocab_size: gguf.tensors.get('token_embd.weight')?.shape[0] ?? fail('has no token_embd.weight'),
    hidden_size: hidden,
    intermediate_size: get.number(`${arch}.feed_forward_length`),
    num_hidden_layers: get.number(`${arch}.block_count`),
    num_attention_heads: heads,
    num_key_value_heads: get.number(`${arch}.attention.head_count_kv`, heads),
    head_dim: headDim,
    max_position_embeddings: get.number(`${arch}.context_length`),
    rms_norm_eps: short(get.number(`${arch}.attention.layer_norm_rms_epsilon`)),
    rope_theta: short(get.number(`${arch}.rope.freq_base`, 10_000)),
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: isTied(gguf),
    bos_token_id: gguf.metadata.has('tokenizer.ggml.bos_token_id') ? get.number('tokenizer.ggml.bos_token_id') : null,
    eos_token_id: eos,
    pad_token_id: get.number('tokenizer.ggml.padding_token_id', eos),
  };
}

const regex = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});
const byteLevel = (use_regex: boolean) => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex,
});
const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers });
/** What a tokenizer's name (tokenizer.ggml.pre) says of how text is cut before merging, as Hugging Face's files of those models have it. */
export const PRE_TOKENIZERS: Record<string, { cut: object; whole?: true; normalizer?: object }> = {
  'gpt-2': { cut: byteLevel(true) },
  default: { cut: byteLevel(true) },
  smollm: { cut: sequence({ type: 'Digits', individual_digits: true }, byteLevel(true)) },
  'llama-bpe': {
    cut: sequence(
      regex(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
      ),
      byteLevel(false),
    ),
    whole: true,
  },
  qwen2: {
    cut: sequence(
      regex(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
      ),
      byteLevel(false),
    ),
    normalizer: { type: 'NFC' },
  },
};
/** Types of tokens. */
export const CONTROL = 3;
export const USER_DEFINED = 4;

function tokenizer(gguf: Gguf) {
  const get = reader(gguf);
  const model = get.text('tokenizer.ggml.model');
  if (model !== 'gpt2') fail(`a tokenizer of the kind ${model}; supported is gpt2 (byte-level BPE)`);
  const pre = get.text('tokenizer.ggml.pre', 'default');
  const known = Object.hasOwn(PRE_TOKENIZERS, pre) ? PRE_TOKENIZERS[pre] : undefined;
  if (!known) return fail(`the pre-tokenizer ${pre}; supported are ${Object.keys(PRE_TOKENIZERS).join(', ')}`);
  const tokens = get.texts('tokenizer.ggml.tokens');
  const types = get.numbers(
    'tokenizer.ggml.token_type',
    tokens.map(() => 1),
  );
  if (types.length !== tokens.length) fail(`${types.length} types of ${tokens.length} tokens`);
  if (new Set(tokens).size !== tokens.length) fail('the vocabulary has a token twice');
  const added = tokens.flatMap((content, id) =>
    types[id] === CONTROL || types[id] === USER_DEFINED ? [{ id, content, special: types[id] === CONTROL }] : [],
  );
  const file = byteLevelFile(tokens, get.texts('tokenizer.ggml.merges'), added, known.cut);
  file.model.ignore_merges = known.whole ?? false;
  file.normalizer = known.normalizer ?? null;
  return file;
}

/** Hugging Face's files but for the weights, by name. */
export function textsOf(gguf: Gguf): Record<string, string> {
  const get = reader(gguf);
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  const model = config(gguf);
  const { bos_token_id, eos_token_id, pad_token_id } = model;
  const tokens = get.texts('tokenizer.ggml.tokens');
  return {
    'config.json': json(model),
    'tokenizer.json': json(tokenizer(gguf)),
    'tokenizer_config.json': json({
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...(bos_token_id === null ? {} : { bos_token: tokens[bos_token_id] }),
      eos_token: tokens[eos_token_id],
      pad_token: tokens[pad_token_id],
      model_max_length: model.max_position_embeddings,
      chat_template: get.text('tokenizer.chat_template'),
    }),
    'generation_config.json': json({ bos_token_id, eos_token_id, pad_token_id }),
  };
}

export const LAYER_TENSORS: Record<string, string> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};
export const OTHER_TENSORS: Record<string, string> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
};

/** Its weights in float32, under Hugging Face's names. */
export function tensorsOf(gguf: Gguf): Map<string, FloatTensor> {
  const { model_type, num_attention_heads, num_key_value_heads, head_dim } = config(gguf);
  const out = new Map<string, FloatTensor>();
  for (const [name, { shape, format, bytes }] of gguf.tensors) {
    const [, layer, kind, part] = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
    const inLayer = kind && Object.hasOwn(LAYER_TENSORS, kind) ? LAYER_TENSORS[kind] : undefined;
    const target = inLayer ? `model.layers.${layer}.${inLayer}.${part}` : OTHER_TENSORS[name];
    if (!target) return fail(`the tensor ${name} is no part of a ${model_type}`);
    let data = format.read(bytes);
    const heads = { attn_q: num_attention_heads, attn_k: num_key_value_heads }[kind ?? ''];
    if (model_type === 'llama' && heads !== undefined) {
      if (shape[0] !== heads * head_dim) fail(`${name} has ${shape[0]} rows, not ${heads} heads of ${head_dim}`);
      data = halves(data, head_dim, shape[1]!, 'apart');
    }
    out.set(target, { shape, data });
  }
  return out;
}

/**
 * GGUF has the dimensions of a Llama that RoPE turns together side by side, Hugging Face half a head apart: from one order to the other.
 * (heads, hd/2, 2, D) ↔ (heads, 2, hd/2, D)
 */
export function halves(data: Float32Array, hd: number, D: number, go: 'apart' | 'together'): Float32Array {
  const out = new Float32Array(data.length);
  for (let head = 0; head * D < data.length; head += hd)
    for (let i = 0; i < hd / 2; i++)
      for (let half = 0; half < 2; half++) {
        const [together, apart] = [(head + 2 * i + half) * D, (head + half * (hd / 2) + i) * D];
        const [from, to] = go === 'apart' ? [together, apart] : [apart, together];
        out.set(data.subarray(from, from + D), to);
      }
  return out;
}

/**
 * In what its matrices and its vectors are written as safetensors: the file's own type where all are of one that is a float's, else the 16
 * bits that quantised numbers fit into best. Vectors are F32 in most files, whatever matrices are.
 */
export function dtypesOf({ tensors }: Gguf): { matrices: Dtype; vectors: Dtype } {
  const dtypeOf = (of: GgufTensor[]): Dtype => {
    const names = new Set(of.map(({ format }) => format.name));
    if (names.has('F32') || (names.has('BF16') && names.size > 1)) return 'F32'; // neither sixteen bits hold the other's numbers
    return names.has('BF16') ? 'BF16' : 'F16';
  };
  const all = [...tensors.values()];
  return {
    matrices: dtypeOf(all.filter(({ shape }) => shape.length > 1)),
    vectors: dtypeOf(all.filter(({ shape }) => shape.length === 1)),
  };
}
