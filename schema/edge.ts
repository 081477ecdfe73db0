// edge.bin: a Llama's weights as the decoder maps them into its memory. Matrices are int8 in blocks of 32 columns with a
// float32 scale each, or in an image of 4 bits all but embedding and head are whole numbers from 0 to 15 with a scale and an
// offset, bfloat16 each; norms are float32. Where everything lies follows from the config and the bits alone, and a file that
// says otherwise is refused.
//
//   "PLUMBEDG" · u32 version · u32 length of the header · header (JSON, spaces up to a multiple of 64) · data
//
// A matrix is stored by groups of 8 rows; a group is its blocks from left to right. In 8 bits a block is 288 bytes:
//   8 × f32           the scale of each row
//   8 × 8 × 4 × i8    for each 4 columns, each row's four numbers, so that one load brings 4 rows × 4 columns
// In 4 bits it is 160 bytes:
//   8 × bf16          the scales, of rows 0 4 1 5 2 6 3 7: those of four rows lie in every second place
//   8 × bf16          the offsets, in that order
//   4 × 8 × 4 × u8    for each 8 columns, each row's: the first four in the low halves of four bytes, the others in the high
// In 4 bits, changes to a model that are small beside its steps would be lost to rounding, and all that training by adapters does is such
// a change. Where what was lost of the layers' matrices is mostly of low rank, the image has it after all else, for each matrix
// and each of the model's tensors in it (low-rank.ts): y = W x + Σ s_j u_j (v_j · x), of R rows and K columns. So does one, of 8 bits too, that
// answers are drawn from while adapters are trained: they are such products.
//   8 × f32           s
//   8 × K × i8        v, one after another
//   8 × R × i8        u
// Rows are padded with zeros to a multiple of 8, the inner size to one of 32. Queries, keys and values are one matrix, gate and up another. Rows keep
// Hugging Face's order, so RoPE turns the two halves of a head (i and i + 32), not neighbours.
//
// Checked by hand: the decoder script, which reads these, has no memory for a library that does it.
//
// Left out: biases but Qwen 2's, scaled RoPE, heads of another size than 64.
import { lowRank, RANK } from './low-rank.ts';
import { MalformedFile } from './malformed.ts';
import type { ModelConfig } from './manifest.ts';
import type { FloatTensor } from './safetensors.ts';

const MAGIC = 'PLUMBEDG';
const VERSION = 1;
const ALIGN = 64;
const BLOCK = 32;
const GROUP = 8;
/** Of a block of 8 rows × 32 columns. */
const BLOCK_BYTES = { q8: GROUP * 4 + GROUP * BLOCK, q4: GROUP * 4 + (GROUP * BLOCK) / 2 };
export type Bits = 4 | 8;
const HEAD_DIM = 64;

const align = (n: number) => Math.ceil(n / ALIGN) * ALIGN;

interface EdgeTensor {
  name: string;
  kind: 'q8' | 'q4' | 'f32' | 'low';
  rows: number;
  cols: number;
  /** From the start of the data. */
  offset: number;
  bytes: number;
}

export interface EdgeHeader {
  config: ModelConfig;
  /** Of the layers' matrices. */
  bits: Bits;
  /** Whether what rounding lost of them is there, too. */
  corrected: boolean;
  tensors: EdgeTensor[];
  /** Of all weights. */
  bytes: number;
}
interface EdgeImage extends EdgeHeader {
  data: Uint8Array;
}

/** A stored tensor and the Hugging Face tensors that lie in it, one below the other. */
interface Part extends EdgeTensor {
  /** Their rows and columns, and how many rows they take up with those of zeros that follow. */
  sources: { name: string; rows: number; cols: number; taken: number }[];
}

/** Of what corrects a tensor of so many rows and columns. */
const lowBytes = (rows: number, cols: number) => RANK * (4 + rows + cols);

/** The inner size as the decoder has it: whole blocks, of zeros where the model has less. */
export const paddedInner = ({ intermediate_size }: ModelConfig): number => Math.ceil(intermediate_size / BLOCK) * BLOCK;

