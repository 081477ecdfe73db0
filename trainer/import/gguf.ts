// The GGUF container (llama.cpp's model files, versions 2 and 3, little endian): a header of key-value pairs, the list of
// tensors, then their numbers. Reading copies nothing but the metadata, and trusts nothing that the file says.
//
//   "GGUF" · u32 version · u64 tensors · u64 pairs · pairs (key, type, value) · tensors (name, dimensions, type, place) · data
//
// Left out: version 1, big-endian files, files of several parts.
import { MalformedFile } from '../../schema/malformed.ts';
import { BLOCKS, type BlockFormat, nameOfType } from './blocks.ts';

export type GgufValue = number | boolean | string | GgufValue[];
export interface GgufTensor {
  format: BlockFormat;
  /** Rows first, as Hugging Face has them (the file has the innermost dimension first). */
  shape: number[];
  /** The tensor's bytes, a view of the file. */
  bytes: Uint8Array;
}
export interface Gguf {
  metadata: Map<string, GgufValue>;
  tensors: Map<string, GgufTensor>;
}

const MAX_ENTRIES = 65_536;
const MAX_DEPTH = 4;
const VALUE_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 8, 1, 8, 8, 8]; // of types 0 to 12; of strings and arrays the least, their length

const fail = (what: string): never => {
  throw new MalformedFile(`GGUF: ${what}`);
};

export function readGguf(file: Uint8Array): Gguf {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let at = 0;
  /** The place of the next n bytes, which are there. */
  const take = (n: number, what: string): number => {
    if (n > file.length - at) fail(`the file ends inside ${what}`);
    at += n;
    return at - n;
  };
  const u32 = (what: string) => view.getUint32(take(4, what), true);
  const u64 = (what: string): number => {
    const value = view.getBigUint64(take(8, what), true);
    return value <= Number.MAX_SAFE_INTEGER ? Number(value) : fail(`${what} says ${value}`);
  };
  const string = (what: string): string => {
    const length = u64(what);
    const from = take(length, what);
    try {
      return text.decode(file.subarray(from, from + length));
    } catch {
      return fail(`${what} is not UTF-8`);
    }
  };
  const value = (type: number, what: string, depth = 0): GgufValue => {
    const place = (n: number) => take(n, what);
    const whole = (big: bigint) =>
      big >= Number.MIN_SAFE_INTEGER && big <= Number.MAX_SAFE_INTEGER ? Number(big) : fail(`${what} is ${big}`);
    switch (type) {
      case 0:
        return view.getUint8(place(1));
      case 1:
        return view.getInt8(place(1));
      case 2:
        return view.getUint16(place(2), true);
      case 3:
        return view.getInt16(place(2), true);
      case 4:
        return view.getUint32(place(4), true);
      case 5:
        return view.getInt32(place(4), true);
      case 6:
        return view.getFloat32(place(4), true);
      case 7:
        return view.getUint8(place(1)) !== 0;
      case 8:
        return string(what);
      case 9: {
        if (depth === MAX_DEPTH) fail(`${what} nests arrays more than ${MAX_DEPTH} deep`);
        const inner = u32(what);
        const length = u64(what);
        const least = VALUE_BYTES[inner] ?? fail(`${what} holds values of an unknown type ${inner}`);
        // Asked before anything is allocated: a length is easily written.
        if (length * least > file.length - at) fail(`${what} says ${length} values, more than the file has room for`);
        return Array.from({ length }, () => value(inner, what, depth + 1));
      }
      case 10:
        return whole(view.getBigUint64(place(8), true));
      case 11:
        return whole(view.getBigInt64(place(8), true));
      case 12:
        return view.getFloat64(place(8), true);
      default:
        return fail(`${what} is of an unknown type ${type}`);
    }
  };

  if (file.length < 8 || view.getUint32(0, true) !== 0x46554747) fail('the file does not begin with GGUF');
  at = 4;
  const version = u32('the header');
  if (version !== 2 && version !== 3) fail(`version ${version}; supported are 2 and 3, little endian`);
  const tensorCount = u64('the number of tensors');
  const pairCount = u64('the number of metadata pairs');
  for (const [count, what] of [
    [tensorCount, 'tensors'],
    [pairCount, 'metadata pairs'],
  ] as const)
    if (count > MAX_ENTRIES) fail(`${count} ${what} are more than ${MAX_ENTRIES}`);

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < pairCount; i++) {
    const key = string(`key ${i}`);
    if (metadata.has(key)) fail(`${key} is there twice`);
    metadata.set(key, value(u32(key), key));
  }

  const found: { name: string; format: BlockFormat; shape: number[]; offset: number; bytes: number }[] = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = string(`the name of tensor ${i}`);
    const dimensions = u32(name);
    if (dimensions < 1 || dimensions > 4) fail(`${name} has ${dimensions} dimensions`);
    const shape = Array.from({ length: dimensions }, () => u64(name)).reverse();
    const type = u32(name);
    const offset = u64(name);
    const format =
      BLOCKS[type] ??
      fail(
        `${name} is ${nameOfType(type)}; supported are ${Object.values(BLOCKS)
          .map(({ name }) => name)
          .join(', ')}`,
      );
    const count = shape.reduce((product, n) => product * n, 1);
    if (count === 0 || count > Number.MAX_SAFE_INTEGER) fail(`${name} has the shape [${shape}]`);
    if (shape.at(-1)! % format.size !== 0)
      fail(`${name} has rows of ${shape.at(-1)}, not whole blocks of ${format.size} (${format.name})`);
    found.push({ name, format, shape, offset, bytes: (count / format.size) * format.bytes });
  }

  const align = metadata.get('general.alignment') ?? 32;
  if (typeof align !== 'number' || align < 1 || align > 65_536 || !Number.isInteger(Math.log2(align)))
    return fail(`general.alignment is ${align}, not a power of two`);
  const data = file.subarray(Math.min(Math.ceil(at / align) * align, file.length));
  const tensors = new Map<string, GgufTensor>();
  let end = 0;
  for (const { name, format, shape, offset, bytes } of found.sort((a, b) => a.offset - b.offset)) {
    if (tensors.has(name)) fail(`${name} is there twice`);
    if (offset % align !== 0) fail(`${name} lies at ${offset}, not a multiple of ${align}`);
    if (offset < end) fail(`${name} overlaps another tensor`);
    if (bytes > data.length - offset) fail(`${name} goes beyond the end of the file: is it whole?`);
    end = offset + bytes;
    tensors.set(name, { format, shape, bytes: data.subarray(offset, end) });
  }
  return { metadata, tensors };
}
