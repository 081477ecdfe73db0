// One thread of rollout.ts: keeps a decoder, overwrites its weights when another image comes, and answers prompts.

import { parentPort } from 'node:worker_threads';
import { generateBatch } from '../functions/policy/generate.ts';
import type { WasmDecoder } from '../functions/policy/load.ts';
import { loadDecoder } from '../functions/policy/node.ts';
import { readEdge } from '../schema/edge.ts';
import type { RolloutJob } from './rollout.ts';

const SLOTS = 16;
let decoder: WasmDecoder | undefined;
let held = { context: 0, bits: 0, corrected: false };

parentPort!.on('message', ({ image, prompts, seeds, maxTokens, temperature }: RolloutJob) => {
  const bytes = new Uint8Array(image);
  const { config, bits, corrected } = readEdge(bytes);
  const { eos_token_id, max_position_embeddings } = config;
  const needed = Math.min(max_position_embeddings, Math.max(...prompts.map((prompt) => prompt.length)) + maxTokens);
  // Rollouts are drawn in 8 bits, and what is compared before a release as it will be served.
  const fits = held.context >= needed && held.bits === bits && held.corrected === corrected;
  if (decoder && fits) decoder.load(bytes);
  else {
    decoder = loadDecoder(bytes, { slots: SLOTS, context: needed });
    held = { context: needed, bits, corrected };
  }
  const answers = generateBatch(decoder, prompts, { maxTokens, temperature, stopIds: [eos_token_id], seeds });
  parentPort!.postMessage(answers.map(({ ids, logprobs }) => ({ ids, logprobs })));
});
