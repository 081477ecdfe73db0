// plumb demo: the whole loop over HTTP, on a free port with fresh data. Simulated raters judge answers that the Worker serves, the
// cron fires, the trainer fits and optimises, the gate decides, and the edge serves what came out; then once more from there. With
// the seed policy, or with a real chat model.
// Exit 0 only if gold rose, with intervals that do not touch.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Run } from '../schema/wire-runs.ts';
import { smollm2 } from '../trainer/import/smollm2.ts';
import { random } from '../trainer/random.ts';
import { flat, type Measured, mean, pooled, variance } from '../trainer/seed/measure.ts';
import { BIASED_SHARE, RATER_DEFAULTS, type RaterConfig } from '../trainer/seed/raters.ts';
import { type Budget, type Scene, SENTENCES, SUPPORT_DESK, secondsOf } from '../trainer/seed/scene.ts';
import { UserError } from '../trainer/user-error.ts';
import { freePort } from './home.ts';
import { type Local, publish, startLocal } from './local.ts';
import { stopOnSignals } from './signals.ts';

const EVALUATION_SEED = 31_337;
const AT_ONCE = 8;

interface DemoOptions {
  model: 'seed' | 'smollm2';
  rounds: number;
  seed: number;
  mode: RaterConfig['mode'];
  bias?: boolean;
  json?: boolean;
}
/** What the demo's exit says: the intervals do not touch. */
export const goldRose = (before: Measured, after: Measured): boolean => after.gold.low > before.gold.high;

interface Answered {
  /** The policy that answered. */
  model: string;
  choices: { message: { content: string }; sample_id?: string }[];
}

export async function demo(options: DemoOptions, report: (step: string, share?: number) => void): Promise<void> {
  if (options.model === 'seed') return play(SUPPORT_DESK, options);
  if (options.bias) throw new UserError('--bias is of the seed policy’s world: there are no dialects elsewhere');
  return play(SENTENCES, options, await smollm2(report));
}

