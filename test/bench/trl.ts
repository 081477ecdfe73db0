// The stages beside TRL's on random weights and tokens, two threads each: whole steps as the stages make them, and PPO's iterations with their
// rollouts. TRL's better precision counts. Of two sizes: 6.84 million weights, and SmolLM2's 135 million, whose memory is compared, too.

import type { ModelConfig } from '../../schema/manifest.ts';
import { precisionFor } from '../../trainer/model.ts';
import { forwardFlop, shareOf } from './flop.ts';
import { LARGE, SMALL } from './models.ts';
import { compared, type Pair, pair } from './pair.ts';
import { type Peer, startOurs, startPeer } from './peers.ts';

/** Name, our stage, TRL's, goal, steps a round. */
type Row = [string, Stage, string, number, number];
type Stage = keyof typeof FLOP;

/** Arithmetic that a step of stage.ts can't do without. A pass forward and back is three forward; of one that trains adapters alone no product of gradient and input is wanted. */
const FLOP = {
  sft: (model: ModelConfig) => 3 * forwardFlop(model, 16 * 128, 128, 16 * 127),
  'sft-lora': (model: ModelConfig) => 2 * forwardFlop(model, 16 * 128, 128, 16 * 127),
  reward: (model: ModelConfig) => 3 * forwardFlop(model, 16 * 2 * 64, 64, 0),
  'reward-shared': (model: ModelConfig) => 3 * forwardFlop(model, 16 * (32 + 2 * 32), 64, 0),
  ppo: (model: ModelConfig) => ppoFlop(model, false),
  'ppo-separate': (model: ModelConfig) => ppoFlop(model, true),
};

/**
 * 32 answers of 48 tokens to prompts of 16 are drawn, scored by policy, reference and reward model, and stepped on four times: four answers to a
 * prompt, which is computed once; or as TRL has it one to each, beside the policy a value model.
 */
function ppoFlop(model: ModelConfig, asTrl: boolean): number {
  const [tokens, T] = [asTrl ? 32 * (16 + 48) : 8 * (16 + 4 * 48), 16 + 48];
  const trunk = forwardFlop(model, tokens, T, 0);
  const policy = forwardFlop(model, tokens, T, 32 * 48);
  return (3 + 4 * 3) * policy + trunk + (asTrl ? (1 + 4 * 3) * trunk : 0);
}

export const trl = (): AsyncGenerator<Pair> =>
  beside('small', [
    ['sft 6.84M vs trl', 'sft', 'sft', 2, 4],
    ['reward 6.84M vs trl, unrelated pairs', 'reward', 'reward', 1.8, 4],
    ['reward 6.84M vs trl, prompts shared', 'reward-shared', 'reward', 2.5, 4],
    ['ppo 6.84M default vs trl', 'ppo', 'ppo', 5, 1],
    ['ppo 6.84M separate value vs trl', 'ppo-separate', 'ppo', 3, 1],
  ]);

export const trlLarge = (): AsyncGenerator<Pair> =>
  beside('large', [
    ['sft 135M vs trl', 'sft', 'sft', 2, 1],
    ['sft 135M LoRA vs trl with peft', 'sft-lora', 'sft-lora', 2, 1],
    ['reward 135M vs trl', 'reward', 'reward', 1.8, 1],
    ['ppo 135M vs trl', 'ppo', 'ppo', 5, 1],
  ]);

async function* beside(size: 'small' | 'large', rows: Row[]): AsyncGenerator<Pair> {
  const model = size === 'large' ? LARGE : SMALL;
  const precision = precisionFor(model);
  // One that is half as fast is asked no more, in later rows neither: without instructions for it, bfloat16 takes hours.
  let dtypes = ['float32', 'bfloat16'];
  for (const [name, stage, theirStage, goal, steps] of rows) {
    const ours = await startOurs('stage.ts', stage, size);
    const peers: Peer[] = [];
    for (const dtype of dtypes) peers.push(await startPeer('trl_stage.py', theirStage, dtype, size));
    let rivals = peers;
    const note =
      dtypes.length > 1
        ? 'TRL in float32 and bfloat16, the better of the two'
        : `TRL in ${dtypes[0]}, twice as fast here`;
    const row = await pair({
      name: `trl/${name}`,
      unit: 'steps/s',
      more: true,
      goal,
      ours: () => ours.rate(steps),
      theirs: async () => {
        const rates: number[] = [];
        for (const peer of rivals) rates.push(await peer.rate(steps));
        const best = Math.max(...rates);
        dtypes = dtypes.filter((_, i) => rates[i]! > best / 2);
        rivals = rivals.filter((_, i) => rates[i]! > best / 2);
        return best;
      },
    });
    const speed = (row.ours * FLOP[stage](model)) / 1e9;
    yield { ...row, note: `${shareOf(speed, precision)}; ${note}` };
    if (size === 'large')
      yield compared({
        name: `trl/memory ${name}`,
        unit: 'GB',
        more: false,
        goal: 2,
        ours: [ours.peak() / 1e9],
        theirs: [Math.min(...peers.map((peer) => peer.peak())) / 1e9],
        note: `the most each process held; ${note.replace('better', 'smaller')}`,
      });
    for (const peer of [ours, ...peers]) peer.close();
  }
}