/** Where each tensor of such a model lies. Throws if the decoder cannot run the model. */
function layout(config: ModelConfig, bits: Bits, corrected = false): Part[] {
  const { hidden_size: hidden, intermediate_size, vocab_size: vocab, head_dim: head } = config;
  const inner = paddedInner(config);
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads;
  if (head !== HEAD_DIM)
    throw new MalformedFile(`a head_dim of ${head} is not supported: the decoder has heads of ${HEAD_DIM}`);
  if (hidden % BLOCK !== 0) throw new MalformedFile(`hidden_size ${hidden} is not a multiple of ${BLOCK}`);
  if (heads % kvHeads !== 0) throw new MalformedFile(`${heads} heads do not share ${kvHeads} key-value heads evenly`);

  const parts: Part[] = [];
  let offset = 0;
  const put = (
    name: string,
    kind: EdgeTensor['kind'],
    cols: number,
    given: { name: string; rows: number; cols?: number; taken?: number }[],
  ) => {
    const sources = given.map((source) => ({ cols, taken: source.rows, ...source }));
    const rows = sources.reduce((sum, source) => sum + source.taken, 0);
    const bytes =
      kind === 'f32'
        ? rows * cols * 4
        : kind === 'low'
          ? sources.reduce((sum, { taken }) => sum + lowBytes(taken, cols), 0)
          : Math.ceil(rows / GROUP) * (cols / BLOCK) * BLOCK_BYTES[kind];
    parts.push({ name, kind, rows, cols, offset, bytes, sources });
    offset = align(offset + bytes);
  };
  const q = heads * head;
  const kv = kvHeads * head;
  const matrix = bits === 4 ? 'q4' : 'q8';
  for (let l = 0; l < config.num_hidden_layers; l++) {
    const hf = `model.layers.${l}`;
    put(`layers.${l}.attention_norm`, 'f32', hidden, [{ name: `${hf}.input_layernorm.weight`, rows: 1 }]);
    put(`layers.${l}.qkv`, matrix, hidden, [
      { name: `${hf}.self_attn.q_proj.weight`, rows: q },
      { name: `${hf}.self_attn.k_proj.weight`, rows: kv },
      { name: `${hf}.self_attn.v_proj.weight`, rows: kv },
    ]);
    // heads of 64 float32 numbers are whole lines of 64 bytes: the three biases lie one after another, as the products do
    if (config.model_type === 'qwen2')
      for (const [name, cols] of Object.entries({ q, k: kv, v: kv }))
        put(`layers.${l}.${name}_bias`, 'f32', cols, [{ name: `${hf}.self_attn.${name}_proj.bias`, rows: 1 }]);
    if (config.model_type === 'qwen3')
      for (const name of ['q_norm', 'k_norm'])
        put(`layers.${l}.${name}`, 'f32', head, [{ name: `${hf}.self_attn.${name}.weight`, rows: 1 }]);
    put(`layers.${l}.o`, matrix, q, [{ name: `${hf}.self_attn.o_proj.weight`, rows: hidden }]);
    put(`layers.${l}.mlp_norm`, 'f32', hidden, [{ name: `${hf}.post_attention_layernorm.weight`, rows: 1 }]);
    put(`layers.${l}.gate_up`, matrix, hidden, [
      { name: `${hf}.mlp.gate_proj.weight`, rows: intermediate_size, taken: inner },
      { name: `${hf}.mlp.up_proj.weight`, rows: intermediate_size, taken: inner },
    ]);
    put(`layers.${l}.down`, matrix, inner, [
      { name: `${hf}.mlp.down_proj.weight`, rows: hidden, cols: intermediate_size },
    ]);
  }
  put('norm', 'f32', hidden, [{ name: 'model.norm.weight', rows: 1 }]);
  put('embed', 'q8', hidden, [{ name: 'model.embed_tokens.weight', rows: vocab }]);
  if (!config.tie_word_embeddings) put('head', 'q8', hidden, [{ name: 'lm_head.weight', rows: vocab }]);
  if (corrected)
    for (const { name, cols, sources } of parts.filter(
      ({ name, kind }) => kind === matrix && name.startsWith('layers.'),
    ))
      put(`${name}_low`, 'low', cols, sources);
  return parts;
}

