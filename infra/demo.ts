// plumb demo: the whole loop over HTTP, on a free port with fresh data. Simulated raters judge answers that the Worker serves, the
// cron fires, the trainer fits and optimises, the gate decides, and the edge serves what came out; then once more from there.
// Exit 0 only if gold rose, with intervals that do not touch.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Run } from '../schema/wire-runs.ts';
import { random } from '../trainer/random.ts';
import { type Measured, mean, measure, variance } from '../trainer/seed/measure.ts';
import { BIASED_SHARE, judge, RATER_DEFAULTS, type RaterConfig, voteKinds } from '../trainer/seed/raters.ts';
import { unjudged } from '../trainer/seed/votes.ts';
import { gold, type Ticket, tickets } from '../trainer/seed/world.ts';
import { UserError } from '../trainer/user-error.ts';
import { freePort } from './home.ts';
import { type Local, startLocal } from './local.ts';
import { stopOnSignals } from './signals.ts';

const JUDGEMENTS = 400;
const EVALUATION_TICKETS = 1000;
const EVALUATION_SEED = 31_337;
const BEST_OF = 16;
const BEST_OF_TICKETS = 100;
/** Answers in the little world are short. */
const MAX_TOKENS = 40;
/** Seconds that are meant to be enough on two cores: for each round's stages, and for all that is measured before, between and after. */
export const BUDGET = { judging: 20, training: 105, evaluation: 30 };
const AT_ONCE = 8;

interface DemoOptions {
  rounds: number;
  seed: number;
  mode: string;
  bias?: boolean;
  json?: boolean;
}
/** What the demo's exit says: the intervals do not touch. */
export const goldRose = (before: Measured, after: Measured): boolean => after.gold.low > before.gold.high;

interface Answered {
  choices: { message: { content: string }; sample_id?: string }[];
}

