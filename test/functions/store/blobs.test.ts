// Files under their hashes, in workerd, where an image is streamed into a decoder.
import { expect, test } from 'vitest';
import { sha256 } from '../../../functions/crypto.ts';
import { blobKey, putBlob, readBlob, streamBlob } from '../../../functions/store/blobs.ts';
import { env } from '../support.ts';

const { BUCKET } = env;
/** More than two pieces, with an end that fills none. */
const bytes = Uint8Array.from({ length: 2 * 2 ** 20 + 777 }, (_, i) => i % 251);

async function streamed(sha: string): Promise<Uint8Array> {
  const all = new Uint8Array(bytes.length + 1);
  let length = 0;
  for await (const piece of streamBlob(BUCKET, sha)) {
    all.set(piece, length);
    length += piece.length;
  }
  return all.subarray(0, length);
}

test('what is stored comes back whole, at once or in pieces', async () => {
  const sha = await sha256(bytes);
  await putBlob(BUCKET, sha, bytes);
  expect(await sha256(await readBlob(BUCKET, sha))).toBe(sha);
  expect(await sha256(await streamed(sha))).toBe(sha);
});

test.each([
  ['another byte', () => bytes.with(2 ** 20 + 5, 255)],
  ['an end too soon', () => bytes.slice(0, -1)],
])('with %s it is damaged, read at once or in pieces', async (_, damage) => {
  const sha = await sha256(bytes);
  await BUCKET.put(blobKey(sha), damage());
  await expect(readBlob(BUCKET, sha)).rejects.toThrow(`${sha} is damaged`);
  await expect(streamed(sha)).rejects.toThrow(`${sha} is damaged`);
});

test('what is not there is said to be missing', async () => {
  const none = 'f'.repeat(64);
  await expect(readBlob(BUCKET, none)).rejects.toThrow(`the bucket has no ${none}`);
  await expect(streamed(none)).rejects.toThrow(`the bucket has no ${none}`);
});