/** @param from the file of the policy that is there first; the seed policy unless said */
async function play<Asked extends { text: string }>(
  scene: Scene<Asked>,
  { rounds, seed, mode, bias, json }: DemoOptions,
  from?: string,
): Promise<void> {
  const raters: RaterConfig = { ...RATER_DEFAULTS, mode, bias: bias ? BIASED_SHARE : 0 };
  const home = mkdtempSync(join(tmpdir(), 'plumb-demo-'));
  process.once('exit', () => rmSync(home, { recursive: true, force: true }));
  stopOnSignals(async () => {}, 130); // until something runs that is to be stopped
  const began = performance.now();
  const say = (line = '') => console.log(line);
  if (from) {
    const { budget } = scene;
    const minutes = (seconds: number) => (seconds / 60).toFixed(0);
    const of = (stage: keyof Budget) => secondsOf(budget, stage);
    const parts = Object.entries(budget.training).map(([part, seconds]) => `${part} ${minutes(seconds)}`);
    say(
      `This takes some ${minutes(of('evaluation') + rounds * (of('judging') + of('training')))} minutes on two cores, less on fast ones: ${minutes(of('evaluation'))} to measure, and for each round ${minutes(of('judging'))} to judge and ${minutes(of('training'))} to train (${parts.join(', ')}).`,
    );
    await publish(home, from, 'smollm2-135m-instruct', 'stable');
  }
  const local = await startLocal({
    home,
    port: await freePort(),
    cronSeconds: 2,
    variables: {
      PLUMB_MIN_FEEDBACK: String(scene.judgements),
      PLUMB_RUN_CONFIG: JSON.stringify(scene.config),
    },
  });
  // An interrupted demo has not shown that gold rose.
  stopOnSignals(local.close, 130);

  try {
    const { data } = await call<{ data: { id: string }[] }>(local, 'GET', '/v1/models');
    say(`Plumb at ${local.url} serves ${local.policy}; ${data.length} model names are known`);
    const clock = stopwatch();
    const asked = scene.asked('evaluation', EVALUATION_SEED, scene.evaluations);
    const evaluate = async () => {
      const answered = await inTurn(asked, ({ text }, i) =>
        ask(local, scene, text, scene.draws, { seed: 1000 * seed + i, store: false }),
      );
      const draws = Array.from({ length: scene.draws }, (_, draw) =>
        answered.map(({ choices }) => choices[draw]!.message.content),
      );
      return { answers: draws[0]!, ...pooled(draws.map((answers) => scene.measure(asked, answers))) };
    };
    const bestOf = async ({ of, questions }: Scene<Asked>['best']) => {
      const scores = await inTurn(asked.slice(0, questions), async (question, i) => {
        const { choices } = await ask(local, scene, question.text, of, { seed: 77_000 * seed + i, store: false });
        return Math.max(...choices.map(({ message }) => scene.gold(question, message.content)));
      });
      return mean(scores);
    };

    say(
      `\nbefore: ${scene.evaluations} evaluation questions${scene.draws > 1 ? `, ${scene.draws} answers to each` : ''}, and the best of ${scene.best.of} answers as the mark to aim at`,
    );
    const evaluations = [await evaluate()];
    const best = await bestOf(scene.best);
    clock.lap('evaluation');
    const finished: Run[] = [];

    for (let round = 1; round <= rounds; round++) {
      say(
        `\nround ${round}: ${scene.judgements} judgements by simulated raters (${raters.mode}${bias ? ', biased' : ''})`,
      );
      await judgeRound(local, scene, raters, seed, round);
      clock.lap(`judging ${round}`);
      const run = await nextRun(local, finished.at(-1)?.id, say);
      clock.lap(`training ${round}`);
      finished.push(run);
      if (run.status === 'failed') throw new UserError(`the run failed: ${run.error}`);
      const reasons = (run.report?.reasons ?? []) as { passed: boolean; check: string; words: string }[];
      for (const reason of reasons) say(`  ${reason.passed ? 'passed' : 'FAILED'}  ${reason.check}: ${reason.words}`);
      if (run.release) await serving(local, scene, run.policy!);
      say(`  ${run.status}${run.release ? `: ${run.policy} is served now` : ''}`);
      evaluations.push(await evaluate());
      clock.lap('evaluation');
    }

    const first = evaluations[0]!;
    const last = evaluations.at(-1)!;
    const kls = finished.map((run) => ((run.report?.metrics ?? {}) as Record<string, number>)['gate/kl_parent'] ?? 0);
    say();
    show(evaluations, kls, say);
    say(
      `  best of ${scene.best.of} answers of the first policy, to ${scene.best.questions} of the questions: ${best.toFixed(3)}`,
    );
    say('\nthe same questions, before and after');
    for (const i of [0, 1, 2]) {
      say(`\n  asked   ${asked[i]!.text}`);
      for (const [round, m] of evaluations.entries()) {
        const name = (round === 0 ? 'before' : `round ${round}`).padEnd(8);
        say(`  ${name}${m.answers[i]}  (gold ${scene.gold(asked[i]!, m.answers[i]!).toFixed(2)})`);
      }
    }
    say('\nwhere the time went, beside what it is meant to take (seconds)');
    for (const [name, seconds] of clock.laps)
      say(
        `  ${name.padEnd(12)} ${seconds.toFixed(0).padStart(4)}  ${secondsOf(scene.budget, name.split(' ')[0] as keyof Budget)}`,
      );
    const parts = Object.entries(scene.budget.training).map(([part, seconds]) => `${part} ${seconds}`);
    say(`  a training is meant to take: ${parts.join(', ')}`);
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
      `\n${rose ? 'gold rose' : 'gold did not rise'}: ${first.gold.mean.toFixed(3)} → ${last.gold.mean.toFixed(3)}, ${(100 * way).toFixed(0)} % of the way to the best of ${scene.best.of} (${best.toFixed(3)}); ${seconds.toFixed(0)} s in all`,
    );
    if (json) {
      const row = ({ answers: _, ...m }: (typeof evaluations)[number], kl: number) => ({ ...flat(m), kl });
      say(
        JSON.stringify({
          before: row(first, 0),
          rounds: evaluations.slice(1).map((m, i) => row(m, kls[i]!)),
          best_of: best,
          laps: Object.fromEntries(clock.laps),
          seconds,
        }),
      );
    }
    if (!rose) process.exitCode = 1;
  } finally {
    await local.close();
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
    if ((response.status !== 503 && response.status !== 429) || tries === 30) {
      throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * (wait || 1)));
  }
}