export async function demo({ rounds, seed, mode, bias, json }: DemoOptions): Promise<void> {
  if (!['gold', 'random', 'inverted'].includes(mode)) throw new UserError(`--mode ${mode}: gold, random or inverted`);
  const raters: RaterConfig = { ...RATER_DEFAULTS, mode: mode as RaterConfig['mode'], bias: bias ? BIASED_SHARE : 0 };
  const home = mkdtempSync(join(tmpdir(), 'plumb-demo-'));
  const began = performance.now();
  const say = (line = '') => console.log(line);
  const local = await startLocal({
    home,
    port: await freePort(),
    cronSeconds: 2,
    variables: { PLUMB_MIN_FEEDBACK: String(JUDGEMENTS) },
  });
  const stop = async () => {
    await local.close();
    rmSync(home, { recursive: true, force: true });
  };
  // An interrupted demo has not shown that gold rose.
  stopOnSignals(stop, 130);

  try {
    const { data } = await call<{ data: { id: string }[] }>(local, 'GET', '/v1/models');
    say(`Plumb at ${local.url} serves ${local.policy}; ${data.length} model names are known`);
    const clock = stopwatch();
    const asked = tickets('evaluation', EVALUATION_SEED, EVALUATION_TICKETS);
    const evaluate = async () => {
      const answers = await inTurn(asked, (ticket, i) =>
        ask(local, ticket, 1, { seed: 1000 * seed + i, store: false }),
      );
      return {
        answers: answers.map((answer) => answer.choices[0]!.message.content),
        ...measure(
          asked,
          answers.map((a) => a.choices[0]!.message.content),
        ),
      };
    };

    say(`\nbefore: ${EVALUATION_TICKETS} evaluation tickets, and the best of ${BEST_OF} answers as the mark to aim at`);
    const measured = [await evaluate()];
    const best = await bestOf(local, asked.slice(0, BEST_OF_TICKETS), seed);
    clock.lap('evaluation');
    const finished: Run[] = [];

    for (let round = 1; round <= rounds; round++) {
      say(`\nround ${round}: ${JUDGEMENTS} judgements by simulated raters (${raters.mode}${bias ? ', biased' : ''})`);
      await judgeRound(local, raters, seed, round);
      clock.lap(`judging ${round}`);
      const run = await nextRun(local, finished.at(-1)?.id, say);
      clock.lap(`training ${round}`);
      finished.push(run);
      if (run.status === 'failed') throw new UserError(`the run failed: ${run.error}`);
      const reasons = (run.report?.reasons ?? []) as { passed: boolean; check: string; words: string }[];
      for (const reason of reasons) say(`  ${reason.passed ? 'passed' : 'FAILED'}  ${reason.check}: ${reason.words}`);
      say(`  ${run.status}${run.release ? `: ${run.policy} is served now` : ''}`);
      measured.push(await evaluate());
      clock.lap('evaluation');
    }

    const first = measured[0]!;
    const last = measured.at(-1)!;
    const kls = finished.map((run) => ((run.report?.metrics ?? {}) as Record<string, number>)['gate/kl_parent'] ?? 0);
    say();
    show(measured, kls, best, say);
    say('\nthe same tickets, before and after');
    for (const i of [0, 1, 2]) {
      say(`\n  ticket  ${asked[i]!.text}`);
      for (const [round, m] of measured.entries()) {
        const name = (round === 0 ? 'before' : `round ${round}`).padEnd(8);
        say(`  ${name}${m.answers[i]}  (gold ${gold(asked[i]!, m.answers[i]!).mean.toFixed(2)})`);
      }
    }
    say('\nwhere the time went, beside what it is meant to take (seconds)');
    for (const [name, seconds] of clock.laps)
      say(
        `  ${name.padEnd(12)} ${seconds.toFixed(0).padStart(4)}  ${BUDGET[name.split(' ')[0] as keyof typeof BUDGET]}`,
      );
    say(
      '  a training is meant to take: start, engine and compiling 25, reward model and judge 20, ppo 45, gate and publishing 15',
    );
    for (const [round, run] of finished.entries()) {
      const stages = (run.report?.seconds ?? {}) as Record<string, number>;
      say(
        `  run ${round + 1}: ${Object.entries(stages)
          .map(([stage, seconds]) => `${stage} ${seconds.toFixed(0)}`)
          .join(', ')}`,
      );
      const compiled = (run.report?.compilations ?? []) as { name: string; seconds: number }[];
      say(`    compiled: ${compiled.map(({ name, seconds }) => `${name} ${seconds.toFixed(1)}`).join(', ')}`);
    }

    const rose = goldRose(first, last);
    const way = (last.gold.mean - first.gold.mean) / (best - first.gold.mean);
    const seconds = (performance.now() - began) / 1000;
    say(
      `\n${rose ? 'gold rose' : 'gold did not rise'}: ${first.gold.mean.toFixed(3)} → ${last.gold.mean.toFixed(3)}, ${(100 * way).toFixed(0)} % of the way to the best of ${BEST_OF} (${best.toFixed(3)}); ${seconds.toFixed(0)} s in all`,
    );
    if (json) {
      const row = (m: Measured, kl: number) => ({
        gold: m.gold,
        relevance: m.relevance,
        coherence: m.coherence,
        ethics: m.ethics,
        kl,
        length: m.length,
        gap: m.gap,
      });
      say(
        JSON.stringify({
          before: row(first, 0),
          rounds: measured.slice(1).map((m, i) => row(m, kls[i]!)),
          best_of_16: best,
          laps: Object.fromEntries(clock.laps),
          seconds,
        }),
      );
    }
    if (!rose) process.exitCode = 1;
  } finally {
    await stop();
  }
}

// ---- asking and judging

async function call<T>(local: Local, method: string, path: string, body?: object): Promise<T> {
  const init: RequestInit = {
    method,
    headers: { authorization: `Bearer ${local.keys.secret}`, ...(body && { 'content-type': 'application/json' }) },
  };
  if (body) init.body = JSON.stringify(body);
  for (let tries = 1; ; tries++) {
    const response = await fetch(local.url + path, init);
    if (response.ok) return (await response.json()) as T;
    // Many answers at once keep the decoder busy: it says when to come back.
    const wait = Number(response.headers.get('retry-after'));
    if (response.status !== 503 || tries === 30) {
      throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * (wait || 1)));
  }
}

const ask = (local: Local, ticket: Ticket, n: number, more: { seed: number; store?: boolean; user?: string }) =>
  call<Answered>(local, 'POST', '/v1/chat/completions', {
    model: 'stable',
    messages: [{ role: 'user', content: ticket.text }],
    n,
    max_tokens: MAX_TOKENS,
    ...more,
  });

/** Runs over the items, a few at once, and keeps their order. */
async function inTurn<T, R>(items: T[], work: (item: T, index: number) => Promise<R>): Promise<R[]> {
  const results: R[] = new Array(items.length);
  let next = 0;
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      while (next < items.length) {
        const i = next++;
        results[i] = await work(items[i]!, i);
      }
    }),
  );
  return results;
}

async function bestOf(local: Local, asked: Ticket[], seed: number): Promise<number> {
  const scores = await inTurn(asked, async (ticket, i) => {
    const { choices } = await ask(local, ticket, BEST_OF, { seed: 77_000 * seed + i, store: false });
    return Math.max(...choices.map((choice) => gold(ticket, choice.message.content).mean));
  });
  return mean(scores);
}

