// A policy that is too large for the api's isolate: imported, released, decoded in the decoder script's slots, and swapped under load.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ISOLATE_HEADER } from '../../functions/policy/remote.ts';
import { heapOf, ISOLATE } from '../../functions/policy/room.ts';
import { blobKey } from '../../functions/store/blobs.ts';
import { importPolicy } from '../../functions/store/policies.ts';
import { freePort } from '../../infra/home.ts';
import { startDecoder, startLocal, withStore } from '../../infra/local.ts';
import { isLarge, unpackEdge } from '../../schema/edge.ts';
import { ModelConfig } from '../../schema/manifest.ts';
import { writeSafetensors } from '../../schema/safetensors.ts';
import { filesOf, manifestOf } from '../../trainer/manifest.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';
import { randomModel } from '../support/model.ts';
import { SEED_FOLDER } from '../support/seed.ts';

const MINUTES = 60_000;
let local: TestLocal;
const ids: string[] = [];
let third: string; // with another tokenizer
const images: Uint8Array[] = [];

/** A policy of 18 M parameters with the seed policy's tokenizer, or one that merges nothing, and random weights. */
function large(seed: number, merges = true) {
  const seedPolicy = readPolicy(SEED_FOLDER);
  const { file } = seedPolicy.tokenizer;
  if (!merges) seedPolicy.files['tokenizer.json'] = JSON.stringify({ ...file, model: { ...file.model, merges: [] } });
  const config = ModelConfig.parse({
    ...seedPolicy.config,
    hidden_size: 512,
    intermediate_size: 1536,
    num_hidden_layers: 5,
    num_attention_heads: 8,
    num_key_value_heads: 2,
  });
  expect(isLarge(config)).toBe(true);
  const policy = { ...seedPolicy, config };
  const tensors = randomModel(config, seed);
  const files = filesOf(policy, writeSafetensors(tensors, 'BF16'), tensors);
  images.push(files.get('edge.bin')!);
  return { manifest: manifestOf(policy, files, `large ${seed}`), files };
}

beforeAll(async () => {
  local = await startTestLocal();
  for (const seed of [1, 2]) {
    const { manifest, files } = large(seed);
    await withStore(local.home, ({ DB, BUCKET }) =>
      importPolicy(DB, BUCKET, manifest, Object.fromEntries(files), ids.length === 0 ? 'stable' : undefined),
    );
    ids.push(manifest.id);
  }
  const { manifest, files } = large(4, false);
  await withStore(local.home, ({ DB, BUCKET }) => importPolicy(DB, BUCKET, manifest, Object.fromEntries(files)));
  third = manifest.id;
}, 3 * MINUTES);
afterAll(() => local?.close(), MINUTES);

interface Answer {
  model: string;
  choices: { message: { content: string }; finish_reason: string; sample_id: string }[];
  usage: { prompt_tokens: number; completion_tokens: number };
}
const asked = (body: object = {}) => ({
  model: 'stable',
  messages: [{ role: 'user', content: 'Where is my order?' }],
  max_tokens: 12,
  seed: 1,
  user: 'ada',
  ...body,
});
const chat = (body: object = {}) => local.api<Answer>('POST', '/v1/chat/completions', asked(body));
const post = (body: object, signal?: AbortSignal) => local.ask('POST', '/v1/chat/completions', asked(body), signal);

test(
  'it is served in 4 bits, the same for the same seed, and its samples are stored',
  async () => {
    await expect.poll(async () => (await chat()).model, { timeout: 30_000 }).toBe(ids[0]);
    const image = unpackEdge(images[0]!);
    expect(image.config.hidden_size).toBe(512);
    const [first, second] = [await chat(), await chat()];
    expect(first.choices[0]!.message.content).toBe(second.choices[0]!.message.content);
    expect((await chat({ seed: 2 })).choices[0]!.message.content).not.toBe(first.choices[0]!.message.content);
    const { text, policy } = await local.api<{ text: string; policy: string }>(
      'GET',
      `/v1/samples/${first.choices[0]!.sample_id}`,
    );
    expect([text, policy]).toEqual([first.choices[0]!.message.content, ids[0]]);
    const many = await chat({ n: 4, temperature: 1 });
    expect(new Set(many.choices.map(({ message }) => message.content)).size).toBe(4);
  },
  MINUTES,
);

