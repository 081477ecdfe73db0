// Metrics as TensorBoard reads them: a folder of event files for each stage. An event file is a row of records, and a record is
//
//   length (8 bytes) | masked CRC32C of it (4) | an Event message (length) | masked CRC32C of that (4)
//
// all numbers little-endian (tensorflow/core/lib/io/record_writer.h). An Event (tensorflow/core/util/event.proto) is a protobuf message of
// few fields, written here by hand: the key of field n is n·8 + its wire type (0 varint, 1 eight bytes, 2 a length and so many bytes, 5 four bytes).

import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeFolder, writing } from './folder.ts';
import type { Report } from './metrics.ts';

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});
/** CRC-32 by Castagnoli's polynomial. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff]!;
  return (crc ^ 0xffffffff) >>> 0;
}
/** Rotated and moved, so that a checksum of data that holds checksums is none of theirs. */
const masked = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
};

const join8 = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
function number(bytes: 4 | 8, write: (view: DataView) => void): Uint8Array {
  const out = new Uint8Array(bytes);
  write(new DataView(out.buffer));
  return out;
}
const uint32 = (value: number) => number(4, (view) => view.setUint32(0, value, true));
const float = (value: number) => number(4, (view) => view.setFloat32(0, value, true));
const double = (value: number) => number(8, (view) => view.setFloat64(0, value, true));
function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Uint8Array.from([...bytes, value]);
}
const key = (field: number, wire: 0 | 1 | 2 | 5) => varint(field * 8 + wire);
const sized = (field: number, bytes: Uint8Array) => join8(key(field, 2), varint(bytes.length), bytes);
const text = (field: number, value: string) => sized(field, new TextEncoder().encode(value));

function record(data: Uint8Array): Uint8Array {
  const length = join8(uint32(data.length), uint32(0));
  return join8(length, uint32(masked(length)), data, uint32(masked(data)));
}
/** Event: wall_time = 1, step = 2, and one of file_version = 3, summary = 5, session_log = 7. */
const event = (seconds: number, step: number, what: Uint8Array) =>
  record(join8(key(1, 1), double(seconds), key(2, 0), varint(step), what));
const version = text(3, 'brain.Event:2');
/** Summary: value = 1, of which tag = 1 and simple_value = 2. */
const summary = (metrics: Record<string, number>) =>
  sized(
    5,
    join8(...Object.entries(metrics).map(([tag, value]) => sized(1, join8(text(1, tag), key(2, 5), float(value))))),
  );
/** SessionLog: status = 1, START = 1. What an earlier file has from this step on counts no more. */
const started = sized(7, join8(key(1, 0), varint(1)));

/** Writes each stage's metrics to `<folder>/<stage>/events.out.tfevents.…`, a file for each process. */
export function toTensorBoard(folder: string): Report {
  const files = new Map<string, string>();
  return ({ stage, step, metrics }) => {
    const seconds = Date.now() / 1000;
    let path = files.get(stage);
    const parts: Uint8Array[] = [];
    if (!path) {
      makeFolder(join(folder, stage));
      // files are read in the order of their names
      path = join(folder, stage, `events.out.tfevents.${Date.now()}.${process.pid}.plumb`);
      files.set(stage, path);
      parts.push(event(seconds, 0, version), event(seconds, step, started));
    }
    parts.push(event(seconds, step, summary(metrics)));
    const file = path;
    writing(file, () => appendFileSync(file, join8(...parts)));
  };
}
