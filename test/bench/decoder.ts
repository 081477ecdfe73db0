// One thread's tokens a second. Of answers of the seed policy, prompts' prefill included: the wasm decoder that serves beside its oracle, the
// plain TypeScript one. And of SmolLM2-135M in 4 bits: beside llama.cpp, beside the same in 8 bits, and beside what the processor could do at
// best. Then whole answers by two threads, as the trainer draws them, and what 8 and 4 bits cost in perplexity.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Decoder, slotStarts } from '../../functions/policy/decoder.ts';
import { generateBatch } from '../../functions/policy/generate.ts';
import { loadDecoder } from '../../functions/policy/node.ts';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { cacheBytes, packEdge, readEdge, unpackEdge } from '../../schema/edge.ts';
import { readTensors } from '../../schema/safetensors.ts';
import { encode } from '../../schema/tokenizer.ts';
import { exportTo } from '../../trainer/export/export.ts';
import { openGguf, tensorsOf } from '../../trainer/import/from-gguf.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { random } from '../../trainer/random.ts';
import { startSampler } from '../../trainer/rollout.ts';
import { loggedAnswer, tickets } from '../../trainer/seed/world.ts';
import { randomModel, tinyConfig } from '../support/model.ts';
import { seedPolicy } from '../support/seed.ts';
import { compared, median, type Pair, pair } from './pair.ts';
import { llama, startLlama, startPeer } from './peers.ts';
import { bandwidth, dotProducts, layerWeights, productsPerToken, roofed } from './rooflines.ts';

/** Of the prompt whose prefill is timed. */
const PREFILL = 512;
/** Every answer runs to this length, so that both sides do the same work. */
const ANSWER = 32;

export async function* decoder(): AsyncGenerator<Pair> {
  const { folder, policy } = seedPolicy();
  const image = importFrom(folder, 'seed').files.get('edge.bin')!;
  const prompts = tickets('judging', 1, 64).map((ticket) =>
    policy.encodePrompt([{ role: 'user', content: ticket.text }]),
  );
  const rate = (decode: Decoder, answers: number): number => {
    const asked = prompts.slice(0, answers);
    const started = performance.now();
    generateBatch(decode, asked, { maxTokens: ANSWER, temperature: 1, stopIds: [], seeds: asked.map((_, i) => i) });
    return (1000 * answers * ANSWER) / (performance.now() - started);
  };

  for (const batch of [1, 16]) {
    const ours = loadDecoder(image, { slots: batch });
    const theirs = referenceDecoder(policy.config, unpackEdge(image).tensors, { slots: batch });
    rate(ours, 16);
    rate(theirs, 2);
    yield await pair({
      name: `decoder/seed policy, batch ${batch}`,
      unit: 'tok/s',
      more: true,
      goal: 8,
      ours: () => rate(ours, 64),
      theirs: () => rate(theirs, Math.max(4, batch)),
      note: 'wasm beside plain TypeScript, one thread',
    });
  }

  yield* besideLlama();
}

