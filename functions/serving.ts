// The policies that this isolate answers with, two at most: small ones in its own memory, read from R2 and checked by hash;
// large ones in the decoder script; and those that another server decodes. A policy is immutable, so what is held stays true; which of them a channel serves is
// asked of the database (store/keys.ts).

import type { Complete } from '../schema/completion.ts';
import { isLarge } from '../schema/edge.ts';
import type { AnyManifest } from '../schema/manifest.ts';
import { readTokenizer } from '../schema/tokenizer.ts';
import { type Env, settings } from './env.ts';
import { busy } from './error.ts';
import { completer } from './policy/complete.ts';
import module from './policy/decoder.relaxed.wasm';
import { streamedDecoder } from './policy/load.ts';
import { remoteDecoder } from './policy/remote.ts';
import { roomInApi } from './policy/room.ts';
import { upstream } from './policy/upstream.ts';
import { readBlob, streamBlob } from './store/blobs.ts';
import { type Channels, lookup, type Slot } from './store/keys.ts';
import { type Channel, hashOf, readManifest } from './store/policies.ts';

export interface Loaded {
  policy: string;
  complete: Complete;
  /** Tokens of prompt and answer together. */
  context: number;
  vocabulary: number;
  /** Of the decoder script, where it decodes there. */
  slot?: Slot;
  /** It decodes there, or at another server. */
  isElsewhere: boolean;
}

const MOST = 2;

const held = new Map<string, Loaded>(); // least recently used first
const loading = new Map<string, number>();
const failed = new Map<string, number>();
const lastGood = new Map<Channel, Loaded>();
/** What each channel was last asked to serve: one that is loaded too late, after a rollback, is not its last good one. */
const wanted = new Map<Channel, string>();

async function load(env: Env, manifest: AnyManifest, slot: Slot): Promise<Loaded> {
  const policy = manifest.id;
  if ('upstream' in manifest) {
    const key = settings(env).PLUMB_UPSTREAM_KEYS[new URL(manifest.upstream.url).origin];
    // how long a prompt may be, and which tokens there are, that server knows
    const complete = upstream(manifest.upstream, key);
    return { policy, complete, context: Infinity, vocabulary: Infinity, isElsewhere: true };
  }
  const { BUCKET, DECODER_A, DECODER_B } = env;
  const { config } = manifest;
  const template = manifest.tokenizer.chat_template;
  const image = hashOf(manifest, 'edge.bin');
  const tokenizer = hashOf(manifest, 'tokenizer.json');
  if (isLarge(config)) {
    const objects = slot === 'a' ? DECODER_A : DECODER_B;
    if (!objects) throw new Error('the policy is too large for the api, and there is no decoder script');
    const vocabulary = config.vocab_size;
    const remote = remoteDecoder(objects, policy, { image, tokenizer, chatTemplate: template, vocabulary });
    const { context } = await remote.load();
    return { policy, complete: remote.complete, context, vocabulary, slot, isElsewhere: true };
  }
  // side by side: each is a way to the bucket and back
  const [encoding, decoder] = await Promise.all([
    readBlob(BUCKET, tokenizer).then(readTokenizer),
    streamedDecoder(module, streamBlob(BUCKET, image), roomInApi),
  ]);
  const complete = completer(decoder, encoding, template);
  return { policy, complete, context: decoder.context, vocabulary: config.vocab_size, isElsewhere: false };
}

function use(policy: string, slot: Slot): Loaded | undefined {
  const loaded = held.get(policy);
  if (!loaded || (loaded.slot && loaded.slot !== slot)) return undefined;
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
export async function openPolicy(env: Env, channels: Channels, policy: string): Promise<Loaded | undefined> {
  const { stable, slot: stableSlot = 'a' } = channels;
  const slot = policy === stable?.policy ? stableSlot : stableSlot === 'a' ? 'b' : 'a';
  // Another request may be loading it. Its promise cannot be awaited here (no I/O on behalf of another request), and it
  // may be gone: look again until it is there or has taken too long.
  for (;;) {
    const ready = use(policy, slot);
    if (ready) return ready;
    // One at a time, whichever it is: an isolate has no memory for several that are half loaded.
    if (![...loading.values()].some((since) => Date.now() - since < 10_000)) break;
    await scheduler.wait(10);
  }
  loading.set(policy, Date.now());
  try {
    const manifest = await readManifest(env.BUCKET, policy);
    if (!manifest) return undefined;
    makeRoom();
    const loaded = await load(env, manifest, slot).catch((error) => {
      // of files, not of people: whoever runs it is to know which
      console.error(`${policy} cannot be loaded: ${error instanceof Error ? error.message : error}`);
      throw busy('the policy cannot be loaded', 2);
    });
    held.set(policy, loaded);
    return loaded;
  } finally {
    loading.delete(policy);
  }
}

type Waiting = Pick<ExecutionContext, 'waitUntil'>;
/** So long a request waits for what was just released before it is answered by what served until then. */
const SWAP_MS = 100;

/**
 * What a channel serves. A release that cannot be loaded is tried again after a while, and one that takes its time goes on
 * loading (`waitUntil` keeps the isolate for it); until then the last good one serves.
 */
export async function openChannel(
  env: Env,
  channels: Channels,
  channel: Channel,
  context: Waiting,
): Promise<Loaded | undefined> {
  const policy = channels[channel]?.policy;
  if (!policy) {
    lastGood.delete(channel);
    return undefined;
  }
  wanted.set(channel, policy);
  const last = lastGood.get(channel);
  if (!(Date.now() - (failed.get(policy) ?? 0) < 2000)) {
    const opening = openPolicy(env, channels, policy).then(
      (loaded) => {
        if (loaded && wanted.get(channel) === policy) lastGood.set(channel, loaded);
        if (!loaded) failed.set(policy, Date.now());
        return loaded;
      },
      () => {
        failed.set(policy, Date.now());
      },
    );
    if (last) context.waitUntil(opening);
    const loaded = await (last ? Promise.race([opening, scheduler.wait(SWAP_MS)]) : opening);
    if (loaded) return loaded;
  }
  if (last) return last;
  throw busy('the policy cannot be loaded', 2);
}

/** What was just released begins to load before anybody asks for it; a fault is told to who does. */
export function preload(env: Env, channel: Channel, context: Waiting): void {
  const load = async () => {
    const { channels } = await lookup(env.DB, undefined, true);
    await openChannel(env, channels, channel, context);
  };
  context.waitUntil(load().catch(() => {}));
}