test(
  'it streams as it decodes, and a client that leaves stops it',
  async () => {
    const leaving = new AbortController();
    const endless = { stream: true, max_tokens: 150, logit_bias: { 1: -100, 2: -100 } };
    const response = await post(endless, leaving.signal);
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let pieces = 0;
    let sample = '';
    while (pieces < 8) {
      const { value, done } = await reader.read();
      if (done) break;
      for (const [, data] of value.matchAll(/^data: (\{.*)$/gm)) {
        const [choice] = JSON.parse(data!).choices;
        sample ||= choice.sample_id;
        if (choice.delta.content) pieces++;
      }
    }
    expect(pieces).toBeGreaterThanOrEqual(8);
    leaving.abort();
    const stored = () =>
      local
        .api<{ finish_reason: string; completion_tokens: number }>('GET', `/v1/samples/${sample}`)
        .catch(() => undefined);
    await expect.poll(async () => (await stored())?.finish_reason, { timeout: 10_000 }).toBe('abort');
    expect((await stored())!.completion_tokens).toBeLessThan(140);
  },
  MINUTES,
);

test(
  'a client that leaves before its answer is whole stops it as well',
  async () => {
    const long = { max_tokens: 200, n: 16, logit_bias: { 1: -100, 2: -100 } };
    const seconds = async () => {
      const started = performance.now();
      expect((await chat(long)).choices).toHaveLength(16);
      return (performance.now() - started) / 1000;
    };
    const alone = await seconds();
    const leaving = new AbortController();
    const left = [2, 3, 4, 5].map((seed) =>
      post({ ...long, seed }, leaving.signal).then((response) => response.text()),
    );
    await new Promise((resolve) => setTimeout(resolve, 3000));
    leaving.abort();
    expect(new Set((await Promise.allSettled(left)).map(({ status }) => status))).toEqual(new Set(['rejected']));
    expect(await seconds()).toBeLessThan(2 * alone); // all of them together take five times as long
  },
  MINUTES,
);

test(
  'what cannot be asked is the client’s fault, in words',
  async () => {
    const long = await post({ messages: [{ role: 'user', content: 'Where is it? '.repeat(400) }] });
    expect(long.status).toBe(400);
    expect(await long.json()).toMatchObject({ error: { code: 'context_length_exceeded' } });
  },
  MINUTES,
);

test(
  'after a burst, those who come at once are answered at once',
  async () => {
    for (let round = 0; round < 3; round++) {
      const burst = Array.from({ length: 60 }, (_, i) => post({ user: `of a burst ${i}`, max_tokens: 1 }));
      for (const response of await Promise.all(burst)) await response.text();
      const few = Array.from({ length: 4 }, (_, i) => post({ user: `later ${round} ${i}` }));
      const statuses = (await Promise.all(few)).map(({ status }) => status);
      expect(statuses).toEqual([200, 200, 200, 200]);
    }
  },
  MINUTES,
);

test(
  'beyond what it has room for it says when to come back, as OpenAI’s clients expect it',
  async () => {
    const crowd = Array.from({ length: 120 }, (_, i) => post({ user: `one of many ${i}`, max_tokens: 100, seed: i }));
    const responses = await Promise.all(crowd);
    const answered = responses.filter(({ status }) => status === 200);
    const refused = responses.filter(({ status }) => status === 429);
    expect(answered.length + refused.length).toBe(crowd.length);
    expect(answered.length).toBeGreaterThan(30);
    expect(refused.length).toBeGreaterThan(0);
    expect(Number(refused[0]!.headers.get('retry-after'))).toBeGreaterThan(0);
    expect(await refused[0]!.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'decoder_busy' } });
    await Promise.all(answered.map((response) => response.text()));
  },
  MINUTES,
);

test(
  'what takes a slot over from a policy with another tokenizer speaks its own',
  async () => {
    const tokens = async (model: string) => (await chat({ model })).usage.prompt_tokens;
    const merged = await tokens(ids[1]!);
    expect(await tokens(third)).toBeGreaterThan(2 * merged);
    expect(await tokens(ids[1]!)).toBe(merged);
  },
  MINUTES,
);

/** The decoder script by itself over these policies, its objects open to who calls one. */
async function openDecoder(made: ReturnType<typeof large>[]) {
  const home = mkdtempSync(join(tmpdir(), 'plumb-objects-'));
  for (const { manifest, files } of made)
    await withStore(home, ({ DB, BUCKET }) => importPolicy(DB, BUCKET, manifest, Object.fromEntries(files)));
  const decoder = await startDecoder(home, 'a', { entrypoint: join(import.meta.dirname, '../support/objects.ts') });
  const url = await decoder.url;
  return {
    home,
    async call(of: (typeof made)[0], object: number, over: object = {}, patience = 60_000, vocabulary = 512) {
      const hash = (name: string) => of.manifest.files.find((file) => file.name === name)!.sha256;
      const input = { prompt: 'Where is my order?' };
      const request = { input, n: 1, maxTokens: 12, temperature: 0, topP: 1, seed: 1, stop: [], ...over };
      const response = await fetch(url, {
        method: 'POST',
        headers: { patience: `${patience}` },
        body: JSON.stringify({
          ...{ policy: of.manifest.id, object, image: hash('edge.bin'), tokenizer: hash('tokenizer.json') },
          ...{ chatTemplate: of.manifest.tokenizer.chat_template, vocabulary },
          request: { ...request, logitBias: [[1, -100]] },
        }),
      });
      return { status: response.status, isolate: response.headers.get(ISOLATE_HEADER), text: await response.text() };
    },
    async close() {
      await decoder.dispose();
      rmSync(home, { recursive: true });
    },
  };
}

