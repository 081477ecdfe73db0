// npm run bench [-- group] [--json]: figures of what Plumb does beside something that does the same, both sides in turn in one
// run, medians of several rounds. With --json one line a pair; --plot draws how figures grow. A busy machine gives bad figures: leave it
// alone meanwhile.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import type { Pair } from './pair.ts';
import { growthPlot } from './plot.ts';

type Group = { about: string; engine?: boolean; pairs: () => Promise<AsyncGenerator<Pair>> };

async function* inTurn(...groups: (() => AsyncGenerator<Pair>)[]): AsyncGenerator<Pair> {
  for (const group of groups) yield* group();
}

/** A group is loaded when its turn comes: importing the trainer's loads TensorFlow. */
const GROUPS: Record<string, Group> = {
  decoder: {
    about:
      'tokens a second in Node: the seed policy beside the plain decoder; SmolLM2 beside llama.cpp (compiled at its first run, 20 minutes) and transformers (6 GB); then the rows of chats',
    pairs: async () => inTurn((await import('./decoder.ts')).decoder, (await import('./chats.ts')).chats),
  },
  edge: {
    about: 'votes a second over HTTP beside a bare insert into D1; cold starts',
    pairs: async () => (await import('./edge.ts')).edge(),
  },
  chats: {
    about:
      'SmolLM2 over HTTP: beside llama.cpp, first tokens under load, a release meanwhile, processor time and cost of an answer',
    pairs: async () => (await import('./chats.ts')).chats(),
  },
  trainer: {
    about: 'all rows of the trainer, which take hours: torch, trl, trl-large, growth, memory, compiled',
    engine: true,
    pairs: async () =>
      inTurn(
        (await import('./torch.ts')).torch,
        (await import('./trl.ts')).trl,
        (await import('./trl.ts')).trlLarge,
        (await import('./growth.ts')).growth,
        (await import('./memory.ts')).memory,
        (await import('./compiled.ts')).compiled,
      ),
  },
  compiled: {
    about: 'the compiled calls of a run beside the same code op by op',
    engine: true,
    pairs: async () => (await import('./compiled.ts')).compiled(),
  },
  torch: {
    about: "a training step beside PyTorch's (installs torch and TRL, some 6 GB, at its first run)",
    engine: true,
    pairs: async () => (await import('./torch.ts')).torch(),
  },
  trl: {
    about: "the stages beside TRL's",
    engine: true,
    pairs: async () => (await import('./trl.ts')).trl(),
  },
  'trl-large': {
    about: 'the same with 135 million weights (an hour or two: left out unless it is named)',
    engine: true,
    pairs: async () => (await import('./trl.ts')).trlLarge(),
  },
  growth: {
    about: 'a training step as batch and context grow, beside what the arithmetic of the middle one makes of it',
    engine: true,
    pairs: async () => (await import('./growth.ts')).growth(),
  },
  memory: {
    about: 'what a training step takes at its peak, and whether ten thousand of them take more',
    pairs: async () => (await import('./memory.ts')).memory(),
  },
  demo: {
    about: 'one round of the demo, stage by stage, beside what each is meant to take',
    engine: true,
    pairs: async () => (await import('./demo.ts')).demo(),
  },
};

/** Left out unless they are named: what takes hours, and what another has among its rows. */
const APART = ['trainer', 'trl-large', 'chats'];

const shown = (value: number): string => value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);

const USAGE = `npm run bench [-- ${Object.keys(GROUPS).join('|')}] [--json] [--plot file.svg]`;

function usage(problem: string): never {
  console.error(`bench: ${problem}: ${USAGE}`);
  process.exit(2);
}

let given: { values: { json: boolean; help: boolean; plot?: string }; positionals: string[] };
try {
  const flag = { type: 'boolean', default: false } as const;
  given = parseArgs({ options: { json: flag, help: flag, plot: { type: 'string' } }, allowPositionals: true });
} catch (error) {
  usage((error as Error).message.split('.')[0]!);
}
const { values: options, positionals } = given;
if (options.help) {
  console.log(`${USAGE}\n`);
  for (const [name, { about }] of Object.entries(GROUPS)) console.log(`  ${name.padEnd(9)}  ${about}`);
  process.exit(0);
}
const unknown = positionals.find((name) => !GROUPS[name]);
if (unknown) usage(`there is no group ${unknown}`);

const pairs: Pair[] = [];
for (const name of positionals.length > 0
  ? positionals
  : Object.keys(GROUPS).filter((group) => !APART.includes(group))) {
  const group = GROUPS[name]!;
  if (group.engine) await setUpEngine();
  for await (const pair of await group.pairs()) {
    pairs.push(pair);
    if (options.json) console.log(JSON.stringify(pair));
    else
      console.log(
        `${pair.name.padEnd(34)} ${shown(pair.ours).padStart(8)} beside ${shown(pair.theirs).padStart(8)} ${pair.unit.padEnd(9)}` +
          ` ${shown(pair.ratio).padStart(6)} × (goal ${pair.goal})${pair.note ? `  ${pair.note}` : ''}`,
      );
  }
}
if (options.plot) {
  if (pairs.some(({ at }) => at)) writeFileSync(options.plot, growthPlot('How it grows', pairs));
  else console.error('bench: no row of these groups shows how a figure grows: nothing is drawn');
}
