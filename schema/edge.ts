// edge.bin: a Llama's weights as the decoder maps them into its memory. Matrices are int8 in blocks of 32 columns with a
// float32 scale each; norms are float32. Where everything lies follows from the config alone, and a file that says
// otherwise is refused.
//
//   "PLUMBEDG" · u32 version · u32 length of the header · header (JSON, spaces up to a multiple of 64) · data
//
// A matrix is stored by groups of 8 rows; a group is its blocks from left to right; a block is 288 bytes:
//   8 × f32           the scale of each row
//   8 × 8 × 4 × i8    for each 4 columns, each row's four numbers, so that one load brings 4 rows × 4 columns
// Rows are padded with zeros to a multiple of 8. Queries, keys and values are one matrix, gate and up another. Rows keep
// Hugging Face's order, so RoPE turns the two halves of a head (i and i + 32), not neighbours.
//
// Left out: int4, biases, scaled RoPE, heads of another size than 64.
import { z } from 'zod';
import { inWords, MalformedFile } from './malformed.ts';
import { ModelConfig } from './manifest.ts';
import type { FloatTensor } from './safetensors.ts';

const MAGIC = 'PLUMBEDG';
const VERSION = 1;
const ALIGN = 64;
const BLOCK = 32;
const GROUP = 8;
const BLOCK_BYTES = GROUP * 4 + GROUP * BLOCK;
const HEAD_DIM = 64;

const align = (n: number) => Math.ceil(n / ALIGN) * ALIGN;

const EdgeTensor = z.strictObject({
  name: z.string(),
  kind: z.enum(['q8', 'f32']),
  rows: z.int().positive(),
  cols: z.int().positive(),
  /** From the start of the data. */
  offset: z.int().nonnegative(),
  bytes: z.int().positive(),
});
type EdgeTensor = z.infer<typeof EdgeTensor>;
const Header = z.strictObject({ config: ModelConfig, tensors: z.array(EdgeTensor) });

export interface EdgeImage {
  config: ModelConfig;
  tensors: EdgeTensor[];
  data: Uint8Array;
}

/** A stored tensor and the Hugging Face tensors that lie in it, one below the other. */
interface Part extends EdgeTensor {
  sources: { name: string; rows: number }[];
}

/** Where each tensor of such a model lies. Throws if the decoder cannot run the model. */
function layout(config: ModelConfig): Part[] {
  const { hidden_size: hidden, intermediate_size: inner, vocab_size: vocab, head_dim: head } = config;
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads;
  if (head !== HEAD_DIM) throw new MalformedFile(`edge.bin: heads are of size ${head}, the decoder's of ${HEAD_DIM}`);
  if (hidden % BLOCK !== 0) throw new MalformedFile(`edge.bin: hidden_size ${hidden} is not a multiple of ${BLOCK}`);
  if (inner % BLOCK !== 0)
    throw new MalformedFile(`edge.bin: intermediate_size ${inner} is not a multiple of ${BLOCK}`);
  if (heads % kvHeads !== 0)
    throw new MalformedFile(`edge.bin: ${heads} heads do not share ${kvHeads} key-value heads evenly`);

  const parts: Part[] = [];
  let offset = 0;
  const put = (name: string, kind: 'q8' | 'f32', cols: number, sources: Part['sources']) => {
    const rows = sources.reduce((sum, source) => sum + source.rows, 0);
    const bytes = kind === 'f32' ? rows * cols * 4 : Math.ceil(rows / GROUP) * (cols / BLOCK) * BLOCK_BYTES;
    parts.push({ name, kind, rows, cols, offset, bytes, sources });
    offset = align(offset + bytes);
  };
  const q = heads * head;
  const kv = kvHeads * head;
  for (let l = 0; l < config.num_hidden_layers; l++) {
    const hf = `model.layers.${l}`;
    put(`layers.${l}.attention_norm`, 'f32', hidden, [{ name: `${hf}.input_layernorm.weight`, rows: 1 }]);
    put(`layers.${l}.qkv`, 'q8', hidden, [
      { name: `${hf}.self_attn.q_proj.weight`, rows: q },
      { name: `${hf}.self_attn.k_proj.weight`, rows: kv },
      { name: `${hf}.self_attn.v_proj.weight`, rows: kv },
    ]);
    put(`layers.${l}.o`, 'q8', q, [{ name: `${hf}.self_attn.o_proj.weight`, rows: hidden }]);
    put(`layers.${l}.mlp_norm`, 'f32', hidden, [{ name: `${hf}.post_attention_layernorm.weight`, rows: 1 }]);
    put(`layers.${l}.gate_up`, 'q8', hidden, [
      { name: `${hf}.mlp.gate_proj.weight`, rows: inner },
      { name: `${hf}.mlp.up_proj.weight`, rows: inner },
    ]);
    put(`layers.${l}.down`, 'q8', inner, [{ name: `${hf}.mlp.down_proj.weight`, rows: hidden }]);
  }
  put('norm', 'f32', hidden, [{ name: 'model.norm.weight', rows: 1 }]);
  put('embed', 'q8', hidden, [{ name: 'model.embed_tokens.weight', rows: vocab }]);
  if (!config.tie_word_embeddings) put('head', 'q8', hidden, [{ name: 'lm_head.weight', rows: vocab }]);
  return parts;
}

const stored = ({ sources: _, ...tensor }: Part): EdgeTensor => tensor;
const sizeOf = (parts: EdgeTensor[]) => align(parts.at(-1)!.offset + parts.at(-1)!.bytes);

// Adding and taking away 1.5 · 2^52 rounds a double to the nearest whole number, ties to even.
const ROUND = 6755399441055744;