async function judgeRound(local: Local, raters: RaterConfig, seed: number, round: number): Promise<void> {
  await inTurn(unjudged(JUDGEMENTS, seed, round), (ticket, i) =>
    ask(local, ticket, 1, { seed: 2_000_000 * seed + 10_000 * round + i, user: `passer-by ${round}-${i}` }),
  );
  const asked = tickets('judging', seed * 1000 + round, JUDGEMENTS);
  const kinds = voteKinds(JUDGEMENTS, random(seed, `kinds ${round}`));
  await inTurn(asked, async (ticket, i) => {
    const rng = random(seed * 1000 + round, `rater ${i}`);
    const { choices } = await ask(local, ticket, kinds[i]!.answers, {
      seed: 1_000_000 * seed + 10_000 * round + i,
      user: `customer ${round}-${i}`,
    });
    const ids = choices.map((choice) => choice.sample_id!);
    const { order, up, cohort } = judge(
      rng,
      ticket,
      choices.map((choice) => choice.message.content),
      raters,
    );
    const rater = { id: `rater ${i % 20}`, cohorts: { outlook: cohort, dialect: ticket.dialect } };
    const kind = kinds[i]!.kind;
    const vote =
      kind === 'thumb'
        ? { kind, sample_id: ids[0], value: up ? 1 : -1 }
        : kind === 'choice'
          ? { kind, sample_ids: ids, winner: ids[order[0]!] }
          : { kind, sample_ids: ids, order: order.map((index) => [ids[index]!]) };
    await call(local, 'POST', '/v1/feedback', { ...vote, rater });
  });
}

/** Waits for the first run after another, or of all, to end, and tells of its stages. */
async function nextRun(local: Local, after: string | undefined, say: (line: string) => void): Promise<Run> {
  let told = '';
  for (;;) {
    const { data } = await call<{ data: Run[] }>(local, 'GET', `/v1/runs?limit=1${after ? `&after=${after}` : ''}`);
    const run = data[0];
    if (run) {
      const now = run.stage ? `  ${run.status}: ${run.stage}` : `  ${run.status}`;
      if (now !== told) say(now);
      told = now;
      if (['published', 'rejected', 'failed', 'cancelled'].includes(run.status)) return run;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

// ---- showing

function show(
  measured: (Measured & { each: number[] })[],
  kls: number[],
  best: number,
  say: (line: string) => void,
): void {
  const interval = (m: Measured) => `${m.gold.mean.toFixed(3)} (${m.gold.low.toFixed(3)}–${m.gold.high.toFixed(3)})`;
  const rows: [string, ...string[]][] = [
    ['', ...measured.map((_, round) => (round === 0 ? 'before' : `after ${round}`))],
    ['gold, 95 %', ...measured.map(interval)],
    ['difference', '', ...measured.slice(1).map((m, i) => paired(m.each, measured[i]!.each))],
    ['relevance', ...measured.map((m) => m.relevance.toFixed(3))],
    ['coherence', ...measured.map((m) => m.coherence.toFixed(3))],
    ['ethics', ...measured.map((m) => m.ethics.toFixed(3))],
    ['unseen words', ...measured.map((m) => m.unseen.toFixed(3))],
    ['KL to parent', '', ...kls.map((kl) => kl.toFixed(2))],
    ['words', ...measured.map((m) => m.length.toFixed(1))],
    ['gap A − B', ...measured.map((m) => m.gap.toFixed(3))],
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => (row[column] ?? '').length)));
  for (const row of rows)
    say(
      `  ${row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('   ')
        .trimEnd()}`,
    );
  say(`  best of ${BEST_OF} answers of the first policy, on ${BEST_OF_TICKETS} of the tickets: ${best.toFixed(3)}`);
}

/** Mean difference over the same tickets with its 95 % interval. */
function paired(after: number[], before: number[]): string {
  const differences = after.map((x, i) => x - before[i]!);
  const half = 1.96 * Math.sqrt(variance(differences) / differences.length);
  return `${mean(differences) >= 0 ? '+' : ''}${mean(differences).toFixed(3)} ±${half.toFixed(3)}`;
}

function stopwatch() {
  let from = performance.now();
  const laps = new Map<string, number>();
  return {
    laps,
    lap: (name: string) => {
      laps.set(name, (laps.get(name) ?? 0) + (performance.now() - from) / 1000);
      from = performance.now();
    },
  };
}
