// One thread's tokens a second. Of answers of the seed policy, prompts' prefill included: the wasm decoder that serves beside its oracle, the
// plain TypeScript one. And of SmolLM2-135M in 4 bits: a token beside the same in 8 bits and beside what reading its weights alone would
// take, and sixteen sequences beside one.
import { type Decoder, slotStarts } from '../../functions/policy/decoder.ts';
import { generateBatch } from '../../functions/policy/generate.ts';
import { loadDecoder } from '../../functions/policy/node.ts';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { packEdge, unpackEdge } from '../../schema/edge.ts';
import { openGguf, tensorsOf } from '../../trainer/import/from-gguf.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { seedPolicy } from '../support/seed.ts';
import { type Pair, pair } from './pair.ts';

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

  const path = await smollm2();
  const model = readPolicy(path).config;
  const tensors = tensorsOf(openGguf(path));
  const coarse = packEdge(model, tensors, 4);
  const many = loadDecoder(coarse, { context: 160, slots: 16 });
  const fine = loadDecoder(packEdge(model, tensors, 8), { context: 160 });
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
  const row = { unit: 'tok/s', more: true, ours: () => decode(many, 1) };
  decode(many, 16);
  decode(fine, 1);
  yield await pair({
    ...row,
    name: 'decoder/SmolLM2, 4 bits vs 8 bits',
    goal: 1.3,
    theirs: () => decode(fine, 1),
    note: `${(many.memoryBytes / 2 ** 20).toFixed(0)} MiB of memory with 16 × 160 positions`,
  });
  yield await pair({
    ...row,
    name: 'decoder/decode 1 vs bandwidth',
    goal: 0.7,
    theirs: () => bandwidth() / coarse.length,
    note: 'beside reading the weights once a token',
  });
  yield await pair({
    ...row,
    name: 'decoder/decode 16 vs decode 1',
    goal: 2.5,
    ours: () => decode(many, 16),
    theirs: () => decode(many, 1),
    note: 'tokens of all sequences',
  });
}

/** Bytes a second that one thread reads: two equal stretches of memory are compared, beyond every cache. */
function bandwidth(): number {
  const [a, b] = [Buffer.alloc(2 ** 28, 1), Buffer.alloc(2 ** 28, 1)];
  const started = performance.now();
  a.compare(b);
  return (2 * a.length * 1000) / (performance.now() - started);
}