/** SmolLM2-135M on one thread, beside llama.cpp on the same file, and beside what the processor could do at best. */
async function* besideLlama(): AsyncGenerator<Pair> {
  const path = await smollm2();
  const model = readPolicy(path).config;
  const tensors = tensorsOf(openGguf(path));
  const coarse = packEdge(model, tensors, 4);
  const many = loadDecoder(coarse, { context: 160, slots: 16 });
  const image8 = packEdge(model, tensors, 8);
  const fine = loadDecoder(image8, { context: 160 });
  /** So many sequences decode side by side, 128 tokens in all each time. */
  const decode = (of: Decoder, sequences: number): number => {
    const slots = Array.from({ length: sequences }, (_, i) => i);
    const starts = slotStarts(of).slice(0, sequences);
    const started = performance.now();
    for (let at = 0; at < 128 / sequences; at++)
      of.forward(
        slots.map((slot) => 100 + slot),
        slots.map(() => at),
        starts,
        slots,
      );
    return 128_000 / (performance.now() - started);
  };
  decode(many, 16);
  decode(fine, 1);
  const row = { unit: 'tok/s', more: true };
  const single = () => decode(many, 1);
  const alone = { bytes: coarse.length, products: productsPerToken(model) };

  const folder = mkdtempSync(join(tmpdir(), 'plumb-bench-'));
  try {
    const files = { Q4_0: join(folder, 'q4_0.gguf'), Q4_1: path };
    llama(['quantise', path, 'Q4_0', files.Q4_0]);
    for (const [type, goal] of [
      ['Q4_0', 1.5],
      ['Q4_1', 2],
    ] as const) {
      const peer = await startLlama('decode', files[type]);
      const name = `decoder/decode 1 vs llama.cpp ${type}`;
      const note = 'in Node, one thread each';
      yield roofed(await pair({ ...row, name, goal, ours: single, theirs: () => peer.rate(128), note }), alone);
      peer.close();
    }

    const long = loadDecoder(coarse, { context: PREFILL + 8 });
    const prompt = Array.from({ length: PREFILL }, (_, i) => 100 + i);
    const prefill = (): number => {
      const started = performance.now();
      for (let at = 0; at < PREFILL; at += long.rows) {
        const part = prompt.slice(at, at + long.rows);
        const isLast = at + part.length === PREFILL;
        long.forward(
          part,
          part.map((_, i) => at + i),
          part.map(() => 0),
          isLast ? [part.length - 1] : [],
        );
      }
      return (1000 * PREFILL) / (performance.now() - started);
    };
    prefill();
    const peer = await startLlama('prefill', files.Q4_0);
    const paired = await pair({
      ...row,
      name: 'decoder/prefill 512 vs llama.cpp Q4_0',
      goal: 0.75,
      ours: prefill,
      theirs: () => peer.rate(1),
      note: 'one thread each',
    });
    peer.close();
    // so many rows at a time are computed with weights that are read once, and the last row's logits are all that is wanted
    const layers = model.num_hidden_layers * layerWeights(model);
    const products = layers + (model.vocab_size * model.hidden_size) / PREFILL;
    yield roofed(paired, { bytes: coarse.length / long.rows, products });
    const besideDots = await pair({
      name: 'decoder/prefill 512 vs dot products',
      unit: 'GMAC/s',
      more: true,
      goal: 0.8,
      ours: () => (prefill() * layers) / 1e9,
      theirs: dotProducts,
      note: 'beside the most that 128-bit dot products reach in this engine; products with the layers’ matrices alone',
    });
    yield roofed(besideDots, { bytes: ((1e9 / layers) * coarse.length) / long.rows, products: 1e9 });

    yield* rollouts(files.Q4_0, coarse);
    yield* perplexities(folder);
    yield* growth(coarse, image8);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }

  const bits = await pair({
    ...row,
    name: 'decoder/SmolLM2, 4 bits vs 8 bits',
    goal: 1.3,
    ours: single,
    theirs: () => decode(fine, 1),
    note: `${(many.memoryBytes / 2 ** 20).toFixed(0)} MiB of memory with 16 × 160 positions`,
  });
  yield roofed(bits, alone);
  const byReading = await pair({
    ...row,
    name: 'decoder/decode 1 vs bandwidth',
    goal: 0.7,
    ours: single,
    theirs: () => bandwidth() / coarse.length,
    note: 'beside reading the weights once a token',
  });
  yield roofed(byReading, alone);
  const sixteen = await pair({
    ...row,
    name: 'decoder/decode 16 vs decode 1',
    goal: 2.5,
    ours: () => decode(many, 16),
    theirs: single,
    note: 'tokens of all sequences',
  });
  yield roofed(sixteen, { ...alone, bytes: coarse.length / 16 });
}

