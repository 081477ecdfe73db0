// The real llama.cpp: its server as the one that decodes a policy of ours, and what we export as what it serves.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../infra/home.ts';
import { publish, publishUpstream } from '../../infra/local.ts';
import { exportTo } from '../../trainer/export/export.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { llamaPython } from '../bench/peers.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';
import { SEED_FOLDER } from '../support/seed.ts';

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
  const up = async () => (await fetch(`${url}/models`).catch(() => undefined))?.status;
  await expect.poll(up, { timeout: MINUTES, interval: 500 }).toBe(200);
  return url;
}

beforeAll(async () => {
  const url = await serve(await smollm2(), 512);
  smol = url;
  local = await startTestLocal();
  await publishUpstream(local.home, { url, model: 'smollm2' }, 'in llama.cpp', 'stable');
}, 30 * MINUTES);
afterAll(async () => {
  await local?.close();
  for (const server of servers) server.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
}, MINUTES);

interface Answer {
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
    expect(textOf(ours)).toMatch(/Paris/);
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
    const cut = await chat({ stop: ['Paris'] });
    expect(textOf(cut)).toBe(textOf(ours).slice(0, textOf(ours).indexOf('Paris')));
    expect(cut.choices[0]!.finish_reason).toBe('stop');
    const object = await chat({ response_format: { type: 'json_object' }, max_tokens: 60 });
    expect(JSON.parse(textOf(object))).toBeInstanceOf(Object);
  },
  5 * MINUTES,
);

test(
  'says that a prompt is too long, in its own words',
  async () => {
    const messages = [{ role: 'user', content: 'word '.repeat(2000) }];
    const response = await local.ask('POST', '/v1/chat/completions', asked({ messages }));
    expect(response.status).toBe(400);
    expect(await response.text()).toMatch(/upstream server refuses this: .*context/);
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
