// Tokens of answers a second of the seed policy, prompts' prefill included: the wasm decoder that serves beside its oracle, the
// plain TypeScript one. One thread.
import type { Decoder } from '../../functions/policy/decoder.ts';
import { generateBatch } from '../../functions/policy/generate.ts';
import { loadDecoder } from '../../functions/policy/node.ts';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { unpackEdge } from '../../schema/edge.ts';
import { importFrom } from '../../trainer/import/import.ts';
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
}