/** How many tensors each layer has in the image. */
export const tensorsALayer = ({ model_type }: ModelConfig): number => ({ llama: 6, qwen2: 9, qwen3: 8 })[model_type];

/** What keys and values of a position take in the decoder's cache: bfloat16 beside weights of 4 bits, else float32. */
export const cacheBytes = ({ num_hidden_layers, num_key_value_heads, head_dim }: ModelConfig, bits: Bits): number =>
  2 * num_hidden_layers * num_key_value_heads * head_dim * (bits === 4 ? 2 : 4);

const stored = ({ sources: _, ...tensor }: Part): EdgeTensor => tensor;
/** A policy whose image in 8 bits is smaller decodes in the api's own isolate; a larger one in the decoder script, in 4 bits. */
const SMALL = 16e6;
export const isLarge = (config: ModelConfig): boolean => sizeOf(layout(config, 8)) >= SMALL;
/** Of the image that is served. */
const servedBits = (config: ModelConfig): Bits => (isLarge(config) ? 4 : 8);

const sizeOf = (parts: EdgeTensor[]) => align(parts.at(-1)!.offset + parts.at(-1)!.bytes);

// Adding and taking away 1.5 · 2^52 rounds a double to the nearest whole number, ties to even.
const ROUND = 6755399441055744;

/** Quantises `rows` rows of `cols` numbers into a matrix of the image, from its row `first` on; false where one is not finite. */
type PackRows = (
  image: Uint8Array,
  at: number,
  first: number,
  rows: number,
  cols: number,
  data: Float32Array,
) => boolean;

const packRows8: PackRows = (image, at, first, rows, cols, data) => {
  const bytes = new Int8Array(image.buffer, image.byteOffset);
  const scales = new Float32Array(image.buffer, image.byteOffset);
  const blocks = cols / BLOCK;
  let finite = 0;
  for (let r = 0; r < rows; r++) {
    const row = first + r;
    const lane = row % GROUP;
    let to = at + ((row - lane) / GROUP) * blocks * BLOCK_BYTES.q8;
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
      to += BLOCK_BYTES.q8;
    }
  }
  return finite === 0;
};

/** Where the scale of a group's row stands among eight: rows 0 4 1 5 2 6 3 7. */
const placeOf = (lane: number) => 2 * (lane % 4) + (lane >> 2);
/** Where in a block of 4 bits the column c of a row is: in the low half of that byte, or with 4 in c's bits in the high one. */
const byteOf = (block: number, lane: number, c: number) =>
  block + GROUP * 4 + (c >> 3) * GROUP * 4 + lane * 4 + (c & 3);
const bits32 = new Uint32Array(1);
const float32 = new Float32Array(bits32.buffer);
/** The 16 upper bits of the bfloat16 nearest to a number. */
function toBf16(value: number): number {
  float32[0] = value;
  return (bits32[0]! + 0x7fff + ((bits32[0]! >>> 16) & 1)) >>> 16;
}
function fromBf16(bits: number): number {
  bits32[0] = bits << 16;
  return float32[0]!;
}
/** How the search for a block's scale goes: it is tried this much smaller and larger, in so many steps either way. */
const [REACH, TRIES] = [0.15, 5];
/**
 * Weights that came from another file of 4 bits lie on its steps, of which a block need not have all: of Q4_0 it has 8 at least. Where eight numbers are
 * as near as this to so few, in squares of a step (of others it is .67 ± .21), that is tried as well.
 */
const [FEWEST, NEAR] = [8, 0.2];

/**
 * The scale and offset of 32 numbers for which whole numbers q from 0 to 15 give a small squared error of d·q + m. From several scales the q
 * are rounded, and from them scale and offset follow by least squares; what bfloat16 makes of those is what is compared.
 */
