// The policies that this isolate holds in its memory: read from R2, checked by hash, two at most. A policy is immutable,
// so what is held stays true; which of them a channel serves is asked of the database (store/keys.ts).

import type { Complete } from '../schema/completion.ts';
import { cacheBytes, type EdgeHeader } from '../schema/edge.ts';
import type { Manifest } from '../schema/manifest.ts';
import { loadTokenizer } from '../schema/tokenizer.ts';
import { hex } from './crypto.ts';
import { busy } from './error.ts';
import { completer } from './policy/complete.ts';
import module from './policy/decoder.relaxed.wasm';
import type { DecoderOptions } from './policy/decoder.ts';
import { streamedDecoder } from './policy/load.ts';
import type { Channels } from './store/keys.ts';
import { type Channel, openBlob, readBlob, readManifest } from './store/policies.ts';

export interface Loaded {
  policy: string;
  complete: Complete;
  /** Tokens of prompt and answer together. */
  context: number;
  vocabulary: number;
}

const MOST = 2;
/** Caches of keys and values, all slots together. */
const CACHE_BYTES = 32 * 2 ** 20;
const SLOTS = 16;
const PIECE = 2 ** 20;

const held = new Map<string, Loaded>(); // least recently used first
const loading = new Map<string, number>();
const failed = new Map<string, number>();
const lastGood = new Map<Channel, Loaded>();

/** As many slots as the caches' share of memory holds, of the model's own context; where it does not hold one, of a shorter one. */
function roomFor({ config, bits }: EdgeHeader): DecoderOptions {
  const positions = Math.floor(CACHE_BYTES / cacheBytes(config, bits));
  const context = Math.min(config.max_position_embeddings, positions);
  return { context, slots: Math.min(SLOTS, Math.floor(positions / context)) };
}

/** An image's bytes as they come, in pieces of a mebibyte; after the last it is told whether they were what they should be. */
async function* imageOf(bucket: R2Bucket, manifest: Manifest): AsyncGenerator<Uint8Array> {
  const { object, expected } = await openBlob(bucket, manifest, 'edge.bin');
  const digest = new crypto.DigestStream('SHA-256');
  const hash = digest.getWriter();
  const reader = object.body.getReader({ mode: 'byob' });
  let buffer = new ArrayBuffer(PIECE);
  try {
    for (;;) {
      const { value, done } = await reader.read(new Uint8Array(buffer));
      if (done) break;
      await hash.write(value);
      yield value;
      buffer = value.buffer as ArrayBuffer;
    }
  } finally {
    await reader.cancel();
  }
  await hash.close();
  if (hex(new Uint8Array(await digest.digest)) !== expected) throw new Error('edge.bin is damaged');
}

async function load(bucket: R2Bucket, manifest: Manifest): Promise<Loaded> {
  const tokenizer = loadTokenizer(
    JSON.parse(new TextDecoder().decode(await readBlob(bucket, manifest, 'tokenizer.json'))),
  );
  const decoder = await streamedDecoder(module, imageOf(bucket, manifest), roomFor);
  const complete = completer(decoder, tokenizer, manifest.tokenizer.chat_template);
  return { policy: manifest.id, complete, context: decoder.context, vocabulary: manifest.config.vocab_size };
}

function use(policy: string): Loaded | undefined {
  const loaded = held.get(policy);
  if (!loaded) return undefined;
  held.delete(policy);
  held.set(policy, loaded);
  return loaded;
}

/** Before another is loaded, not after: an isolate has no memory for a third. What a channel serves stays. */
function makeRoom(): void {
  const serving = [...lastGood.values()];
  for (const [old, loaded] of held) if (held.size >= MOST && !serving.includes(loaded)) held.delete(old);
}

/** Undefined where there is no such policy. */
export async function openPolicy(bucket: R2Bucket, policy: string): Promise<Loaded | undefined> {
  // Another request may be loading it. Its promise cannot be awaited here (no I/O on behalf of another request), and it
  // may be gone: look again until it is there or has taken too long.
  for (;;) {
    const ready = use(policy);
    if (ready) return ready;
    // One at a time, whichever it is: an isolate has no memory for several that are half loaded.
    if (![...loading.values()].some((since) => Date.now() - since < 10_000)) break;
    await scheduler.wait(10);
  }
  loading.set(policy, Date.now());
  try {
    const manifest = await readManifest(bucket, policy);
    if (!manifest) return undefined;
    makeRoom();
    const loaded = await load(bucket, manifest);
    held.set(policy, loaded);
    return loaded;
  } finally {
    loading.delete(policy);
  }
}

/** What a channel serves. A release that cannot be loaded is tried again after a while; until then the last good one stays. */
export async function openChannel(bucket: R2Bucket, channels: Channels, channel: Channel): Promise<Loaded | undefined> {
  const policy = channels[channel]?.policy;
  if (!policy) {
    lastGood.delete(channel);
    return undefined;
  }
  const last = lastGood.get(channel);
  if (!(Date.now() - (failed.get(policy) ?? 0) < 2000)) {
    try {
      const loaded = await openPolicy(bucket, policy);
      if (loaded) {
        lastGood.set(channel, loaded);
        return loaded;
      }
    } catch (error) {
      console.error(`a released policy cannot be loaded: ${error instanceof Error ? error.name : typeof error}`);
    }
    failed.set(policy, Date.now());
  }
  if (last) return last;
  throw busy('the policy cannot be loaded', 2);
}