/** One sequence's tokens a second, ever further into its context, and by ever larger models: beside what the processor could do at best. */
async function* growth(image: Uint8Array, image8: Uint8Array): AsyncGenerator<Pair> {
  const row = async (name: string, of: Uint8Array, over: string, x: number, context = 128, at = 64): Promise<Pair> => {
    const { config, bits } = readEdge(of);
    const decode = loadDecoder(of, { context });
    // The positions before are what they are: zeros take as long as anything else.
    const one = () => {
      const started = performance.now();
      for (let i = 0; i < 32; i++) decode.forward([100 + i], [at - 32 + i], [0], [0]);
      return 32_000 / (performance.now() - started);
    };
    one();
    const products =
      productsPerToken(config) + 2 * at * config.num_hidden_layers * config.num_attention_heads * config.head_dim;
    const bytes = of.length + at * cacheBytes(config, bits);
    const reading: number[] = [];
    const computing: number[] = [];
    const roofline = (): number => {
      reading.push(bandwidth(bytes) / bytes); // what the caches hold of it is read from there, as the model is
      computing.push((1e9 * dotProducts()) / products);
      return Math.min(reading.at(-1)!, computing.at(-1)!);
    };
    const paired = await pair({
      name: `decoder/growth, ${name}`,
      unit: 'tok/s',
      more: true,
      goal: 0.7,
      ours: one,
      theirs: roofline,
      note: `${(of.length / 1e6).toFixed(1)} MB in ${bits} bits; beside the lower of reading that once a token and dot products alone`,
    });
    const beside = { 'reading alone': median(reading), 'dot products alone': median(computing) };
    return { ...roofed(paired, { bytes, products }, median(reading) * bytes), at: { over, x, beside } };
  };
  for (const x of [64, 256, 512, 1024, 2048]) {
    const over = 'position in the context of SmolLM2-135M';
    yield await row(`SmolLM2 at ${x} of its context`, image, over, x, 2048, x);
  }
  const WEIGHTS = 'weights, in 8 bits';
  for (const [name, hidden_size, num_hidden_layers] of [
    ['1 M', 128, 3],
    ['6 M', 256, 6],
    ['30 M', 512, 8],
  ] as const) {
    const config = tinyConfig({
      vocab_size: 4096,
      hidden_size,
      num_hidden_layers,
      intermediate_size: (hidden_size / 64) * 172 - (((hidden_size / 64) * 172) % 32),
      num_attention_heads: hidden_size / 64,
      num_key_value_heads: hidden_size / 64,
      max_position_embeddings: 128,
    });
    yield await row(`${name} weights`, packEdge(config, randomModel(config, 1), 8), WEIGHTS, productsPerToken(config));
  }
  yield await row('135 M weights', image8, WEIGHTS, productsPerToken(readEdge(image8).config));
}

/** Whole answers as the trainer draws them, with two threads, beside those who do no more than draw. */
async function* rollouts(q4: string, image: Uint8Array): AsyncGenerator<Pair> {
  const [SEQUENCES, PROMPT, ANSWER] = [32, 16, 48];
  const { config } = readEdge(image);
  const rng = random(1, 'prompts');
  const prompts = Array.from({ length: SEQUENCES }, () =>
    Array.from({ length: PROMPT }, () => rng.int(3, config.vocab_size)),
  );
  const sampler = startSampler(config);
  const ours = async (): Promise<number> => {
    const started = performance.now();
    const drawn = await sampler.sampleImage(image, prompts, [...prompts.keys()], { maxTokens: ANSWER, temperature: 1 });
    return (1000 * drawn.reduce((sum, { ids }) => sum + ids.length, 0)) / (performance.now() - started);
  };
  await ours();
  const row = { unit: 'tok/s', more: true, ours, note: `${SEQUENCES} × (${PROMPT} + ${ANSWER}), two threads each` };
  const llamas = await startLlama('rollouts', q4);
  // each thread reads the weights for its half of the sequences, and does half of the products, the prompts' among them
  const { num_hidden_layers, vocab_size, hidden_size } = config;
  const perToken = (num_hidden_layers * layerWeights(config) * (PROMPT + ANSWER)) / ANSWER + vocab_size * hidden_size;
  const half = { bytes: image.length / (SEQUENCES / 2), products: perToken / 2 };
  const batched = await pair({
    ...row,
    name: 'decoder/rollouts vs llama.cpp batched, 2 threads',
    goal: 0.8,
    theirs: () => llamas.rate(1),
  });
  yield roofed(batched, half);
  llamas.close();
  const peers = [await startPeer('generate.py', 'float32')];
  // in software it would be many times slower
  if (/\b(avx512|amx)_bf16\b/.test(readFileSync('/proc/cpuinfo', 'utf8')))
    peers.push(await startPeer('generate.py', 'bfloat16'));
  const generate = await pair({
    ...row,
    name: 'decoder/rollouts vs transformers generate',
    goal: 5,
    theirs: async () => {
      const rates: number[] = [];
      for (const peer of peers) rates.push(await peer.rate(1));
      return Math.max(...rates);
    },
    note: `${row.note}; the better of float32 and, where the processor has it, bfloat16`,
  });
  yield roofed(generate, half);
  for (const peer of peers) peer.close();
  await sampler.close();
}