function fit15(data: Float32Array, from: number): { d: number; m: number } {
  const end = from + BLOCK;
  let [least, most, sumX, sumXX] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0];
  for (let i = from; i < end; i++) {
    const x = data[i]!;
    if (x < least) least = x;
    if (x > most) most = x;
    sumX += x;
    sumXX += x * x;
  }
  let best = { d: toBf16(0), m: toBf16(sumX / BLOCK) };
  let bestError = Number.POSITIVE_INFINITY;
  const range = most - least;
  const attempt = (inverse: number, first: number) => {
    let [sumQ, sumQQ, sumQX] = [0, 0, 0];
    for (let i = from; i < end; i++) {
      const x = data[i]!;
      let q = x * inverse + first + ROUND - ROUND;
      if (q < 0) q = 0;
      else if (q > 15) q = 15;
      sumQ += q;
      sumQQ += q * q;
      sumQX += q * x;
    }
    const spread = BLOCK * sumQQ - sumQ * sumQ;
    if (!(spread > 0)) return;
    const dBits = toBf16((BLOCK * sumQX - sumQ * sumX) / spread);
    const d = fromBf16(dBits);
    const mBits = toBf16((sumX - d * sumQ) / BLOCK);
    const m = fromBf16(mBits);
    const error = sumXX + d * d * sumQQ + BLOCK * m * m + 2 * (d * m * sumQ - d * sumQX - m * sumX);
    if (error < bestError) {
      best = { d: dBits, m: mBits };
      bestError = error;
    }
  };
  if (!(range > 0)) return best;
  for (let n = -TRIES; n <= TRIES; n++) {
    const inverse = 15 / (range * (1 + (REACH * n) / TRIES));
    attempt(inverse, 7.5 - ((least + most) / 2) * inverse); // a smaller scale leaves out a little at both ends
  }
  for (let steps = 14; steps >= FEWEST; steps--) {
    const inverse = steps / range;
    let off = 0;
    for (let i = from; i < from + 8; i++) {
      const q = (data[i]! - least) * inverse;
      const rest = q - (q + ROUND - ROUND);
      off += rest * rest;
    }
    if (off < NEAR) attempt(inverse, -least * inverse);
  }
  return best;
}

const packRows4: PackRows = (image, at, first, rows, cols, data) => {
  const halves = new Uint16Array(image.buffer, image.byteOffset);
  const blocks = cols / BLOCK;
  let finite = 0;
  for (let r = 0; r < rows; r++) {
    const row = first + r;
    const lane = row % GROUP;
    let to = at + ((row - lane) / GROUP) * blocks * BLOCK_BYTES.q4;
    for (let from = r * cols; from < (r + 1) * cols; from += BLOCK) {
      for (let i = from; i < from + BLOCK; i++) finite += data[i]! * 0; // NaN from here on, once there is a NaN or an infinity
      const fitted = fit15(data, from);
      halves[(to >> 1) + placeOf(lane)] = fitted.d;
      halves[(to >> 1) + GROUP + placeOf(lane)] = fitted.m;
      const [d, m] = [fromBf16(fitted.d), fromBf16(fitted.m)];
      const inverse = d === 0 ? 0 : 1 / d;
      for (let c = 0; c < BLOCK; c++) {
        const q = Math.max(0, Math.min(15, (data[from + c]! - m) * inverse + ROUND - ROUND));
        const byte = byteOf(to, lane, c);
        image[byte] = image[byte]! | (q << (c & 4));
      }
      to += BLOCK_BYTES.q4;
    }
  }
  return finite === 0;
};

/** Rows of `own` numbers with zeros up to `cols`. */
function widened(data: Float32Array, own: number, cols: number): Float32Array {
  if (own === cols) return data;
  const out = new Float32Array((data.length / own) * cols);
  for (let r = 0; r * own < data.length; r++) out.set(data.subarray(r * own, (r + 1) * own), r * cols);
  return out;
}

/** Throws where a model has tensors that one of such a config has no use for: it is another model than its config says. */
export function requireNoOthers({ model_type }: ModelConfig, names: Iterable<string>, used: Set<string>): void {
  // a tied model may have its output matrix once more, an old one its rotations
  for (const name of names)
    if (!used.has(name) && name !== 'lm_head.weight' && !name.endsWith('.rotary_emb.inv_freq'))
      throw new MalformedFile(`${name} is no part of a ${model_type}`);
}

