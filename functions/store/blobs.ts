// A policy's files as the bucket holds them, under their hashes.
import { hex, sha256 } from '../crypto.ts';
import { patiently } from './patient.ts';

export const blobKey = (sha: string) => `blobs/sha256/${sha}`;

async function open(bucket: R2Bucket, sha: string): Promise<R2ObjectBody> {
  const object = await bucket.get(blobKey(sha));
  if (!object) throw new Error(`the bucket has no ${sha}`);
  return object;
}

/** A file's bytes, checked by their hash. */
export async function readBlob(bucket: R2Bucket, sha: string): Promise<Uint8Array<ArrayBuffer>> {
  // as a stream: outside of workerd the bucket's own arrayBuffer() is a string of base64 on its way, which cannot be longer than 512 MB
  const { body } = await open(bucket, sha);
  const bytes = new Uint8Array(await new Response(body).arrayBuffer());
  if ((await sha256(bytes)) !== sha) throw new Error(`${sha} is damaged`);
  return bytes;
}

/**
 * What the way from Node to the local bucket takes in one piece. It is given as a Blob: bytes would be turned into text by slow code, while
 * whose connection waits may be closed. What came in parts the local bucket gives back at a sixth of the speed, so no image that a Worker
 * has room for comes in parts.
 */
const WHOLE = 128 * 2 ** 20;
const PART = WHOLE / 2;

/** Stores a file whose hash is known to be right. One that is large goes in parts. */
export async function putBlob(bucket: R2Bucket, sha: string, bytes: Uint8Array): Promise<void> {
  const piece = (from: number, to: number) => new Blob([bytes.subarray(from, to) as Uint8Array<ArrayBuffer>]);
  if (bytes.length <= WHOLE) {
    await patiently(() => bucket.put(blobKey(sha), piece(0, bytes.length), { sha256: sha }));
    return;
  }
  const upload = await patiently(() => bucket.createMultipartUpload(blobKey(sha)));
  try {
    const parts: R2UploadedPart[] = [];
    for (let at = 0; at < bytes.length; at += PART)
      parts.push(await patiently(() => upload.uploadPart(parts.length + 1, piece(at, at + PART))));
    await patiently(() => upload.complete(parts));
  } catch (error) {
    await upload.abort();
    throw error;
  }
}

const PIECE = 2 ** 20;

/** A file's bytes as they come, in pieces of a mebibyte; after the last it is told whether they were what they should be. */
export async function* streamBlob(bucket: R2Bucket, sha: string): AsyncGenerator<Uint8Array> {
  const object = await open(bucket, sha);
  const digest = new crypto.DigestStream('SHA-256');
  const hash = digest.getWriter();
  const reader = object.body.getReader({ mode: 'byob' });
  let buffer = new ArrayBuffer(PIECE);
  try {
    for (;;) {
      // whole pieces: what comes by itself is a sixteenth of one, and each takes a turn of the event loop
      const { value } = await reader.readAtLeast(PIECE, new Uint8Array(buffer));
      if (!value?.length) break;
      await hash.write(value);
      yield value;
      buffer = value.buffer as ArrayBuffer;
    }
  } finally {
    await reader.cancel();
  }
  await hash.close();
  if (hex(new Uint8Array(await digest.digest)) !== sha) throw new Error(`${sha} is damaged`);
}
