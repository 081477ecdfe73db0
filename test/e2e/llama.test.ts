// The real llama.cpp: its server as the one that decodes a policy of ours, and what we export as what it serves.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { referenceDecoder } from '../../functions/policy/reference.ts';
import { logSumExp } from '../../functions/policy/sample.ts';
import { freePort } from '../../infra/home.ts';
import { publish, publishUpstream } from '../../infra/local.ts';
import type { ModelConfig } from '../../schema/manifest.ts';
import { readTensors } from '../../schema/safetensors.ts';
import { exportTo } from '../../trainer/export/export.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { llama, llamaPython } from '../bench/peers.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';
import { SEED_FOLDER } from '../support/seed.ts';
import { tinyFolder } from '../support/tiny-folder.ts';

const MINUTES = 60_000;
const servers: ChildProcess[] = [];
const folder = mkdtempSync(join(tmpdir(), 'plumb-llama-'));
let local: TestLocal;
let smol = '';

/** Serves a file, and answers with the address of its API. */
async function serve(file: string, context: number): Promise<string> {
  const port = await freePort();
  // it would break off an answer when another is asked for
  const options = ['--interrupt_requests', 'false', '--n_threads', '2', '--n_ctx', String(context)];
  const args = ['-m', 'llama_cpp.server', '--model', file, '--port', String(port), ...options];
  servers.push(spawn(llamaPython(), args, { stdio: ['ignore', 'ignore', 'ignore'] }));
  const url = `http://127.0.0.1:${port}/v1`;
  const up = async () => expect((await fetch(`${url}/models`)).status).toBe(200);
  await vi.waitFor(up, { timeout: MINUTES, interval: 500 });
  return url;
}

beforeAll(async () => {
  const url = await serve(await smollm2(), 512);
  smol = url;
  local = await startTestLocal();
  const policy = await publishUpstream(local.home, { url, model: 'smollm2' }, 'in llama.cpp', 'stable');
  await vi.waitFor(async () => expect((await chat()).model).toBe(policy), { timeout: MINUTES, interval: 500 });
}, 30 * MINUTES);
afterAll(async () => {
  await local?.close();
  for (const server of servers) server.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
}, MINUTES);

interface Answer {
  model: string;
  choices: { message: { content: string }; finish_reason: string; sample_id: string }[];
  usage: { prompt_tokens: number; completion_tokens: number };
  feedback_token: string;
}
const asked = (body: object = {}) => ({
  model: 'stable',
  messages: [{ role: 'user', content: 'What is the capital of France?' }],
  max_tokens: 12,
  temperature: 0,
  ...body,
});
const chat = (body: object = {}) => local.api<Answer>('POST', '/v1/chat/completions', asked(body));
const directly = async (url: string, body: object = {}) => {
  const response = await fetch(`${url}/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(asked(body)),
  });
  return (await response.json()) as Answer;
};
const textOf = ({ choices }: Answer) => choices[0]!.message.content;

test(
  'answers for a policy of ours: whole, streamed, several at once, in objects, with samples that are judged',
  async () => {
    const ours = await chat();
    expect(textOf(ours)).toBe(textOf(await directly(smol)));
    const vote = { kind: 'thumb', sample_id: ours.choices[0]!.sample_id, value: 1, token: ours.feedback_token };
    await local.api('POST', '/v1/feedback', { ...vote, rater: { id: 'ann' } });

    const streamed = await (await local.ask('POST', '/v1/chat/completions', asked({ stream: true }))).text();
    const pieces = [...streamed.matchAll(/^data: (\{.*)$/gm)].map(
      ([, data]) => JSON.parse(data!).choices[0]?.delta.content,
    );
    expect(pieces.filter(Boolean).join('')).toBe(textOf(ours));
    expect(pieces.filter(Boolean).length).toBeGreaterThan(3);

    const three = await chat({ n: 3, temperature: 1, seed: 1 });
    expect(new Set(three.choices.map(({ message }) => message.content)).size).toBe(3);
    const stop = textOf(ours).slice(6, 10);
    const cut = await chat({ stop: [stop] });
    expect(textOf(cut)).toBe(textOf(ours).slice(0, textOf(ours).indexOf(stop)));
    expect(cut.choices[0]!.finish_reason).toBe('stop');
    const object = await chat({ response_format: { type: 'json_object' }, max_tokens: 60 });
    expect(JSON.parse(textOf(object))).toBeInstanceOf(Object);
  },
  5 * MINUTES,
);

test(
  'a prompt that is too long is an error, though this server says so by an empty answer',
  async () => {
    const messages = [{ role: 'user', content: 'word '.repeat(2000) }];
    const response = await local.ask('POST', '/v1/chat/completions', asked({ messages }));
    expect(response.status).toBe(502);
    expect(await response.text()).toMatch(/the upstream server ended without a word/);
    expect(textOf(await chat())).toBe(textOf(await directly(smol)));
  },
  MINUTES,
);

test(
  'serves what is exported, and answers as our decoder does',
  async () => {
    const file = join(folder, 'seed.gguf');
    exportTo(file, importFrom(SEED_FOLDER, 'seed').files, 'seed', 'f16');
    const id = await publish(local.home, SEED_FOLDER, 'seed');
    const url = await serve(file, 256);
    const messages = [{ role: 'user', content: 'Hello, my order #482 for a kettle has not arrived yet.' }];
    const body = { model: id, messages, max_tokens: 40 };
    const [ours, theirs] = [await chat(body), await directly(url, body)];
    expect(textOf(ours).length).toBeGreaterThan(40);
    // in 8 bits here, in 16 there
    expect(textOf(ours).slice(0, 40)).toBe(textOf(theirs).slice(0, 40));
  },
  5 * MINUTES,
);

test.each([
  ['qwen2', 'Qwen2ForCausalLM'],
  ['qwen3', 'Qwen3ForCausalLM'],
] as const)('foretells text as our oracle does with an exported %s', (model_type, name) => {
  const of: Partial<ModelConfig> = { model_type, architectures: [name], hidden_size: 128, num_attention_heads: 2 };
  const { manifest, files } = importFrom(tinyFolder(join(folder, model_type), of), 'x');
  const file = join(folder, `${model_type}.gguf`);
  exportTo(file, files, 'x', 'f32');
  const ids = Array.from({ length: 60 }, (_, i) => (i * 37 + 11) % 1000);
  const theirs = Number(llama(['perplexity', file], JSON.stringify(ids)));
  const oracle = referenceDecoder(manifest.config, readTensors(files.get('model.safetensors')!));
  let total = 0;
  for (const [i, id] of ids.slice(0, -1).entries()) {
    oracle.forward([id], [i], [0], [0]);
    total += logSumExp(oracle.logits(0)) - oracle.logits(0)[ids[i + 1]!]!;
  }
  expect(Math.exp(total / (ids.length - 1)) / theirs).toBeCloseTo(1, 3);
});
