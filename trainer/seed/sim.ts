// plumb sim: the loop on files, without HTTP. Simulated raters judge the seed policy's answers, a run learns from them, and the
// next round starts from what came out. Shows whether there is something to learn in the little world, and whether it is learnt.
//
//   plumb sim --rounds 2 --seeds 1,2,3 [--mode gold|random|inverted] [--bias] [--config json] [--no-gate] [--json]

import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { runConfig } from '../config.ts';
import { UserError } from '../user-error.ts';
import { BIASED_SHARE, RATER_DEFAULTS } from './raters.ts';
import type { Simulation, Totals } from './simulate.ts';

/** Where answers are cut. */
const MAX_TOKENS = 40;

function simulationOf(args: string[]): Simulation {
  const { values: options } = parseArgs({
    args,
    options: {
      rounds: { type: 'string', default: '2' },
      seeds: { type: 'string', default: '1' },
      judgements: { type: 'string', default: '400' },
      tickets: { type: 'string', default: '1000' },
      mode: { type: 'string', default: 'gold' },
      bias: { type: 'boolean', default: false },
      'no-gate': { type: 'boolean', default: false },
      config: { type: 'string', default: '{}' },
      policy: { type: 'string', default: `${import.meta.dirname}/policy` },
      json: { type: 'boolean', default: false },
      quiet: { type: 'boolean', default: false },
    },
  });
  const wrong = (option: string, wanted: string): never => {
    throw new UserError(`--${option} must be ${wanted}`);
  };
  const count = (option: 'rounds' | 'judgements' | 'tickets'): number => {
    const value = Number(options[option]);
    return Number.isInteger(value) && value > 0 ? value : wrong(option, 'a whole number above 0');
  };
  const seeds = options.seeds.split(',').map(Number);
  if (!seeds.every(Number.isSafeInteger)) wrong('seeds', 'whole numbers with commas between');
  const Mode = z.enum(['gold', 'random', 'inverted']);
  const mode = Mode.safeParse(options.mode).data ?? wrong('mode', `one of ${Mode.options.join(', ')}`);
  let overrides: object = {};
  try {
    overrides = JSON.parse(options.config);
  } catch {
    wrong('config', 'JSON, such as \'{"ppo": {"learningRate": 0}}\'');
  }
  return {
    seeds,
    rounds: count('rounds'),
    judgements: count('judgements'),
    tickets: count('tickets'),
    raters: { ...RATER_DEFAULTS, mode, bias: options.bias ? BIASED_SHARE : 0 },
    ungated: options['no-gate'],
    config: runConfig({ ...overrides, maxAnswerTokens: MAX_TOKENS }),
    policy: options.policy,
    json: options.json,
    quiet: options.quiet,
  };
}

/** Several seeds at once, each by one thread: together they do more than one after the other by all (LOG.md). */
async function onEveryCore(args: string[], seeds: number[]): Promise<Totals> {
  const cores = Math.min(availableParallelism(), seeds.length);
  const parts = await Promise.all(
    Array.from({ length: cores }, (_, core) => {
      const share = seeds.filter((_, i) => i % cores === core).join();
      const child = fork(process.argv[1]!, ['sim', ...args, '--seeds', share], {
        env: { ...process.env, TF_NUM_INTRAOP_THREADS: '1' },
      });
      return new Promise<Totals>((resolve, reject) => {
        child.on('message', (totals) => resolve(totals as Totals));
        child.on('exit', () => reject(new UserError(`the simulation of seeds ${share} broke off`)));
      });
    }),
  );
  const sum = (name: keyof Totals) => parts.reduce((total, part) => total + part[name], 0);
  return {
    rose: sum('rose'),
    fell: sum('fell'),
    candidatesRose: sum('candidatesRose'),
    promotions: sum('promotions'),
    runs: sum('runs'),
  };
}

const counted = (n: number, what: string) => `${n} ${what}${n === 1 ? '' : 's'}`;

/** @param setUp makes the training engine ready; called once the options are found to be right */
export async function sim(args: string[], setUp: () => Promise<unknown>): Promise<void> {
  const simulation = simulationOf(args);
  await setUp();
  // A child of onEveryCore's tells its parent, and ends with it.
  process.on('disconnect', () => process.exit(1));
  const alone = async () => (await import('./simulate.ts')).simulate(simulation);
  const { seeds, raters, json } = simulation;
  const totals = process.send || seeds.length === 1 ? await alone() : await onEveryCore(args, seeds);
  if (process.send) process.send(totals, () => process.exit());
  else if (!json)
    console.log(
      `${raters.mode} raters, ${counted(seeds.length, 'seed')}: gold of what is served rose in ${totals.rose} and fell in ${totals.fell} (95 % intervals apart); ` +
        `${counted(totals.runs, 'candidate')}: ${totals.promotions} promoted, ${totals.candidatesRose} better than their parent by gold`,
    );
}
