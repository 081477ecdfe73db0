// How GGUF's tensors hold their numbers: plain floats, or blocks of small integers with scales, made float32 again with the
// very bits that llama.cpp's dequantize_row_* give (every product below is exact in float32, so the order does not matter).
import { MalformedFile } from '../../schema/malformed.ts';
import { type Dtype, floats, fromHalf } from '../../schema/safetensors.ts';

export interface BlockFormat {
  name: string;
  /** Numbers in a block, and the bytes that they take. */
  size: number;
  bytes: number;
  read: (bytes: Uint8Array) => Float32Array;
}

const plain = (dtype: Dtype, bytes: number): BlockFormat => ({
  name: dtype,
  size: 1,
  bytes,
  read: (data) => floats({ dtype, shape: [], bytes: data }),
});

/** A format of blocks: `fill` writes a block's numbers, given its place; f16 reads a half at a place. */
const blocks = (
  name: string,
  size: number,
  bytes: number,
  fill: (data: Uint8Array, at: number, f16: (at: number) => number, out: Float32Array, to: number) => void,
): BlockFormat => ({
  name,
  size,
  bytes,
  read: (data) => {
    const count = data.length / bytes;
    if (!Number.isInteger(count)) throw new MalformedFile(`GGUF: ${data.length} bytes are not whole ${name} blocks`);
    const out = new Float32Array(count * size);
    const f16 = (at: number) => fromHalf(data[at]! | (data[at + 1]! << 8));
    for (let b = 0; b < count; b++) fill(data, b * bytes, f16, out, b * size);
    return out;
  },
});

// d · 32 numbers of 8 bits
const Q8_0 = blocks('Q8_0', 32, 34, (data, at, f16, out, to) => {
  const d = f16(at);
  for (let i = 0; i < 32; i++) out[to + i] = d * ((data[at + 2 + i]! << 24) >> 24);
});

// d · 32 numbers of 4 bits, 0 at 8; the first half of the numbers in the low nibbles
const Q4_0 = blocks('Q4_0', 32, 18, (data, at, f16, out, to) => {
  const d = f16(at);
  for (let i = 0; i < 16; i++) {
    const byte = data[at + 2 + i]!;
    out[to + i] = d * ((byte & 15) - 8);
    out[to + 16 + i] = d * ((byte >> 4) - 8);
  }
});

// d, m · 32 numbers of 4 bits: d q + m
const Q4_1 = blocks('Q4_1', 32, 20, (data, at, f16, out, to) => {
  const d = f16(at);
  const m = f16(at + 2);
  for (let i = 0; i < 16; i++) {
    const byte = data[at + 4 + i]!;
    out[to + i] = d * (byte & 15) + m;
    out[to + 16 + i] = d * (byte >> 4) + m;
  }
});

// d · the fifth bits of 32 numbers · their other four: d q, q being 0 at 16
const Q5_0 = blocks('Q5_0', 32, 22, (data, at, f16, out, to) => {
  const d = f16(at);
  for (let i = 0; i < 32; i++) out[to + i] = d * (ofFive(data, at + 2, i) - 16);
});

// d, m · the same: d q + m
const Q5_1 = blocks('Q5_1', 32, 24, (data, at, f16, out, to) => {
  const d = f16(at);
  const m = f16(at + 2);
  for (let i = 0; i < 32; i++) out[to + i] = d * ofFive(data, at + 4, i) + m;
});

/** The i-th of 32 numbers whose fifth bits are four bytes, before the others in halves of sixteen. */
function ofFive(data: Uint8Array, at: number, i: number): number {
  const byte = data[at + 4 + (i & 15)]!;
  return (i < 16 ? byte & 15 : byte >> 4) | (((data[at + (i >> 3)]! >> (i & 7)) & 1) << 4);
}

// d, dmin · 8 scales and 8 minima of 6 bits in 12 bytes · 8 × 32 numbers of 4 bits: d s q − dmin m
const Q4_K = blocks('Q4_K', 256, 144, groupsOf32);
// the same, with 32 bytes of fifth bits before the numbers: the n-th bit of the i-th is that of the n-th group's i-th number
const Q5_K = blocks('Q5_K', 256, 176, (...given) => groupsOf32(...given, 16));

function groupsOf32(
  data: Uint8Array,
  at: number,
  f16: (at: number) => number,
  out: Float32Array,
  to: number,
  fifth?: number,
): void {
  const d = f16(at);
  const least = f16(at + 2);
  const packed = at + 4;
  for (let group = 0; group < 8; group++) {
    const low = data[packed + group]!;
    const high = data[packed + group + 4]!;
    const top = data[packed + group - 4]!; // of groups 4 to 7: their upper two bits
    const scale = d * (group < 4 ? low & 63 : (high & 15) | ((top >> 6) << 4));
    const offset = least * (group < 4 ? high & 63 : (high >> 4) | ((low >> 6) << 4));
    const numbers = at + (fifth === undefined ? 16 : fifth + 32) + 32 * (group >> 1);
    for (let i = 0; i < 32; i++) {
      const byte = data[numbers + i]!;
      const above = fifth === undefined ? 0 : ((data[at + fifth + i]! >> group) & 1) << 4;
      out[to + 32 * group + i] = scale * ((group & 1 ? byte >> 4 : byte & 15) | above) - offset;
    }
  }
}

// 256 low nibbles · 256 upper pairs of bits · 16 scales of 8 bits · d: d s (q − 32)
const Q6_K = blocks('Q6_K', 256, 210, (data, at, f16, out, to) => {
  const d = f16(at + 208);
  for (let half = 0; half < 2; half++) {
    const low = at + 64 * half;
    const high = at + 128 + 32 * half;
    const scales = at + 192 + 8 * half;
    for (let quarter = 0; quarter < 4; quarter++)
      for (let i = 0; i < 32; i++) {
        const byte = data[low + 32 * (quarter & 1) + i]!;
        const nibble = quarter < 2 ? byte & 15 : byte >> 4;
        const q = (nibble | (((data[high + i]! >> (2 * quarter)) & 3) << 4)) - 32;
        const scale = d * ((data[scales + 2 * quarter + (i >> 4)]! << 24) >> 24);
        out[to + 128 * half + 32 * quarter + i] = scale * q;
      }
  }
});

/** By the number that GGUF gives them (ggml_type). */
export const BLOCKS: BlockFormat[] = [];
BLOCKS[0] = plain('F32', 4);
BLOCKS[1] = plain('F16', 2);
BLOCKS[2] = Q4_0;
BLOCKS[3] = Q4_1;
BLOCKS[6] = Q5_0;
BLOCKS[7] = Q5_1;
BLOCKS[8] = Q8_0;
BLOCKS[12] = Q4_K;
BLOCKS[13] = Q5_K;
BLOCKS[14] = Q6_K;
BLOCKS[30] = plain('BF16', 2);

/** The names of those that are not read, as people know them. */
const OTHERS = new Map([
  [9, 'Q8_1'],
  [10, 'Q2_K'],
  [11, 'Q3_K'],
  [15, 'Q8_K'],
  [16, 'IQ2_XXS'],
  [17, 'IQ2_XS'],
  [18, 'IQ3_XXS'],
  [19, 'IQ1_S'],
  [20, 'IQ4_NL'],
  [21, 'IQ3_S'],
  [22, 'IQ2_S'],
  [23, 'IQ4_XS'],
  [29, 'IQ1_M'],
  [34, 'TQ1_0'],
  [35, 'TQ2_0'],
  [39, 'MXFP4'],
]);
export const nameOfType = (type: number): string => OTHERS.get(type) ?? `of an unknown type ${type}`;