/** Quantises `rows` rows of `cols` numbers into a matrix of the image, from its row `first` on. */
function packRows(
  image: Uint8Array,
  at: number,
  first: number,
  rows: number,
  cols: number,
  data: Float32Array,
): boolean {
  const bytes = new Int8Array(image.buffer, image.byteOffset);
  const scales = new Float32Array(image.buffer, image.byteOffset);
  const blocks = cols / BLOCK;
  let finite = 0;
  for (let r = 0; r < rows; r++) {
    const row = first + r;
    const lane = row % GROUP;
    let to = at + ((row - lane) / GROUP) * blocks * BLOCK_BYTES;
    for (let from = r * cols; from < (r + 1) * cols; from += BLOCK) {
      let largest = 0;
      for (let c = from; c < from + BLOCK; c++) {
        const magnitude = Math.abs(data[c]!);
        finite += magnitude * 0; // NaN from here on, once there is a NaN or an infinity
        if (magnitude > largest) largest = magnitude;
      }
      const scale = Math.fround(largest / 127);
      const inverse = scale === 0 ? 0 : 1 / scale;
      scales[(to >> 2) + lane] = scale;
      let quad = to + GROUP * 4 + lane * 4;
      for (let c = from; c < from + BLOCK; c += 4) {
        bytes[quad] = data[c]! * inverse + ROUND - ROUND;
        bytes[quad + 1] = data[c + 1]! * inverse + ROUND - ROUND;
        bytes[quad + 2] = data[c + 2]! * inverse + ROUND - ROUND;
        bytes[quad + 3] = data[c + 3]! * inverse + ROUND - ROUND;
        quad += GROUP * 4;
      }
      to += BLOCK_BYTES;
    }
  }
  return finite === 0;
}

/** Packs a model under Hugging Face's tensor names (lm_head.weight only where embeddings are not tied). */
export function packEdge(config: ModelConfig, tensors: Map<string, FloatTensor>): Uint8Array {
  const parts = layout(config);
  const header = new TextEncoder().encode(JSON.stringify({ config, tensors: parts.map(stored) }));
  const start = align(16 + header.length);
  const image = new Uint8Array(start + sizeOf(parts));
  image.set(new TextEncoder().encode(MAGIC));
  const view = new DataView(image.buffer);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, start - 16, true);
  image.fill(0x20, 16, start);
  image.set(header, 16);
  for (const { kind, cols, offset, sources } of parts) {
    let first = 0;
    for (const { name, rows } of sources) {
      const tensor = tensors.get(name);
      if (!tensor) throw new MalformedFile(`edge.bin: the model has no ${name}`);
      const shape = kind === 'f32' ? [cols] : [rows, cols];
      if (tensor.shape.join() !== shape.join())
        throw new MalformedFile(`edge.bin: ${name} is [${tensor.shape}], its config makes it [${shape}]`);
      let finite = true;
      if (kind === 'f32') {
        finite = tensor.data.every(Number.isFinite);
        new Float32Array(image.buffer, start + offset, cols).set(tensor.data);
      } else {
        finite = packRows(image, start + offset, first, rows, cols, tensor.data);
      }
      if (!finite) throw new MalformedFile(`edge.bin: ${name} holds a number that is not finite`);
      first += rows;
    }
  }
  return image;
}

/** Checks an image and says where its tensors lie; nothing is copied. */
export function readEdge(file: Uint8Array): EdgeImage {
  const fail = (what: string): never => {
    throw new MalformedFile(`edge.bin: ${what}`);
  };
  if (file.length < 16 || new TextDecoder().decode(file.subarray(0, 8)) !== MAGIC) fail('is no image of a policy');
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const version = view.getUint32(8, true);
  if (version !== VERSION) fail(`is of version ${version}; this decoder reads ${VERSION}`);
  const start = 16 + view.getUint32(12, true);
  if (start > file.length) fail('ends inside its header');
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(file.subarray(16, start)));
  } catch {
    fail('has a header that is not JSON');
  }
  const header = Header.safeParse(json);
  if (!header.success) return fail(`has a wrong header: ${inWords(header.error)}`);
  const { config, tensors } = header.data;
  const expected = layout(config);
  if (JSON.stringify(tensors) !== JSON.stringify(expected.map(stored)))
    fail('has its tensors in other places than its config says');
  const bytes = sizeOf(expected);
  if (file.length - start !== bytes) fail(`has ${file.length - start} bytes of weights, its config needs ${bytes}`);
  return { config, tensors, data: file.subarray(start) };
}

/** The weights as the image holds them, in float32 under Hugging Face's names: what the decoder's oracle runs on. */
export function unpackEdge(file: Uint8Array): { config: ModelConfig; tensors: Map<string, FloatTensor> } {
  const { config, data } = readEdge(file);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const tensors = new Map<string, FloatTensor>();
  for (const { kind, cols, offset, sources } of layout(config)) {
    let first = 0;
    for (const { name, rows } of sources) {
      const out = new Float32Array(rows * cols);
      for (let r = 0; r < rows; r++) {
        const lane = (first + r) % GROUP;
        const group = offset + ((first + r - lane) / GROUP) * (cols / BLOCK) * BLOCK_BYTES;
        for (let c = 0; c < cols; c++) {
          const at = group + Math.floor(c / BLOCK) * BLOCK_BYTES;
          const column = c % BLOCK;
          out[r * cols + c] =
            kind === 'f32'
              ? view.getFloat32(offset + c * 4, true)
              : view.getFloat32(at + lane * 4, true) *
                view.getInt8(at + GROUP * 4 + (column >> 2) * GROUP * 4 + lane * 4 + (column & 3));
        }
      }
      tensors.set(name, { shape: kind === 'f32' ? [cols] : [rows, cols], data: out });
      first += rows;
    }
  }
  return { config, tensors };
}
