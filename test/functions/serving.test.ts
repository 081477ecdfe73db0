import { expect, test } from 'vitest';
import { openChannel, openPolicy } from '../../functions/serving.ts';
import { importPolicy, putManifest } from '../../functions/store/policies.ts';
import { ask, env, keyOf, watchedBucket } from './support.ts';
import { tinyPolicy } from './tiny.ts';

/** The policies of these seeds, and a bucket that notes whose image is read. */
async function policies(...seeds: number[]) {
  const images = new Map<string, string>();
  const ids: string[] = [];
  for (const seed of seeds) {
    const { manifest, files } = await tinyPolicy(seed);
    await importPolicy(env.DB, env.BUCKET, manifest, files);
    images.set(`blobs/sha256/${manifest.files.find(({ name }) => name === 'edge.bin')!.sha256}`, manifest.id);
    ids.push(manifest.id);
  }
  const read: string[] = [];
  const bucket = watchedBucket((key) => {
    if (images.has(key)) read.push(images.get(key)!);
  });
  return { ids, read, bucket };
}

test('an isolate holds two policies; for a third, the one that was not used for longest is given up', async () => {
  const { ids, read, bucket } = await policies(1, 2, 3);
  const [a, b, c] = ids as [string, string, string];
  for (const id of [a, b, a, c, a, b]) expect((await openPolicy({ ...env, BUCKET: bucket }, {}, id))!.policy).toBe(id);
  expect(read).toEqual([a, b, c, b]);
});

/** The bucket, whose blobs take until then. */
const slowed = (bucket: R2Bucket, until: Promise<void>): R2Bucket =>
  new Proxy(bucket, {
    get: (target, name) =>
      name === 'get'
        ? async (key: string) => {
            if (key.startsWith('blobs/')) await until;
            return target.get(key);
          }
        : Reflect.get(target, name).bind(target),
  });

test('a release that takes its time goes on loading while the last good one answers', async () => {
  const { ids, bucket } = await policies(7, 8);
  const [old, fresh] = ids as [string, string];
  const held = Promise.withResolvers<void>();
  const slow = slowed(bucket, held.promise);
  const kept: Promise<unknown>[] = [];
  const open = (BUCKET: R2Bucket, policy: string) =>
    openChannel({ ...env, BUCKET }, { stable: { policy, share: 1 } }, 'stable', {
      waitUntil: (loading) => void kept.push(loading),
    });
  expect((await open(bucket, old))!.policy).toBe(old);
  expect(kept).toEqual([]);
  const began = Date.now();
  expect((await open(slow, fresh))!.policy).toBe(old);
  expect(Date.now() - began).toBeLessThan(1000);
  expect(kept).toHaveLength(1);
  held.resolve();
  await kept[0]; // what waitUntil keeps the isolate for
  expect((await open(slow, fresh))!.policy).toBe(fresh);
});

test('what is loaded only after it was rolled back does not serve', async () => {
  const { ids, bucket } = await policies(31, 32);
  const [old, fresh] = ids as [string, string];
  const held = Promise.withResolvers<void>();
  const kept: Promise<unknown>[] = [];
  const open = (BUCKET: R2Bucket, policy: string) =>
    openChannel({ ...env, BUCKET }, { stable: { policy, share: 1 } }, 'stable', {
      waitUntil: (loading) => void kept.push(loading),
    });
  await open(bucket, old);
  await open(slowed(bucket, held.promise), fresh);
  await open(bucket, old);
  held.resolve();
  await Promise.all(kept);
  expect((await open(bucket, 'pol_that_is_not_there'))!.policy).toBe(old);
});

test('what a channel serves is never given up', async () => {
  const { ids, read, bucket } = await policies(4, 5, 6);
  const [a, b, c] = ids as [string, string, string];
  const stable = { stable: { policy: a, share: 1 } };
  await openChannel({ ...env, BUCKET: bucket }, stable, 'stable', { waitUntil() {} });
  for (const id of [b, c, b]) await openPolicy({ ...env, BUCKET: bucket }, stable, id);
  expect((await openChannel({ ...env, BUCKET: bucket }, stable, 'stable', { waitUntil() {} }))!.policy).toBe(a);
  expect(read).toEqual([a, b, c, b]);
});

test('a large policy moves to the slot that stable has left', async () => {
  const { manifest } = await tinyPolicy(10);
  const large = {
    ...manifest.config,
    vocab_size: 49_152,
    hidden_size: 576,
    intermediate_size: 1536,
    num_attention_heads: 9,
  };
  await putManifest(env.BUCKET, { ...manifest, config: large });
  const slots: string[] = [];
  const slot = (name: string) => {
    const fetch = async () => {
      slots.push(name);
      return Response.json({ context: 128 });
    };
    return { getByName: () => ({ fetch }) } as unknown as DurableObjectNamespace;
  };
  const open = async (stableSlot: 'a' | 'b') => {
    const channels = { stable: { policy: 'another', share: 1 }, slot: stableSlot };
    return (await openPolicy({ ...env, DECODER_A: slot('a'), DECODER_B: slot('b') }, channels, manifest.id))!.slot;
  };
  expect([await open('a'), await open('a'), await open('b')]).toEqual(['b', 'b', 'a']);
  expect(slots).toEqual(['b', 'a']);
});

test('what is released, or gone back to, begins to load before anybody asks for it', async () => {
  const { ids, read, bucket } = await policies(21, 22, 23);
  const [a, b, c] = ids as [string, string, string];
  const watched = { ...env, BUCKET: bucket };
  const key = await keyOf('sk');
  const post = async (path: string, body: object) =>
    expect((await ask('POST', path, { key, env: watched, body: { channel: 'stable', ...body } })).status).toBe(201);
  await post('/v1/releases', { policy: a });
  await expect.poll(() => read).toEqual([a]);
  await post('/v1/releases', { policy: b });
  await expect.poll(() => read).toEqual([a, b]);
  await openPolicy(watched, { stable: { policy: b, share: 1 } }, c); // in the place of the first
  await post('/v1/releases/rollback', {});
  await expect.poll(() => read).toEqual([a, b, c, a]);
});
