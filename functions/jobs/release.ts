// The end of a run: its blobs looked for, its manifest written, its row and release made in one batch under its fence.
import type { Publish, Release } from '../../schema/wire-runs.ts';
import type { Env } from '../env.ts';
import { ApiError, at } from '../error.ts';
import { requireWorkerRoom } from '../policy/room.ts';
import { blobKey } from '../store/blobs.ts';
import { checkManifest, endedBefore, endRun, gone } from '../store/jobs.ts';
import { forget } from '../store/keys.ts';
import { putManifest, readManifest } from '../store/policies.ts';
import { isActive, readRun } from '../store/runs.ts';

export async function publish(env: Env, id: string, body: Publish): Promise<Release | null> {
  const found = await readRun(env.DB, id);
  if (!found) throw gone();
  const run = found.row;
  if (!isActive(run)) {
    const before = await endedBefore(env.DB, run, body);
    if (!before) throw gone();
    return before.release;
  }
  if (run.fence !== body.fence) throw new ApiError(409, 'stale fence: the run is another trainer’s now');

  const { manifest } = body;
  if (manifest) {
    const base = await readManifest(env.BUCKET, run.base_policy);
    const wrong = base && 'config' in base ? checkManifest(run, base, manifest) : 'has no base';
    if (wrong) throw at(422, 'manifest', wrong);
    try {
      requireWorkerRoom(manifest.config);
    } catch (error) {
      if (error instanceof RangeError) throw at(422, 'manifest.config', error.message);
      throw error;
    }
    for (const [i, file] of manifest.files.entries()) {
      const head = await env.BUCKET.head(blobKey(file.sha256));
      if (head?.size !== file.bytes) throw at(422, `manifest.files[${i}]`, 'was not uploaded');
    }
    const known = await readManifest(env.BUCKET, manifest.id);
    if (known && JSON.stringify(known) !== JSON.stringify(manifest)) throw at(422, 'manifest.id', 'is another policy');
    await putManifest(env.BUCKET, manifest);
  }
  const release = await endRun(env.DB, run, body);
  forget(env.DB);
  return release;
}