const ask = (
  local: Local,
  { maxTokens: max_tokens }: { maxTokens: number },
  content: string,
  n: number,
  more: { seed: number; store?: boolean; user?: string },
) =>
  call<Answered>(local, 'POST', '/v1/chat/completions', {
    model: 'stable',
    messages: [{ role: 'user', content }],
    n,
    max_tokens,
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

async function judgeRound<Asked extends { text: string }>(
  local: Local,
  scene: Scene<Asked>,
  raters: RaterConfig,
  seed: number,
  round: number,
): Promise<void> {
  await inTurn(scene.asked('judging', seed * 1000 + 500 + round, scene.unjudged), ({ text }, i) =>
    ask(local, scene, text, 1, { seed: 2_000_000 * seed + 10_000 * round + i, user: `passer-by ${round}-${i}` }),
  );
  const asked = scene.asked('judging', seed * 1000 + round, scene.judgements);
  const kinds = scene.kinds(asked.length, random(seed, `kinds ${round}`));
  await inTurn(asked, async (question, i) => {
    const rng = random(seed * 1000 + round, `rater ${i}`);
    const { choices } = await ask(local, scene, question.text, kinds[i]!.answers, {
      seed: 1_000_000 * seed + 10_000 * round + i,
      user: `customer ${round}-${i}`,
    });
    const ids = choices.map((choice) => choice.sample_id!);
    const texts = choices.map((choice) => choice.message.content);
    const { order, up, cohorts } = scene.judge(rng, question, texts, raters);
    const rater = { id: `rater ${i % 20}`, cohorts };
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

/** Waits until a policy answers: while a large one loads, the one before it does. */
async function serving<Asked extends { text: string }>(local: Local, scene: Scene<Asked>, policy: string) {
  const [question] = scene.asked('judging', 1, 1);
  for (let tries = 0; tries < 60; tries++) {
    const { model } = await ask(local, scene, question!.text, 1, { seed: 1, store: false });
    if (model === policy) return;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  throw new Error(`${policy} was released a minute ago and answers nothing yet`);
}

// ---- showing

function show(evaluations: Measured[], kls: number[], say: (line: string) => void): void {
  const interval = ({ gold }: Measured) => `${gold.mean.toFixed(3)} (${gold.low.toFixed(3)}–${gold.high.toFixed(3)})`;
  const rows: [string, ...string[]][] = [
    ['', ...evaluations.map((_, round) => (round === 0 ? 'before' : `after ${round}`))],
    ['gold, 95 %', ...evaluations.map(interval)],
    ['difference', '', ...evaluations.slice(1).map((m, i) => paired(m.each, evaluations[i]!.each))],
    ...Object.keys(evaluations[0]!.figures).map((name): [string, ...string[]] => [
      name.replaceAll('_', ' '),
      ...evaluations.map(({ figures }) => figures[name]!.toFixed(3)),
    ]),
    ['KL to parent', '', ...kls.map((kl) => kl.toFixed(2))],
    ['words', ...evaluations.map((m) => m.length.toFixed(1))],
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => (row[column] ?? '').length)));
  for (const row of rows)
    say(
      `  ${row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('   ')
        .trimEnd()}`,
    );
}

/** Mean difference over the same questions with its 95 % interval. */
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
