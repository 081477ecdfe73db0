// Trees of tensors as safetensors files (float32, nothing rounded), so that a run that was cut off goes on where it was.

import { z } from 'zod';
import { MalformedFile } from '../schema/malformed.ts';
import { type FloatTensor, floats, readSafetensors, writeSafetensors } from '../schema/safetensors.ts';
import type { Tree } from './engine/compile.ts';
import { tf } from './engine/tf.ts';
import type { Trained } from './lora.ts';
import { DivergedError } from './metrics.ts';
import { type Parameters, trunkOf } from './model.ts';
import type { AdamState } from './optimizer.ts';
import type { PpoState } from './ppo.ts';
import type { FitState, RewardModel } from './reward.ts';
import type { SftState } from './sft.ts';

/**
 * A tree as a file; its paths become the tensors' names ("actor/parameters/layers/0/qkv"). Values that are not finite are no state to go on from.
 * @param when the tree is so, for the message
 */
export function treeToFile(tree: Tree, when?: { stage: string; step: number }): Uint8Array {
  const tensors = new Map<string, FloatTensor>();
  const walk = (branch: Tree, path: string) => {
    if (branch instanceof tf.Tensor) {
      const data = branch.dataSync() as Float32Array;
      if (!allFinite(data)) {
        const what = `${path} holds values that are not finite`;
        throw new DivergedError(when ? `${when.stage}: ${what} at step ${when.step}` : what);
      }
      tensors.set(path, { shape: branch.shape, data });
    } else for (const [key, value] of Object.entries(branch)) walk(value as Tree, path ? `${path}/${key}` : key);
  };
  walk(tree, '');
  return writeSafetensors(tensors, 'F32');
}

/** Without a branch for each number: there are millions, at each save. */
function allFinite(numbers: Float32Array): boolean {
  let sum = 0;
  for (let i = 0; i < numbers.length; i++) sum += numbers[i]! * 0; // NaN where the number is NaN or infinite
  return sum === 0;
}

/** The tree that treeToFile wrote: numbered branches become arrays again, in order. */
export function fileToTree(file: Uint8Array): Tree {
  const root: Record<string, unknown> = {};
  for (const [path, tensor] of readSafetensors(file)) {
    const keys = path.split('/');
    let at = root;
    for (const key of keys.slice(0, -1)) {
      at[key] ??= {};
      at = at[key] as Record<string, unknown>;
    }
    at[keys.at(-1)!] = tf.tensor(floats(tensor).slice(), tensor.shape);
  }
  const arrays = (branch: unknown): unknown => {
    if (branch instanceof tf.Tensor) return branch;
    const entries = Object.entries(branch as object);
    if (entries.every(([key]) => /^\d+$/.test(key)))
      return entries.sort(([a], [b]) => Number(a) - Number(b)).map(([, value]) => arrays(value));
    return Object.fromEntries(entries.map(([key, value]) => [key, arrays(value)]));
  };
  return arrays(root) as Tree;
}

/** Tensors in the form of another tree, whose keys may stand in another order in the file. */
export function inFormOf<T extends Tree>(form: T, tree: Tree): T {
  const other = () => new MalformedFile('its tensors are those of another model');
  const rebuild = (like: Tree, from: Tree | undefined): Tree => {
    if (like instanceof tf.Tensor) {
      if (!(from instanceof tf.Tensor) || from.shape.join() !== like.shape.join()) throw other();
      return from;
    }
    if (typeof from !== 'object' || from instanceof tf.Tensor) throw other();
    if (Array.isArray(like)) return like.map((branch, i) => rebuild(branch, (from as Tree[])[i]!));
    return Object.fromEntries(
      Object.entries(like).map(([key, value]) => [key, rebuild(value, (from as Record<string, Tree>)[key]!)]),
    );
  };
  return rebuild(form, tree) as T;
}