/** Packs a model under Hugging Face's tensor names (lm_head.weight only where embeddings are not tied). */
export function packEdge(
  config: ModelConfig,
  tensors: Map<string, FloatTensor>,
  bits = servedBits(config),
): Uint8Array {
  const parts = layout(config, bits);
  requireNoOthers(config, tensors.keys(), new Set(parts.flatMap(({ sources }) => sources.map(({ name }) => name))));
  const data = new Uint8Array(sizeOf(parts));
  const corrections = new Map<string, Uint8Array[]>();
  let [lost, told] = [0, 0];
  for (const { name: matrix, kind, cols, offset, sources } of parts) {
    let first = 0;
    for (const { name, rows, cols: own, taken } of sources) {
      const tensor = tensors.get(name);
      if (!tensor) throw new MalformedFile(`there is no ${name}`);
      const shape = kind === 'f32' ? [own] : [rows, own];
      if (tensor.shape.join() !== shape.join())
        throw new MalformedFile(`${name} is [${tensor.shape}], its config makes it [${shape}]`);
      let finite = true;
      if (kind === 'f32') {
        finite = tensor.data.every(Number.isFinite);
        new Float32Array(data.buffer, offset, cols).set(tensor.data);
      } else {
        const wide = widened(tensor.data, own, cols);
        finite = (kind === 'q4' ? packRows4 : packRows8)(data, offset, first, rows, cols, wide);
        if (kind === 'q4' && finite) {
          const correction = correctionOf(lost4(data, offset, first, rows, cols, wide), rows, taken);
          corrections.set(matrix, [...(corrections.get(matrix) ?? []), correction.bytes]);
          lost += correction.squares;
          told += correction.told;
        }
      }
      if (!finite) throw new MalformedFile(`${name} holds a number that is not finite`);
      first += taken;
    }
  }
  return assembled(config, bits, data, told > WORTH * lost ? corrections : null);
}

/** An image of packed weights, and what is added to the products of each matrix, if anything is. */
function assembled(
  config: ModelConfig,
  bits: Bits,
  data: Uint8Array,
  corrections: Map<string, Uint8Array[]> | null,
): Uint8Array {
  const parts = layout(config, bits, corrections !== null);
  const header = new TextEncoder().encode(JSON.stringify({ config, tensors: parts.map(stored) }));
  const start = align(16 + header.length);
  const image = new Uint8Array(start + sizeOf(parts));
  image.set(new TextEncoder().encode(MAGIC));
  const view = new DataView(image.buffer);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, start - 16, true);
  image.fill(0x20, 16, start);
  image.set(header, 16);
  image.set(data, start);
  for (const { name, kind, offset } of parts) {
    let at = start + offset;
    for (const bytes of kind === 'low' ? corrections!.get(name.replace(/_low$/, ''))! : []) {
      image.set(bytes, at);
      at += bytes.length;
    }
  }
  return image;
}

/** A sum of up to eight products of a column and a row, those that are not there of zeros. */
export interface Low {
  u: Float32Array; // (rows, RANK)
  v: Float32Array; // (cols, RANK)
}

/** The image of a model that has such sums added to its layers' matrices, from that of the model without. */
export function withLow(image: Uint8Array, sums: Map<string, Low>): Uint8Array {
  const { config, bits, corrected, data } = readEdge(image);
  if (corrected) throw new RangeError('the image has corrections already');
  const corrections = new Map<string, Uint8Array[]>();
  for (const { name: matrix, kind, cols, sources } of layout(config, bits, true))
    if (kind === 'low')
      corrections.set(
        matrix.replace(/_low$/, ''),
        sources.map(({ name, taken }) => {
          const sum = sums.get(name);
          return sum ? lowRounded(sum, taken, cols) : new Uint8Array(lowBytes(taken, cols));
        }),
      );
  return assembled(config, bits, data, corrections);
}

/**
 * What rows are, less what rounding to whole numbers made of them. (rows, cols) What the rounding of scales and offsets adds is left out: it
 * is the same for a policy and for what was trained from it, and may be more than what training changed.
 */
