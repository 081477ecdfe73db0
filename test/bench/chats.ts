// SmolLM2-135M as people reach it, over HTTP on this machine: its tokens a second beside llama.cpp's, what the first answer after a start
// waits for, how long the first token takes while eight chat at once beside one who is alone, what a release under load costs them, and
// what an answer takes of a processor, which is what a Worker is billed by.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../infra/home.ts';
import { publish, startLocal } from '../../infra/local.ts';
import { packEdge } from '../../schema/edge.ts';
import { openGguf, tensorsOf } from '../../trainer/import/from-gguf.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';
import { readPolicy } from '../../trainer/policy.ts';
import { random } from '../../trainer/random.ts';
import { sentenceQuestions } from '../../trainer/seed/sentences.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { SEED_FOLDER } from '../support/seed.ts';
import { compared, type Pair, pair, ROUNDS } from './pair.ts';
import { llama, startLlama } from './peers.ts';
import { productsPerToken, roofed } from './rooflines.ts';

const CHATS = 8;
const TOKENS = 48;
/** Answers each of them has in a round. */
const TURNS = 4;
/** Milliseconds in which somebody reads an answer and types the next question. */
const [QUICK, SLOW] = [2000, 8000];
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
export async function ask(url: string, key: string, content: string): Promise<Answer> {
  const started = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
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

/** What the first answer after a start waits for above the next ones, with the weights in a bucket that is near or far, or small. */
async function* coldStarts(): AsyncGenerator<Pair> {
  const script = join(import.meta.dirname, 'cold.ts');
  const name = 'chats/cold start from R2 to the first token above a warm request';
  for (const [which, goal, of, note] of [
    ['near', 100, '135M', 'the first token of the first answer above the next ones’'],
    ['far', 1500, '135M from afar', 'the same with 50 ms until the first byte of a file and 100 MB a second'],
    ['seed', 20, 'seed', 'the same of the seed policy'],
  ] as const) {
    const over: number[] = []; // each start a process of its own
    for (let start = 0; start < ROUNDS; start++) {
      const { stdout, status } = spawnSync(process.execPath, [script, which], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      if (status !== 0) throw new Error(`cold.ts ${which} ended with ${status}`);
      const { cold, warm } = JSON.parse(stdout.trim().split('\n').at(-1)!);
      over.push(cold - warm);
    }
    yield compared({ name: `${name}: ${of}`, unit: 'ms', more: false, goal: 1, ours: over, theirs: [goal], note });
  }
}

function priced(name: string, ours: number[], answers: string): Pair {
  const dollars = ((quantile(ours, 0.5) * 1000 * PER_MILLION_MS) / 1e6).toFixed(4);
  const note = `beside what a request may take; 1,000 such answers ${answers} cost $${dollars}`;
  return compared({ name, unit: 'ms', more: false, goal: 1, ours, theirs: [LIMIT_MS], note });
}

export async function* chats(): AsyncGenerator<Pair> {
  yield* coldStarts();
  const home = mkdtempSync(join(tmpdir(), 'plumb-bench-'));
  const file = await smollm2();
  await publish(home, SEED_FOLDER, 'seed', 'stable');
  const smollm = await publish(home, file, 'smollm2');
  const others: string[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    // one that differs in a byte: of equal weights a decoder keeps what it has
    const weights = readFileSync(file);
    weights[weights.length - 1]! ^= i + 1;
    const path = join(home, 'other.gguf');
    writeFileSync(path, weights);
    others.push(await publish(home, path, `smollm2 ${i}`));
  }
  const model = readPolicy(file).config;
  const bytes = packEdge(model, tensorsOf(openGguf(file)), 4).length;
  const questions = sentenceQuestions('evaluation', 1, 300).map(({ text }) => text);
  let next = 0;
  const local = await startLocal({ home, port: await freePort(), cronSeconds: 86_400 });
  const one = () => ask(local.url, local.keys.secret, questions[next++ % questions.length]!);
  const release = async (policy: string) => {
    const response = await fetch(`${local.url}/v1/releases`, {
      method: 'POST',
      headers: { authorization: `Bearer ${local.keys.secret}`, 'content-type': 'application/json' },
      body: JSON.stringify({ channel: 'stable', policy }),
    });
    if (!response.ok) throw new Error(`the release was refused: ${await response.text()}`);
  };
  try {
    const asked = tickets('judging', 1, 50).map(({ text }) => text);
    const seedAnswers = async () => {
      for (const text of asked) await ask(local.url, local.keys.secret, text);
    };
    await seedAnswers();
    const ofSeed: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const before = processorMs();
      await seedAnswers();
      ofSeed.push((processorMs() - before) / asked.length);
    }
    yield priced('chats/processor time of an answer by the seed policy', ofSeed, 'to its tickets');
    await release(smollm);
    while ((await one()).policy !== smollm);
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
      const paired = await pair({
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
      yield roofed(paired, { bytes, products: productsPerToken(model) });
      peer.close();
    }

    const idle: number[] = [];
    const busy: number[] = [];
    const atOnce: number[] = [];
    const processor: number[] = [];
    const rng = random(1, 'reading');
    const conversation = async () => {
      const firsts: number[] = [];
      for (let i = 0; i < TURNS; i++) {
        await new Promise((resolve) => setTimeout(resolve, QUICK + rng() * (SLOW - QUICK)));
        firsts.push((await one()).first);
      }
      return firsts;
    };
    for (let round = 0; round < ROUNDS; round++) {
      const before = processorMs();
      idle.push(quantile(await inTurn(TURNS), 0.5));
      processor.push((processorMs() - before) / TURNS);
      busy.push(quantile((await Promise.all(Array.from({ length: CHATS }, conversation))).flat(), 0.99));
      atOnce.push(quantile(await together(), 0.99));
    }
    const row = { unit: 'ms', more: false, goal: 1 / 3, theirs: idle };
    yield compared({
      ...row,
      name: `chats/first token under ${CHATS} concurrent chats`,
      ours: busy,
      note: `the slowest of ${CHATS * TURNS}, each asked ${QUICK / 1000} to ${SLOW / 1000} s after the answer before; beside one who is alone`,
    });
    yield compared({
      ...row,
      name: `chats/first token of ${CHATS} who ask at the same moment, again and again`,
      ours: atOnce,
      note: 'the slowest beside one who is alone',
    });
    yield priced('chats/processor time of an answer', processor, `of up to ${TOKENS} tokens`);

    // Releases meanwhile: no answer is lost, and the wait of whoever meets one is bounded.
    const before: number[] = [];
    const met: number[] = [];
    let answers = 0;
    for (const fresh of others) {
      const waits: number[] = [];
      const during: number[] = [];
      let served = '';
      let released = false;
      const chatting = Promise.all(
        Array.from({ length: CHATS }, async () => {
          while (served !== fresh) {
            const { first, policy } = await one();
            (released ? during : waits).push(first);
            if (policy === fresh) served = fresh;
          }
        }),
      );
      await new Promise((resolve) => setTimeout(resolve, 10_000));
      released = true;
      await release(fresh);
      await chatting;
      before.push(quantile(waits, 0.99) + 100);
      met.push(quantile(during, 0.99));
      answers += waits.length + during.length;
    }
    yield compared({
      name: 'chats/swap of policy under load',
      unit: 'ms',
      more: false,
      goal: 1,
      ours: met,
      theirs: before,
      note: `the slowest first token, beside that before the release and 100 ms; ${answers} answers, none lost`,
    });
  } finally {
    await local.close();
    rmSync(home, { recursive: true, force: true });
  }
}