test(
  'of two objects in an isolate one decodes: the other names it, or goes on with its weights where it is idle',
  async () => {
    const policy = large(5);
    const { home, call, close } = await openDecoder([policy]);
    try {
      const first = await call(policy, 0);
      expect(first.text).toMatch(/"completionTokens":12\}\n$/);
      // from here on nothing can be loaded
      const image = policy.manifest.files.find(({ name }) => name === 'edge.bin')!;
      await withStore(home, ({ BUCKET }) => BUCKET.delete(blobKey(image.sha256)));
      expect(await call(policy, 1)).toEqual(first);
      const long = call(policy, 1, { maxTokens: 200, n: 8 });
      await new Promise((resolve) => setTimeout(resolve, 100));
      const { text: refusal, ...refused } = await call(policy, 0);
      expect(refused).toEqual({ status: 429, isolate: first.isolate });
      expect(JSON.parse(refusal)).toMatchObject({ type: 'busy', owner: 1 });
      expect((await long).text).toMatch(/"completionTokens":200\}\n$/);
      expect(await call(policy, 0)).toEqual(first);
      const crowd = await Promise.all(Array.from({ length: 60 }, () => call(policy, 0, { maxTokens: 60 })));
      const busy = crowd.filter(({ status }) => status === 429).map(({ text }) => JSON.parse(text).owner);
      expect(new Set(busy)).toEqual(new Set([0]));
    } finally {
      await close();
    }
  },
  MINUTES,
);

test(
  'a policy with too many tokens for an isolate whose memory another has made large is refused there, and the other goes on',
  async () => {
    const [policy, other] = [large(5), large(6)];
    const { home, call, close } = await openDecoder([policy, other]);
    try {
      const first = await call(policy, 0);
      const image = policy.manifest.files.find(({ name }) => name === 'edge.bin')!;
      await withStore(home, ({ BUCKET }) => BUCKET.delete(blobKey(image.sha256))); // it cannot be loaded again
      let many = 2 ** 20; // so many that there would be no room beside the image alone
      while (heapOf({ vocab_size: many }) < ISOLATE - image.bytes) many += 2 ** 10;
      const { text, ...refused } = await call(other, 0, {}, 60_000, many);
      expect(refused).toEqual({ status: 429, isolate: first.isolate });
      expect(JSON.parse(text)).toEqual({
        type: 'busy',
        message: expect.stringMatching(/^a policy before has left .* an isolate that is started anew has room$/),
      });
      expect(await call(policy, 0)).toEqual(first);
      expect((await call(other, 0)).status).toBe(200); // with as few as it has
    } finally {
      await close();
    }
  },
  MINUTES,
);

test(
  'who leaves while it waits for its turn takes nothing from those that are answered',
  async () => {
    const [policy, other] = [large(5), large(5, false)]; // the same weights, but another tokenizer
    const { call, close } = await openDecoder([policy, other]);
    try {
      const long = { maxTokens: 200, n: 16 }; // twice as many as there is room for at once
      const alone = await call(policy, 0, long);
      const answer = call(policy, 0, long);
      await new Promise((resolve) => setTimeout(resolve, 100));
      expect((await call(policy, 0, { input: { prompt: 'What is this?' } }, 100)).status).toBe(499);
      const { status, text } = await call(other, 0);
      expect([status, JSON.parse(text).message]).toEqual([429, 'another policy decodes here']);
      const said = ({ text }: typeof alone) => text.split('\n').sort(); // whose piece comes first is chance
      expect(said(await answer)).toEqual(said(alone));
      const promptTokens = async (of: typeof policy) =>
        JSON.parse((await call(of, 0)).text.split('\n')[0]!).promptTokens;
      const merged = await promptTokens(policy);
      expect(await promptTokens(other)).toBeGreaterThan(2 * merged);
    } finally {
      await close();
    }
  },
  MINUTES,
);

