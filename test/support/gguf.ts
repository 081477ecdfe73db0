// GGUF files for tests, in single precision.
import { ModelConfig } from '../../schema/manifest.ts';
import type { FloatTensor } from '../../schema/safetensors.ts';
import type { GgufValue } from '../../trainer/import/gguf.ts';
import type { Policy } from '../../trainer/policy.ts';

/** Bytes one after the other. */
class Bytes {
  readonly #parts: Uint8Array[] = [];
  length = 0;
  put(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.length += bytes.length;
  }
  u32(value: number): void {
    this.put(new Uint8Array(Uint32Array.of(value).buffer));
  }
  u64(value: number): void {
    this.put(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }
  text(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.put(bytes);
  }
  whole(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
}

const typeOf = (value: GgufValue) =>
  typeof value === 'string'
    ? 8
    : typeof value === 'boolean'
      ? 7
      : Array.isArray(value)
        ? 9
        : Number.isInteger(value)
          ? 4
          : 6;

function putValue(to: Bytes, value: GgufValue): void {
  if (typeof value === 'string') to.text(value);
  else if (typeof value === 'boolean') to.put(Uint8Array.of(Number(value)));
  else if (Array.isArray(value)) {
    to.u32(typeOf(value[0] ?? 0));
    to.u64(value.length);
    for (const item of value) putValue(to, item);
  } else if (Number.isInteger(value)) to.u32(value);
  else to.put(new Uint8Array(Float32Array.of(value).buffer));
}

export function writeGguf(metadata: Record<string, GgufValue>, tensors: Map<string, FloatTensor>): Uint8Array {
  const out = new Bytes();
  out.put(new TextEncoder().encode('GGUF'));
  out.u32(3);
  out.u64(tensors.size);
  out.u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    out.text(key);
    out.u32(typeOf(value));
    putValue(out, value);
  }
  const align = (n: number) => Math.ceil(n / 32) * 32;
  let at = 0;
  for (const [name, { shape, data }] of tensors) {
    out.text(name);
    out.u32(shape.length);
    for (const n of shape.toReversed()) out.u64(n);
    out.u32(0);
    out.u64(at);
    at = align(at + data.byteLength);
  }
  for (const { data } of tensors.values()) {
    out.put(new Uint8Array(align(out.length) - out.length));
    out.put(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return out.whole();
}

/** What the metadata of a policy's GGUF file says, its tokenizer cutting text as SmolLM2's does. */
export function ggufMetadata({ config, tokenizer, chatTemplate }: Policy): Record<string, GgufValue> {
  const c = ModelConfig.parse(config);
  const { vocab, merges } = tokenizer.file.model as unknown as {
    vocab: Record<string, number>;
    merges: [string, string][];
  };
  const tokens = Object.entries(vocab)
    .sort(([, a], [, b]) => a - b)
    .map(([token]) => token);
  return {
    'general.architecture': 'llama',
    'llama.block_count': c.num_hidden_layers,
    'llama.context_length': c.max_position_embeddings,
    'llama.embedding_length': c.hidden_size,
    'llama.feed_forward_length': c.intermediate_size,
    'llama.attention.head_count': c.num_attention_heads,
    'llama.attention.head_count_kv': c.num_key_value_heads,
    'llama.rope.dimension_count': c.head_dim,
    'llama.rope.freq_base': c.rope_theta,
    'llama.attention.layer_norm_rms_epsilon': c.rms_norm_eps,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'smollm',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': tokens.map((token) => (tokenizer.added.has(token) ? 3 : 1)),
    'tokenizer.ggml.merges': merges.map((pair) => pair.join(' ')),
    'tokenizer.ggml.eos_token_id': c.eos_token_id,
    'tokenizer.ggml.padding_token_id': c.pad_token_id,
    'tokenizer.chat_template': chatTemplate,
  };
}

const NAMES: [RegExp, string][] = [
  [/^model\.layers\.(\d+)\.input_layernorm\./, 'blk.$1.attn_norm.'],
  [/^model\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\./, 'blk.$1.attn_$2.'],
  [/^model\.layers\.(\d+)\.self_attn\.o_proj\./, 'blk.$1.attn_output.'],
  [/^model\.layers\.(\d+)\.post_attention_layernorm\./, 'blk.$1.ffn_norm.'],
  [/^model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\./, 'blk.$1.ffn_$2.'],
  [/^model\.embed_tokens\./, 'token_embd.'],
  [/^model\.norm\./, 'output_norm.'],
  [/^lm_head\./, 'output.'],
];

/** A model's tensors under GGUF's names, queries and keys with the dimensions that RoPE turns together side by side. */
export function ggufTensors(headDim: number, tensors: Map<string, FloatTensor>): Map<string, FloatTensor> {
  const out = new Map<string, FloatTensor>();
  for (const [name, { shape, data }] of tensors) {
    const [pattern, to] = NAMES.find(([from]) => from.test(name))!;
    let rows = data;
    if (/[qk]_proj/.test(name)) {
      const D = shape[1]!;
      rows = new Float32Array(data.length);
      for (let row = 0; row < shape[0]!; row++) {
        const inHead = row % headDim;
        const half = Math.floor((2 * inHead) / headDim);
        const target = row - inHead + 2 * (inHead - (half * headDim) / 2) + half;
        rows.set(data.subarray(row * D, (row + 1) * D), target * D);
      }
    }
    out.set(name.replace(pattern, to), { shape, data: rows });
  }
  return out;
}