function lost4(
  image: Uint8Array,
  at: number,
  first: number,
  rows: number,
  cols: number,
  data: Float32Array,
): Float32Array {
  const halves = new Uint16Array(image.buffer);
  const out = new Float32Array(rows * cols);
  const steps = new Float64Array(BLOCK);
  const blocks = cols / BLOCK;
  for (let r = 0; r < rows; r++) {
    const lane = (first + r) % GROUP;
    let block = at + ((first + r - lane) / GROUP) * blocks * BLOCK_BYTES.q4;
    for (let from = r * cols; from < (r + 1) * cols; from += BLOCK, block += BLOCK_BYTES.q4) {
      const d = fromBf16(halves[(block >> 1) + placeOf(lane)]!);
      const m = fromBf16(halves[(block >> 1) + GROUP + placeOf(lane)]!);
      let [sumQ, sumQQ, sumE, sumQE] = [0, 0, 0, 0];
      for (let c = 0; c < BLOCK; c++) {
        const q = (image[byteOf(block, lane, c)]! >> (c & 4)) & 15;
        const e = data[from + c]! - (d * q + m);
        out[from + c] = e;
        steps[c] = q;
        sumQ += q;
        sumQQ += q * q;
        sumE += e;
        sumQE += q * e;
      }
      const spread = BLOCK * sumQQ - sumQ * sumQ;
      const slope = spread > 0 ? (BLOCK * sumQE - sumQ * sumE) / spread : 0;
      const level = (sumE - slope * sumQ) / BLOCK;
      for (let c = 0; c < BLOCK; c++) out[from + c] = out[from + c]! - (slope * steps[c]! + level);
    }
  }
  return out;
}

/** So much of the squares of what was lost must be of low rank for the image to have it. Of noise some 3 % are. */
const WORTH = 0.2;

/** What was lost of a tensor as the image has it, with how much that is, in squares, and how much of it is told. */
function correctionOf(
  lost: Float32Array,
  rows: number,
  taken: number,
): { bytes: Uint8Array; squares: number; told: number } {
  const { u, v, squares, told } = lowRank(lost, rows);
  return { bytes: lowRounded({ u, v }, taken, lost.length / rows), squares, told };
}

/** As the image has it, of so many rows and columns with those of zeros. */
function lowRounded({ u, v }: Low, taken: number, cols: number): Uint8Array {
  const bytes = new Uint8Array(lowBytes(taken, cols));
  const scales = new Float32Array(bytes.buffer, 0, RANK);
  const numbers = new Int8Array(bytes.buffer, 4 * RANK);
  for (let j = 0; j < RANK; j++) {
    scales[j] = 1;
    for (const [of, at] of [
      [v, j * cols],
      [u, RANK * cols + j * taken],
    ] as const) {
      const n = of.length / RANK;
      let largest = 0;
      for (let i = 0; i < n; i++) largest = Math.max(largest, Math.abs(of[i * RANK + j]!));
      for (let i = 0; i < n; i++) numbers[at + i] = largest === 0 ? 0 : Math.round((of[i * RANK + j]! * 127) / largest);
      scales[j] = scales[j]! * (largest / 127);
    }
  }
  return bytes;
}

const fail = (what: string): never => {
  throw new MalformedFile(`edge.bin: ${what}`);
};

/** How many bytes an image's header takes, as its first sixteen say. */
export function headerBytes(file: Uint8Array): number {
  if (file.length < 16 || new TextDecoder().decode(file.subarray(0, 8)) !== MAGIC) fail('is no image of a policy');
  const view = new DataView(file.buffer, file.byteOffset, 16);
  const version = view.getUint32(8, true);
  if (version !== VERSION) fail(`is of version ${version}; this decoder reads ${VERSION}`);
  return 16 + view.getUint32(12, true);
}

const SIZES = [
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
] as const;

