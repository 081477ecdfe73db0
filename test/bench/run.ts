// npm run bench [-- group] [--json]: figures of what Plumb does beside something that does the same, both sides in turn in one
// run, medians of several rounds. With --json one line a pair. A busy machine gives bad figures: leave it alone meanwhile.
//
//   decoder   tokens a second in Node: the seed policy by the wasm decoder beside the plain one; SmolLM2 in 4 bits (downloads it, 90 MB)
//   edge      votes a second over HTTP beside a bare insert into D1; cold starts
//   chats     SmolLM2 over HTTP: first tokens under load, a release meanwhile, processor time and cost of an answer
//   trainer   the compiled calls of a run beside the same code op by op (sets the training engine up if need be)
//   torch     a training step beside PyTorch's (installs torch and TRL, some 6 GB, at its first run)
//   trl       the stages beside TRL's
//   trl-large the same with 135 million weights (an hour or two: left out unless it is named)
//   growth    a training step as batch and context grow, beside what the arithmetic of the middle one makes of it
//   memory    what a training step takes at its peak, and whether ten thousand of them take more
//   demo      one round of the demo, stage by stage, beside what each is meant to take
import { parseArgs } from 'node:util';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import type { Pair } from './pair.ts';

/** A group is loaded when its turn comes: importing the trainer's loads TensorFlow. */
const GROUPS: Record<string, () => Promise<AsyncGenerator<Pair>>> = {
  decoder: async () => (await import('./decoder.ts')).decoder(),
  edge: async () => (await import('./edge.ts')).edge(),
  chats: async () => (await import('./chats.ts')).chats(),
  trainer: async () => {
    await setUpEngine();
    return (await import('./trainer.ts')).trainer();
  },
  torch: async () => {
    await setUpEngine();
    return (await import('./torch.ts')).torch();
  },
  trl: async () => {
    await setUpEngine();
    return (await import('./trl.ts')).trl();
  },
  'trl-large': async () => {
    await setUpEngine();
    return (await import('./trl.ts')).trlLarge();
  },
  growth: async () => {
    await setUpEngine();
    return (await import('./growth.ts')).growth();
  },
  memory: async () => {
    await setUpEngine();
    return (await import('./memory.ts')).memory();
  },
  demo: async () => {
    await setUpEngine();
    return (await import('./demo.ts')).demo();
  },
};

const shown = (value: number): string => value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);

function usage(problem: string): never {
  console.error(`bench: ${problem}: npm run bench [-- ${Object.keys(GROUPS).join('|')}] [--json]`);
  process.exit(2);
}

let given: { values: { json: boolean }; positionals: string[] };
try {
  given = parseArgs({ options: { json: { type: 'boolean', default: false } }, allowPositionals: true });
} catch (error) {
  usage((error as Error).message.split('.')[0]!);
}
const { values: options, positionals } = given;
const unknown = positionals.find((name) => !GROUPS[name]);
if (unknown) usage(`there is no group ${unknown}`);

for (const name of positionals.length > 0
  ? positionals
  : Object.keys(GROUPS).filter((group) => group !== 'trl-large')) {
  for await (const pair of await GROUPS[name]!()) {
    if (options.json) console.log(JSON.stringify(pair));
    else
      console.log(
        `${pair.name.padEnd(34)} ${shown(pair.ours).padStart(8)} beside ${shown(pair.theirs).padStart(8)} ${pair.unit.padEnd(9)}` +
          ` ${shown(pair.ratio).padStart(6)} × (goal ${pair.goal})${pair.note ? `  ${pair.note}` : ''}`,
      );
  }
}
