// Safetensors: what is written reads back, 16-bit numbers are rounded right, and a hostile header gets nowhere.
import { expect, test } from 'vitest';
import { type Dtype, floats, readSafetensors, writeSafetensors } from '../../schema/safetensors.ts';

const tensors = new Map([
  ['b', { shape: [2, 3], data: Float32Array.of(1, -2, 0.5, 1024, -0.25, 0) }],
  ['a', { shape: [], data: Float32Array.of(3) }],
  ['empty', { shape: [0, 4], data: new Float32Array() }],
]);

test.each<Dtype>(['F32', 'F16', 'BF16'])('%s goes out and comes back', (dtype) => {
  const file = writeSafetensors(tensors, dtype);
  const read = readSafetensors(file);
  expect([...read.keys()].sort()).toEqual(['a', 'b', 'empty']);
  for (const [name, { shape, data }] of tensors) {
    expect(read.get(name)!.shape).toEqual(shape);
    expect(floats(read.get(name)!)).toEqual(data);
  }
  expect(writeSafetensors(new Map([...tensors].reverse()), dtype)).toEqual(file);
});

test('vectors may be of another type than matrices', () => {
  const [matrix, vector] = [Float32Array.of(1 + 2 ** -20, 2, 3, 4), Float32Array.of(1 + 2 ** -20, 5)];
  const both = new Map([
    ['a', { shape: [2, 2], data: matrix }],
    ['b', { shape: [2], data: vector }],
  ]);
  const read = readSafetensors(writeSafetensors(both, 'BF16', 'F32'));
  expect([read.get('a')!.dtype, read.get('b')!.dtype]).toEqual(['BF16', 'F32']);
  expect([floats(read.get('a')!)[0], floats(read.get('b')!)]).toEqual([1, vector]);
});

test('F32 is not copied, unless it lies askew', () => {
  const file = writeSafetensors(tensors, 'F32');
  expect(floats(readSafetensors(file).get('b')!).buffer).toBe(file.buffer);
  const askew = new Uint8Array(file.length + 1).subarray(1);
  askew.set(file);
  expect(floats(readSafetensors(askew).get('b')!)).toEqual(tensors.get('b')!.data);
});

test('every half and every bfloat16 survives, and what lies between goes to the nearest, ties to even', () => {
  for (const dtype of ['F16', 'BF16'] as const) {
    const bits = Uint16Array.from({ length: 65_536 }, (_, i) => i);
    const stored = { dtype, shape: [65_536], bytes: new Uint8Array(bits.buffer) };
    const all = floats(stored);
    const back = readSafetensors(writeSafetensors(new Map([['x', { shape: [65_536], data: all }]]), dtype)).get('x')!;
    const words = new Uint16Array(back.bytes.slice().buffer);
    for (let i = 0; i < 65_536; i++) if (!Number.isNaN(all[i]!)) expect(words[i]).toBe(i);
    const largest = dtype === 'F16' ? 0x7bff : 0x7f7f;
    const between = Float32Array.from({ length: largest }, (_, i) => (all[i]! + all[i + 1]!) / 2);
    const rounded = floats(
      readSafetensors(writeSafetensors(new Map([['x', { shape: [largest], data: between }]]), dtype)).get('x')!,
    );
    for (let i = 0; i < largest; i++) expect(rounded[i]).toBe(all[i % 2 === 0 ? i : i + 1]);
  }
  const extremes = Float32Array.of(65_519, 65_520, -1e9, Number.NaN, Number.POSITIVE_INFINITY);
  const f16 = floats(
    readSafetensors(writeSafetensors(new Map([['x', { shape: [5], data: extremes }]]), 'F16')).get('x')!,
  );
  expect([...f16]).toEqual([
    65_504,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    Number.NaN,
    Number.POSITIVE_INFINITY,
  ]);
});

function raw(header: unknown, data = 8, length?: bigint): Uint8Array {
  const json = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + data);
  new DataView(file.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  file.set(json, 8);
  return file;
}
const f32 = (shape: unknown[], data_offsets: unknown[]) => ({ dtype: 'F32', shape, data_offsets });

test.each<[string, Uint8Array, string]>([
  ['nothing', new Uint8Array(3), 'shorter than'],
  ['a header beyond the file', raw({}, 0, 1000n), 'goes beyond the file'],
  ['a header of 2^63 bytes', raw({}, 0, 1n << 63n), 'is more than'],
  ['no JSON', raw('{"a":'), 'not JSON'],
  ['an array', raw([]), 'not an object'],
  ['an unknown type', raw({ a: { dtype: 'I64', shape: [1], data_offsets: [0, 8] } }), 'a is I64'],
  [
    'a type that every object has',
    raw({ a: { dtype: 'toString', shape: [1], data_offsets: [0, 8] } }),
    'a is toString',
  ],
  ['a negative shape', raw({ a: f32([-2], [0, 8]) }), 'a: '],
  ['a shape of fractions', raw({ a: f32([0.5, 4], [0, 8]) }), 'a: '],
  ['a huge shape', raw({ a: f32([2 ** 40, 2 ** 40], [0, 8]) }), 'needs'],
  ['offsets backwards', raw({ a: f32([2], [8, 0]) }), 'lies at 8–0'],
  ['offsets beyond', raw({ a: f32([4], [0, 16]) }), 'lies at 0–16'],
  ['an overlap', raw({ a: f32([2], [0, 8]), b: f32([1], [4, 8]) }), 'b overlaps'],
  ['a hole', raw({ a: f32([1], [4, 8]) }), '4 bytes before a'],
  ['bytes left over', raw({ a: f32([1], [0, 4]) }), '4 bytes at the end'],
  ['a shape that does not fit', raw({ a: f32([3], [0, 8]) }), 'needs 12'],
  ['a shape that leaves bytes over', raw({ a: f32([1], [0, 8]) }), 'needs 4'],
  ['a field too many', raw({ a: { ...f32([2], [0, 8]), x: 1 } }), 'a: '],
])('%s is refused', (_, file, message) => {
  expect(() => readSafetensors(file)).toThrow(message);
});