/** Checks an image's header, and says where its tensors will lie in so many bytes of weights. */
export function readHeader(head: Uint8Array): EdgeHeader {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(head.subarray(16)));
  } catch {
    fail('has a header that is not JSON');
  }
  const { config, tensors } = (json ?? {}) as { config?: ModelConfig; tensors?: EdgeTensor[] };
  if (!config || !Array.isArray(tensors)) return fail('has a header without config or tensors');
  if (!['llama', 'qwen2', 'qwen3'].includes(config.model_type)) fail('has a wrong header: model_type is not known');
  for (const name of SIZES)
    if (!(Number.isSafeInteger(config[name]) && config[name] > 0)) fail(`has a wrong header: ${name} is no size`);
  for (const name of ['rms_norm_eps', 'rope_theta'] as const)
    if (!(Number.isFinite(config[name]) && config[name] > 0)) fail(`has a wrong header: ${name} is no number above 0`);
  if (typeof config.tie_word_embeddings !== 'boolean') fail('has a wrong header: tie_word_embeddings is no boolean');
  if (!Number.isSafeInteger(config.eos_token_id)) fail('has a wrong header: eos_token_id is no id');
  if (config.num_hidden_layers > tensors.length) fail('has fewer tensors than its config says');
  const has = (kind: EdgeTensor['kind']) => tensors.some((tensor) => tensor?.kind === kind);
  const header = headerOf(config, has('q4') ? 4 : 8, has('low'));
  if (JSON.stringify(tensors) !== JSON.stringify(header.tensors))
    fail('has its tensors in other places than its config says');
  return header;
}

/** What an image of a policy says of itself. */
export function headerOf(config: ModelConfig, bits: Bits, corrected: boolean): EdgeHeader {
  const parts = layout(config, bits, corrected);
  return { config, bits, corrected, tensors: parts.map(stored), bytes: sizeOf(parts) };
}

/** Checks an image and says where its tensors lie; nothing is copied. */
export function readEdge(file: Uint8Array): EdgeImage {
  const start = headerBytes(file);
  if (start > file.length) fail('ends inside its header');
  const header = readHeader(file.subarray(0, start));
  if (file.length - start !== header.bytes)
    fail(`has ${file.length - start} bytes of weights, its config needs ${header.bytes}`);
  return { ...header, data: file.subarray(start) };
}

/** The weights as the image holds them, in float32 under Hugging Face's names: what the decoder's oracle runs on. */
export function unpackEdge(file: Uint8Array): { config: ModelConfig; tensors: Map<string, FloatTensor> } {
  const { config, bits, corrected, data } = readEdge(file);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const bf16 = (at: number) => fromBf16(view.getUint16(at, true));
  /** The number in a column (0 to 31) of a block's row (0 to 7). */
  const number = {
    q8: (block: number, lane: number, c: number) =>
      view.getFloat32(block + lane * 4, true) *
      view.getInt8(block + GROUP * 4 + (c >> 2) * GROUP * 4 + lane * 4 + (c & 3)),
    q4: (block: number, lane: number, c: number) => {
      const q = (data[byteOf(block, lane, c)]! >> (c & 4)) & 15;
      return bf16(block + 2 * placeOf(lane)) * q + bf16(block + 2 * (GROUP + placeOf(lane)));
    },
  };
  const tensors = new Map<string, FloatTensor>();
  for (const { kind, cols, offset, sources } of layout(config, bits, corrected)) {
    let first = 0;
    let low = offset;
    for (const { name, rows, cols: own, taken } of sources) {
      if (kind === 'low') {
        const scale = (j: number) => view.getFloat32(low + 4 * j, true);
        const v = new Int8Array(data.buffer, data.byteOffset + low + 4 * RANK, RANK * cols);
        const u = new Int8Array(data.buffer, v.byteOffset + v.length, RANK * taken);
        const whole = tensors.get(name)!.data;
        for (let j = 0; j < RANK; j++)
          for (let r = 0; r < rows; r++)
            for (let c = 0; c < own; c++)
              whole[r * own + c] = whole[r * own + c]! + scale(j) * u[j * taken + r]! * v[j * cols + c]!;
        low += lowBytes(taken, cols);
        continue;
      }
      const out = new Float32Array(rows * own);
      for (let r = 0; r < rows; r++) {
        const lane = (first + r) % GROUP;
        for (let c = 0; c < own; c++) {
          if (kind === 'f32') {
            out[c] = view.getFloat32(offset + c * 4, true);
            continue;
          }
          const group = offset + ((first + r - lane) / GROUP) * (cols / BLOCK) * BLOCK_BYTES[kind];
          const block = group + Math.floor(c / BLOCK) * BLOCK_BYTES[kind];
          out[r * own + c] = number[kind](block, lane, c % BLOCK);
        }
      }
      tensors.set(name, { shape: kind === 'f32' ? [own] : [rows, own], data: out });
      first += taken;
    }
  }
  return { config, tensors };
}
