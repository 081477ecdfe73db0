// The safetensors format: an 8-byte length, a JSON header of names, types, shapes and places, then the numbers, little
// endian. Reading copies nothing until floats are asked for, and trusts nothing that the header says.
//
// Left out: integer types.
import { z } from 'zod';
import { inWords, MalformedFile } from './malformed.ts';

const SIZES = { F32: 4, F16: 2, BF16: 2 } as const;
export type Dtype = keyof typeof SIZES;

export interface StoredTensor {
  dtype: Dtype;
  shape: number[];
  /** The tensor's bytes, a view of the file. */
  bytes: Uint8Array;
}
export interface FloatTensor {
  shape: number[];
  data: Float32Array;
}

const Entry = z.strictObject({
  dtype: z.string(),
  shape: z.array(z.int().nonnegative()).max(8),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
});
const MAX_HEADER = 100_000_000;

const fail = (what: string): never => {
  throw new MalformedFile(`safetensors: ${what}`);
};

export function readSafetensors(file: Uint8Array): Map<string, StoredTensor> {
  if (file.length < 8) fail('shorter than its 8-byte length');
  const headerBytes = Number(new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true));
  if (headerBytes > MAX_HEADER) fail(`a header of ${headerBytes} bytes is more than ${MAX_HEADER}`);
  if (headerBytes > file.length - 8) fail(`the header of ${headerBytes} bytes goes beyond the file`);
  let header: unknown;
  try {
    header = JSON.parse(
      new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(file.subarray(8, 8 + headerBytes)),
    );
  } catch {
    fail('the header is not JSON');
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header)) fail('the header is not an object');

  const data = file.subarray(8 + headerBytes);
  const tensors = new Map<string, StoredTensor>();
  const places: { name: string; begin: number; end: number }[] = [];
  for (const [name, value] of Object.entries(header as object)) {
    if (name === '__metadata__') continue;
    const entry = Entry.safeParse(value);
    if (!entry.success) return fail(`${name}: ${inWords(entry.error)}`);
    const { dtype, shape, data_offsets } = entry.data;
    if (!Object.hasOwn(SIZES, dtype)) fail(`${name} is ${dtype}; supported are ${Object.keys(SIZES).join(', ')}`);
    const [begin, end] = data_offsets;
    if (begin > end || end > data.length)
      fail(`${name} lies at ${begin}–${end}, outside of the ${data.length} bytes there are`);
    const bytes = shape.reduce((product, n) => product * n, SIZES[dtype as Dtype]);
    if (bytes !== end - begin) fail(`${name} has ${end - begin} bytes, its shape [${shape}] needs ${bytes}`);
    places.push({ name, begin, end });
    tensors.set(name, { dtype: dtype as Dtype, shape, bytes: data.subarray(begin, end) });
  }
  places.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = 0;
  for (const place of places) {
    if (place.begin < end) fail(`${place.name} overlaps another tensor`);
    if (place.begin > end) fail(`${place.begin - end} bytes before ${place.name} belong to no tensor`);
    end = place.end;
  }
  if (end !== data.length) fail(`${data.length - end} bytes at the end belong to no tensor`);
  return tensors;
}

let halves: Float32Array | undefined;
/** All 65,536 half-precision numbers. */
function halfTable(): Float32Array {
  if (halves) return halves;
  halves = new Float32Array(65_536);
  for (let bits = 0; bits < 65_536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const magnitude =
      exponent === 31
        ? fraction
          ? Number.NaN
          : Number.POSITIVE_INFINITY
        : exponent === 0
          ? fraction * 2 ** -24
          : (1024 + fraction) * 2 ** (exponent - 25);
    halves[bits] = bits & 0x8000 ? -magnitude : magnitude;
  }
  return halves;
}

/** A half-precision number from its 16 bits. */
export const fromHalf = (bits: number): number => halfTable()[bits]!;

/** A tensor's numbers: the file's own bytes where they are F32 and lie on a multiple of four, else a copy. */
export function floats({ dtype, bytes }: StoredTensor): Float32Array {
  const size = SIZES[dtype];
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  const count = bytes.length / size;
  if (dtype === 'F32') return new Float32Array(aligned.buffer, aligned.byteOffset, count);
  const words = new Uint16Array(aligned.buffer, aligned.byteOffset, count);
  const out = new Float32Array(count);
  if (dtype === 'BF16') {
    const bits = new Uint32Array(out.buffer);
    for (let i = 0; i < count; i++) bits[i] = words[i]! << 16;
  } else {
    const table = halfTable();
    for (let i = 0; i < count; i++) out[i] = table[words[i]!]!;
  }
  return out;
}

/** All tensors of a file, in float32. */
export const readTensors = (file: Uint8Array): Map<string, FloatTensor> => inFloats(readSafetensors(file));

export const inFloats = (tensors: Map<string, StoredTensor>): Map<string, FloatTensor> =>
  new Map([...tensors].map(([name, tensor]) => [name, { shape: tensor.shape, data: floats(tensor) }]));

/** The 16 bits nearest to each float, ties to even; NaN stays NaN. */
export function narrow(data: Float32Array, dtype: 'F16' | 'BF16'): Uint16Array {
  const out = new Uint16Array(data.length);
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
  for (let i = 0; i < data.length; i++) {
    const b = bits[i]!;
    const sign = (b >>> 16) & 0x8000;
    const magnitude = b & 0x7fff_ffff;
    if (dtype === 'BF16') {
      out[i] = magnitude > 0x7f80_0000 ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
    } else if (magnitude > 0x7f80_0000) {
      out[i] = sign | 0x7e00;
    } else if (magnitude >= 0x477f_f000) {
      out[i] = sign | 0x7c00; // 65,520 and more round to infinity
    } else if (magnitude < 0x3880_0000) {
      // Below 2^-14: a multiple of 2^-24, which a float holds exactly once rounded.
      const scaled = Math.abs(data[i]!) * 2 ** 24;
      const down = Math.floor(scaled);
      const rest = scaled - down;
      out[i] = sign | (rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down);
    } else {
      out[i] = sign | ((magnitude - 0x3800_0000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
    }
  }
  return out;
}

/** Writes tensors in the order of their names, matrices all of one type and vectors too; the same tensors give the same bytes. */
export function writeSafetensors(
  tensors: Map<string, FloatTensor>,
  matrices: Dtype,
  vectors: Dtype = matrices,
): Uint8Array {
  const named = [...tensors.keys()].sort().map((name) => {
    const { shape, data } = tensors.get(name)!;
    return { name, shape, data, dtype: shape.length > 1 ? matrices : vectors };
  });
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let place = 0;
  for (const { name, shape, data, dtype } of named) {
    const count = shape.reduce((product, n) => product * n, 1);
    if (count !== data.length) fail(`${name} has ${data.length} numbers, its shape [${shape}] needs ${count}`);
    header[name] = { dtype, shape, data_offsets: [place, place + count * SIZES[dtype]] };
    place += count * SIZES[dtype];
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const headerBytes = Math.ceil(json.length / 8) * 8; // so that the numbers lie on a multiple of eight
  const file = new Uint8Array(8 + headerBytes + place);
  new DataView(file.buffer).setBigUint64(0, BigInt(headerBytes), true);
  file.fill(0x20, 8, 8 + headerBytes);
  file.set(json, 8);
  let at = 8 + headerBytes;
  for (const { data, dtype } of named) {
    const numbers = dtype === 'F32' ? data : narrow(data, dtype);
    const bytes = new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}