/** A branch's tensors by name, in that order. */
const pick = <T extends Tree, K extends keyof T & string>(branch: T | undefined, ...names: K[]): Pick<T, K> => {
  const absent = !branch || names.some((name) => !(branch[name] instanceof tf.Tensor));
  if (absent) throw new MalformedFile('its tensors are those of another model');
  return Object.fromEntries(names.map((name) => [name, branch[name]])) as Pick<T, K>;
};
const rewardOf = <T extends Trained>({ parameters, likelihood, ...rest }: FitState['rm'], like: T) => ({
  parameters: inFormOf(like, parameters as T),
  head: pick(rest.head, 'weight', 'bias'),
  ...pick(rest, 'aspects'),
  likelihood: {
    choices: pick(likelihood?.choices, 'logScale', 'logTies'),
    thumbs: pick(likelihood?.thumbs, 'logScale', 'bias', 'mean', 'logVariance', 'logDeviation'),
    ratings: pick(likelihood?.ratings, 'logScale', 'firstCut', 'logSteps'),
    outcomes: pick(likelihood?.outcomes, 'logScale', 'bias', 'logDeviation'),
  },
});
const adamOf = ({ m, v, ...rest }: AdamState): AdamState => ({ ...pick(rest, 'step', 'parted'), m, v });

/** A reward model as it was saved. */
export const rewardFromFile = (file: Uint8Array, like: Parameters): RewardModel =>
  rewardOf(fileToTree(file) as RewardModel, trunkOf(like));

/** The reward models of an ensemble, as far as they were fitted. */
export const rewardsFromFile = (file: Uint8Array, like: Parameters): RewardModel[] =>
  (fileToTree(file) as RewardModel[]).map((member) => rewardOf(member, trunkOf(like)));

/** A policy's weights as they were saved. */
export const parametersFromFile = (file: Uint8Array, like: Parameters): Parameters =>
  inFormOf(like, fileToTree(file) as Parameters);

/** The numbers of a stage's state, which stand beside its tensors. */
const StepScalars = z.object({ step: z.int() });
/** JSON has no NaN: a loss that was not yet measured is null there. */
const Loss = z
  .number()
  .nullable()
  .transform((loss) => loss ?? Number.NaN);
const SftScalars = StepScalars.extend({ loss: z.object({ last: Loss, least: Loss, sinceLeast: z.int() }) });
const PpoScalars = z.object({ beta: z.number(), iteration: z.int() });

/** What SFT goes on from: its tensors in the file, its numbers beside it. So have the others. */
export function sftStateFromFile(file: Uint8Array, scalars: unknown, like: Trained): SftState {
  const { trained, adam, best } = fileToTree(file) as unknown as SftState;
  return {
    trained: inFormOf(like, trained),
    adam: adamOf(adam),
    best: best ? inFormOf(like, best) : null,
    ...SftScalars.parse(scalars),
  };
}

/** @param like what is trained: the policy's weights, or adapters */
const trunk = (like: Trained): Trained => ('embedding' in like ? trunkOf(like) : like);

/** What the fitting of a reward model goes on from. */
export function fitStateFromFile(file: Uint8Array, scalars: unknown, like: Trained): FitState {
  const { rm, adam } = fileToTree(file) as unknown as FitState;
  return { rm: rewardOf(rm, trunk(like)), adam: adamOf(adam), ...StepScalars.parse(scalars) };
}

/** What PPO goes on from. */
export function ppoStateFromFile(file: Uint8Array, scalars: unknown, like: Trained): PpoState {
  const { actor, adam } = fileToTree(file) as unknown as PpoState;
  const parameters = inFormOf(like, actor.parameters);
  const value = { weight: actor.value.weight, bias: actor.value.bias };
  const critic = actor.critic ? { critic: inFormOf(trunk(like), actor.critic) } : {};
  return { actor: { parameters, value, ...critic }, adam: adamOf(adam), ...PpoScalars.parse(scalars) };
}
