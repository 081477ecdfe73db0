// A policy's file that is larger than what goes to the bucket of this machine in one piece: weights of a hundred million in float32.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { sha256 } from '../../functions/crypto.ts';
import { putBlob, readBlob } from '../../functions/store/blobs.ts';
import { withStore } from '../../infra/local.ts';

/** As base64 it would be longer than the longest string there is. */
const BYTES = 410_000_000;

test('it is stored whole and read whole; a small one is not stored under another’s hash', {
  timeout: 300_000,
}, async () => {
  const home = mkdtempSync(join(tmpdir(), 'plumb-blobs-'));
  try {
    const bytes = new Uint8Array(BYTES);
    for (let i = 0; i < BYTES; i += 4093) bytes[i] = i % 251;
    bytes[BYTES - 1] = 7;
    const sha = await sha256(bytes);
    await withStore(home, async ({ BUCKET }) => {
      await putBlob(BUCKET, sha, bytes);
      const read = await readBlob(BUCKET, sha);
      expect(Buffer.compare(read, bytes)).toBe(0);

      const small = new Uint8Array([1, 2, 3]);
      await expect(putBlob(BUCKET, sha, small)).rejects.toThrow();
      const other = await sha256(small);
      await putBlob(BUCKET, other, small);
      expect([...(await readBlob(BUCKET, other))]).toEqual([1, 2, 3]);
    });
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
});