/** How well a policy foretells text in each form, in e to the power of the nats a token. What it loses is the form's doing. */
async function* perplexities(folder: string): AsyncGenerator<Pair> {
  const seed = seedPolicy();
  const rng = random(1, 'perplexity');
  const said = tickets('evaluation', 1, 300).map((ticket) => [
    ...seed.policy.encodePrompt([{ role: 'user', content: ticket.text }]),
    ...encode(seed.policy.tokenizer, loggedAnswer(rng, ticket)),
  ]);
  yield* perplexity('seed policy', seed.folder, said, folder);

  const path = await smollm2();
  const { tokenizer } = readPolicy(path);
  const play = encode(
    tokenizer,
    readFileSync(join(import.meta.dirname, '../golden/shakespeare.jsonl'), 'utf8')
      .split('\n', 40)
      .map((line) => JSON.parse(line).text)
      .join('\n'),
  );
  const parts = Array.from({ length: 20 }, (_, i) => play.slice(256 * i, 256 * (i + 1)));
  yield* perplexity(
    'SmolLM2',
    path,
    parts,
    folder,
    '; its weights were in Q4_1 to begin with, which loses nothing of them',
  );
}

async function* perplexity(
  name: string,
  from: string,
  texts: number[][],
  folder: string,
  remark = '',
): AsyncGenerator<Pair> {
  const { files } = importFrom(from, name);
  const tensors = readTensors(files.get('model.safetensors')!);
  const { config } = readPolicy(from);
  const input = texts.map((ids) => JSON.stringify(ids)).join('\n');
  const file = (type: string) => join(folder, `${name} ${type}.gguf`);
  exportTo(file('F32'), files, name, 'f32');
  const theirs: Record<string, number> = {};
  for (const type of ['F32', 'Q4_0', 'Q4_1']) {
    if (type !== 'F32') llama(['quantise', file('F32'), type, file(type)]);
    theirs[type] = Number(llama(['perplexity', file(type)], input));
    if (type !== 'F32') rmSync(file(type));
  }
  const ours: Record<string, number> = {};
  for (const bits of [8, 4] as const) {
    const image = packEdge(config, tensors, bits);
    const decode = loadDecoder(image, { context: Math.max(...texts.map((ids) => ids.length)), slots: 16 });
    let [total, count] = [0, 0];
    for (const ids of texts)
      for (let at = 0; at < ids.length - 1; at += decode.logitRows) {
        const part = ids.slice(at, Math.min(at + decode.logitRows, ids.length - 1));
        const rows = [...part.keys()];
        decode.forward(
          part,
          rows.map((row) => at + row),
          rows.map(() => 0),
          rows,
        );
        for (const row of rows) {
          const logits = decode.logits(row);
          const top = logits.reduce((a, b) => Math.max(a, b));
          total +=
            top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0)) - logits[ids[at + row + 1]!]!;
          count++;
        }
      }
    ours[bits] = Math.exp(total / count);
  }
  for (const [bits, type, goal] of [
    ['8', 'F32', 0.99],
    ['4', 'Q4_1', 1],
    ['4', 'Q4_0', 1],
  ] as const)
    yield compared({
      name: `decoder/perplexity of ${name}, ${bits} bits vs ${type}`,
      unit: 'e^nats',
      more: false,
      goal,
      ours: [ours[bits]!],
      theirs: [theirs[type]!],
      note: `float32 ${theirs.F32!.toFixed(3)}${remark}`,
    });
}
