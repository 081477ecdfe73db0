// SmolLM2-135M as people reach it, over HTTP on this machine: its tokens a second beside llama.cpp's, what the first answer after a start
// waits for, how long the first token takes while eight chat at once beside one who is alone, what a release under load costs them, and
// what an answer takes of a processor, which is what a Worker is billed by.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../infra/home.ts';
import { type Local, publish, startLocal } from '../../infra/local.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { sentenceQuestions } from '../../trainer/seed/sentences.ts';
import { compared, type Pair, pair, ROUNDS } from './pair.ts';
import { llama, startLlama } from './peers.ts';

const CHATS = 8;
const TOKENS = 48;
/** Answers each of them has in a round. */
const TURNS = 4;
/** What Cloudflare asks for a million milliseconds of a processor on Workers Paid, beyond those that the plan includes, in dollars. */
const PER_MILLION_MS = 0.02;
/** A request may take so many milliseconds of a processor unless more is asked for. */
const LIMIT_MS = 30_000;

const quantile = (values: number[], q: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))]!;

/** One answer: milliseconds until its first token, tokens a second from there on, and which policy it is of. */
interface Answer {
  first: number;
  rate: number;
  policy: string;
}
async function ask({ url, keys }: Local, content: string): Promise<Answer> {
  const started = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${keys.secret}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'stable',
      messages: [{ role: 'user', content }],
      max_tokens: TOKENS,
      stream: true,
      stream_options: { include_usage: true },
      store: false,
    }),
  });
  if (!response.ok) throw new Error(`a chat was refused: ${response.status} ${await response.text()}`);
  let first = 0;
  let last = 0;
  let text = '';
  for await (const part of response.body!.pipeThrough(new TextDecoderStream())) {
    text += part;
    if (!/"content":"[^"]/.test(part)) continue;
    last = performance.now() - started;
    first ||= last;
  }
  if (!text.includes('[DONE]')) throw new Error('a chat was broken off');
  const tokens = Number(/"completion_tokens":(\d+)/.exec(text)![1]);
  return { first, rate: (1000 * (tokens - 1)) / (last - first), policy: /"model":"([^"]+)"/.exec(text)![1]! };
}

/** Milliseconds of a processor that this process's workerds have had. */
function processorMs(): number {
  let ticks = 0;
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const [, name, rest] = /^\d+ \((.*)\) (.*)$/s.exec(stat)!;
      const fields = rest!.split(' ');
      if (name!.startsWith('workerd') && fields[1] === String(process.pid))
        ticks += Number(fields[11]) + Number(fields[12]);
    } catch {} // it has ended
  }
  return 10 * ticks; // a hundred a second
}

export async function* chats(): AsyncGenerator<Pair> {
  const home = mkdtempSync(join(tmpdir(), 'plumb-bench-'));
  const file = await smollm2();
  await publish(home, file, 'smollm2', 'stable');
  const other = await publish(home, file, 'smollm2 again');
  const questions = sentenceQuestions('evaluation', 1, 300).map(({ text }) => text);
  let next = 0;
  const local = await startLocal({ home, port: await freePort(), cronSeconds: 86_400 });
  const one = () => ask(local, questions[next++ % questions.length]!);
  try {
    const { first: cold } = await one();
    await one();
    const { first: warm } = await one();
    yield compared({
      name: 'chats/cold start 135M above a warm request',
      unit: 'ms',
      more: false,
      goal: 1,
      ours: [cold - warm],
      theirs: [100],
      note: 'the first token of the first answer after a start, its weights read from R2',
    });
    const inTurn = async (count: number) => {
      const firsts: number[] = [];
      for (let i = 0; i < count; i++) firsts.push((await one()).first);
      return firsts;
    };
    const together = async () => (await Promise.all(Array.from({ length: CHATS }, () => inTurn(TURNS)))).flat();
    await together();

    for (const [type, goal] of [
      ['Q4_0', 1.5],
      ['Q4_1', 2],
    ] as const) {
      const quantised = join(home, `${type}.gguf`);
      if (type === 'Q4_0') llama(['quantise', file, type, quantised]);
      const peer = await startLlama('decode', type === 'Q4_0' ? quantised : file);
      yield await pair({
        name: `chats/decode 1 vs llama.cpp ${type}`,
        unit: 'tok/s',
        more: true,
        goal,
        ours: async () => {
          const rates: number[] = [];
          for (let i = 0; i < TURNS; i++) rates.push((await one()).rate);
          return quantile(rates, 0.5);
        },
        theirs: () => peer.rate(128),
        note: `in workerd over HTTP, answers of up to ${TOKENS} tokens; one thread each`,
      });
      peer.close();
    }

    const idle: number[] = [];
    const busy: number[] = [];
    const processor: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const before = processorMs();
      idle.push(quantile(await inTurn(TURNS), 0.5));
      processor.push((processorMs() - before) / TURNS);
      busy.push(quantile(await together(), 0.99));
    }
    yield compared({
      name: `chats/first token under ${CHATS} concurrent chats`,
      unit: 'ms',
      more: false,
      goal: 1 / 3,
      ours: busy,
      theirs: idle,
      note: 'the slowest beside one who is alone',
    });
    const ms = quantile(processor, 0.5);
    yield compared({
      name: 'chats/processor time of an answer',
      unit: 'ms',
      more: false,
      goal: 1,
      ours: processor,
      theirs: [LIMIT_MS],
      note: `beside what a request may take; 1,000 such answers of up to ${TOKENS} tokens cost $${((ms * 1000 * PER_MILLION_MS) / 1e6).toFixed(3)}`,
    });

    // A release meanwhile: none is lost, and the wait of whoever meets it is bounded.
    const waits: number[] = [];
    const during: number[] = [];
    let served = '';
    let released = false;
    const chatting = Promise.all(
      Array.from({ length: CHATS }, async () => {
        while (served !== other) {
          const { first, policy } = await one();
          (released ? during : waits).push(first);
          if (policy === other) served = other;
        }
      }),
    );
    await new Promise((resolve) => setTimeout(resolve, 10_000));
    released = true;
    const response = await fetch(`${local.url}/v1/releases`, {
      method: 'POST',
      headers: { authorization: `Bearer ${local.keys.secret}`, 'content-type': 'application/json' },
      body: JSON.stringify({ channel: 'stable', policy: other }),
    });
    if (!response.ok) throw new Error(`the release was refused: ${await response.text()}`);
    await chatting;
    yield compared({
      name: 'chats/swap of policy under load',
      unit: 'ms',
      more: false,
      goal: 1,
      ours: [quantile(during, 0.99)],
      theirs: [quantile(waits, 0.99) + 100],
      note: `the slowest first token, beside that before the release and 100 ms; ${waits.length + during.length} answers, none lost`,
    });
  } finally {
    await local.close();
    rmSync(home, { recursive: true, force: true });
  }
}