test(
  'who leaves at once, or while the policy loads, does not keep the decoder',
  async () => {
    const [policy, other] = [large(5), large(6)];
    const { call, close } = await openDecoder([policy, other]);
    try {
      for (const patience of [0, 5, 30]) {
        await call(policy, 0, {}, patience); // loads
        await expect.poll(async () => (await call(policy, 1)).status, { timeout: 10_000 }).toBe(200);
        await call(policy, 1, { maxTokens: 200, n: 16 }, patience);
        await expect.poll(async () => (await call(other, 0)).status, { timeout: 10_000 }).toBe(200);
      }
    } finally {
      await close();
    }
  },
  MINUTES,
);

test(
  'a slot is not taken over while an answer is under way there',
  async () => {
    const long = { model: ids[1], max_tokens: 200, seed: 3 };
    const whole = (await chat(long)).choices[0]!.message.content;
    const stream = (await post({ ...long, stream: true })).body!.pipeThrough(new TextDecoderStream()).getReader();
    const pieces = [(await stream.read()).value!];
    expect([429, 503]).toContain((await post({ model: third })).status);
    for (let piece = await stream.read(); !piece.done; piece = await stream.read()) pieces.push(piece.value);
    const chunks = pieces.join('').match(/(?<=^data: )\{.*/gm)!;
    const texts = chunks.map((chunk) => JSON.parse(chunk).choices[0]?.delta.content ?? '');
    expect(texts.join('')).toBe(whole);
  },
  MINUTES,
);

test(
  'an image that cannot be read fails who asks for it, and is read again when it is asked for again',
  async () => {
    const { manifest, files } = large(3);
    const key = blobKey(manifest.files.find(({ name }) => name === 'edge.bin')!.sha256);
    await withStore(local.home, async ({ DB, BUCKET }) => {
      await importPolicy(DB, BUCKET, manifest, Object.fromEntries(files));
      await BUCKET.delete(key);
    });
    const ask = () => post({ model: manifest.id });
    expect((await ask()).status).toBe(503);
    expect((await chat()).model).toBe(ids[0]); // the others are served
    await withStore(local.home, async ({ BUCKET }) => {
      await BUCKET.put(key, files.get('edge.bin')!);
    });
    expect((await ask()).status).toBe(200);
  },
  MINUTES,
);

test(
  'a release under load: no request is lost, and within seconds the other policy answers',
  async () => {
    let swapping = true;
    const statuses: number[] = [];
    const models: string[] = [];
    const load = [1, 2, 3].map(async (who) => {
      while (swapping) {
        const response = await post({ user: `user ${who}`, seed: models.length, max_tokens: 8 });
        statuses.push(response.status);
        models.push(((await response.json()) as Answer).model);
      }
    });
    await expect.poll(() => models.length, { timeout: 20_000 }).toBeGreaterThan(5);
    await local.api('POST', '/v1/releases', { channel: 'stable', policy: ids[1] });
    await expect.poll(() => models.at(-1), { timeout: 20_000 }).toBe(ids[1]);
    swapping = false;
    await Promise.all(load);
    expect(new Set(statuses)).toEqual(new Set([200]));
    expect(new Set(models)).toEqual(new Set(ids));
    const { data } = await local.api<{ data: { policy: string }[] }>('GET', '/v1/releases?channel=stable&order=desc');
    expect(data[0]!.policy).toBe(ids[1]);
  },
  MINUTES,
);

test(
  'where a start was killed, the next one asks its own decoders, not those that are gone',
  async () => {
    const home = mkdtempSync(join(tmpdir(), 'plumb-killed-'));
    const { manifest, files } = large(4);
    await withStore(home, ({ DB, BUCKET }) => importPolicy(DB, BUCKET, manifest, Object.fromEntries(files), 'stable'));
    // what a process leaves that is given no time to
    const registry = join(home, 'state/registry');
    cpSync(join(local.home, 'state/registry'), registry, { recursive: true });
    for (const name of readdirSync(registry)) {
      const path = join(registry, name);
      writeFileSync(path, readFileSync(path, 'utf8').replace(/127\.0\.0\.1:\d+/, `127.0.0.1:${await freePort()}`));
    }
    const again = await startLocal({ home, port: await freePort(), cronSeconds: 86_400 });
    try {
      const response = await fetch(`${again.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${again.keys.secret}`, 'content-type': 'application/json' },
        body: JSON.stringify(asked()),
      });
      expect([response.status, ((await response.json()) as Answer).model]).toEqual([200, manifest.id]);
    } finally {
      await again.close();
      rmSync(home, { recursive: true });
    }
  },
  MINUTES,
);
