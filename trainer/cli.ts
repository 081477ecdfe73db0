// The trainer's commands on files, for people who don't run the Worker: plumb train sft | reward | ppo | evaluate. Their options
// alone: what they do is in files.ts, which loads the training engine when one is asked for.

import { Command, InvalidArgumentError, Option } from 'commander';
import { LORA_PARTS, MAX_RANK, PPO_DEFAULTS, REWARD_DEFAULTS } from '../schema/run-config.ts';
import { SCHEDULES, SFT_DEFAULTS } from './config.ts';

const number = (text: string): number => {
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (!Number.isFinite(value)) throw new InvalidArgumentError('not a number');
  return value;
};
const positive = (text: string): number => {
  const value = number(text);
  if (value <= 0) throw new InvalidArgumentError('not above 0');
  return value;
};
const notNegative = (text: string): number => {
  const value = number(text);
  if (value < 0) throw new InvalidArgumentError('below 0');
  return value;
};
const seed = (text: string): number => {
  const value = number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError('not a whole number, or above 2^53');
  return value;
};
const count = (text: string): number => {
  const value = number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('not a whole number above 0');
  return value;
};

const loraParts = (text: string): string[] => {
  const parts = text === 'both' ? [...LORA_PARTS] : text.split(',');
  if (!parts.every((part) => (LORA_PARTS as readonly string[]).includes(part)))
    throw new InvalidArgumentError(`not ${LORA_PARTS.join(' or ')}`);
  return [...new Set(parts)].sort();
};

const shares = (text: string): Record<string, number> =>
  Object.fromEntries(
    text.split(',').map((part) => {
      const [, name, value] = /^(.+)=(.+)$/.exec(part) ?? [];
      if (!name || !value) throw new InvalidArgumentError('not like helpful=1,harmless=0.5');
      return [name, number(value)];
    }),
  );

const settings = (text: string): object => {
  try {
    const value = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  } catch {}
  throw new InvalidArgumentError('not a JSON object');
};

const rank = (text: string): number => {
  const value = seed(text);
  if (value > MAX_RANK) throw new InvalidArgumentError(`above ${MAX_RANK}: adapters that thick save nothing`);
  return value;
};

const loraRank = () =>
  new Option(
    '--lora-rank <n>',
    'train adapters of this rank in place of the weights, and merge them in the end; 0: all weights',
  )
    .argParser(rank)
    .default(0);
const loraOn = () =>
  new Option('--lora-on <parts>', `what is adapted: ${LORA_PARTS.join(', ')} or both`)
    .argParser(loraParts)
    .default([...LORA_PARTS], 'both');
const deterministic = () =>
  new Option(
    '--deterministic',
    'refuse to go on with a save of another machine: killed and resumed, the weights have the same SHA-256 as those of a call left alone on the same CPU model',
  );
const plan = () => new Option('--plan', 'say what it would take, from its first steps, and write nothing');

/** @param ready sets the training engine up, if need be */
export function trainCommand(ready: () => Promise<unknown>): Command {
  const stages = async () => {
    await ready();
    return import('./files.ts');
  };
  const train = new Command('train')
    .description(
      'train on files: one stage of the loop at a time. sft, reward and ppo go on where a call with the same --out was cut off',
    )
    .showHelpAfterError('(npx plumb train --help lists the stages)');

  train
    .command('sft')
    .description(
      'initial model training: cross-entropy on answers ({messages}, {prompt, completion}, {prompt, chosen}) or on plain text',
    )
    .requiredOption('--data <file>', 'JSONL; or plain text (.txt), which is cut into pieces at blank lines')
    .requiredOption(
      '--base <policy>',
      'policy whose configuration, tokenizer and weights to begin with: a folder, or a .gguf file',
    )
    .requiredOption('--out <folder>', 'where the policy goes')
    .option('--from-scratch', 'fresh weights instead of the base’s')
    .option('--own-tokenizer <size>', 'train a tokenizer of this size on the data first; implies --from-scratch', count)
    .option('--steps <n>', 'updates', count, 400)
    .option('--batch <n>', 'rows an update', count, 32)
    .option('--answer-tokens <n>', 'longest answer, or piece of text', count, 96)
    .option('--learning-rate <x>', 'at its peak', positive, SFT_DEFAULTS.learningRate)
    .addOption(
      new Option('--schedule <shape>', 'how the learning rate falls').choices(SCHEDULES).default(SFT_DEFAULTS.schedule),
    )
    .option(
      '--patience <n>',
      'measurements of the held-out loss in a row without a better one that end it, the best weights being kept; 0: never',
      seed,
      3,
    )
    .addOption(loraRank())
    .addOption(loraOn())
    .option('--seed <n>', 'of weights and order', seed, 0)
    .addOption(deterministic())
    .addOption(plan())
    .action(async (options) => (await stages()).sftOnFiles(options));

  train
    .command('reward')
    .description(
      'fit a reward model to {prompt, chosen, rejected}, {prompt, completions, ranks}, {prompt, completion, label}, {prompt, completion, aspect, value} or {prompt, completion, name, outcome}',
    )
    .requiredOption('--data <file>', 'JSONL')
    .requiredOption('--base <policy>', 'policy to begin from')
    .requiredOption('--out <folder>', 'where reward.safetensors and reward.report.json go')
    .option('--epochs <n>', 'passes over the data', count, REWARD_DEFAULTS.epochs)
    .option('--learning-rate <x>', 'at its peak', notNegative, REWARD_DEFAULTS.learningRate)
    .option('--answer-tokens <n>', 'longest answer', count, 256)
    .option(
      '--members <n>',
      'reward models, each fitted to conversations drawn anew; where they disagree, ppo --spread-penalty trusts none',
      count,
      REWARD_DEFAULTS.members,
    )
    .option(
      '--mix <aspect=x,…>',
      'how much of what sets each rated aspect apart goes into the score',
      shares,
      REWARD_DEFAULTS.mix,
    )
    .addOption(loraRank())
    .addOption(loraOn())
    .option('--seed <n>', 'of head and order', seed, 0)
    .addOption(deterministic())
    .addOption(plan())
    .action(async (options) => (await stages()).rewardOnFiles(options));

  train
    .command('ppo')
    .description('optimise a policy against a reward model')
    .requiredOption('--data <file>', 'JSONL of {prompt}')
    .requiredOption('--base <policy>', 'policy to begin from, and to stay near')
    .requiredOption('--reward <folder>', 'of plumb train reward')
    .requiredOption('--out <folder>', 'where the policy goes')
    .option('--episodes <n>', 'answers drawn in all', count, PPO_DEFAULTS.episodes)
    .option('--learning-rate <x>', 'at the start', notNegative, PPO_DEFAULTS.learningRate)
    .option('--beta <x>', 'KL coefficient at the start', notNegative, PPO_DEFAULTS.beta)
    .option('--kl-target <x>', 'nats a sequence', positive, PPO_DEFAULTS.klTarget)
    .option(
      '--spread-penalty <x>',
      'against an answer, times the standard deviation of its scores by several reward models',
      notNegative,
      PPO_DEFAULTS.spreadPenalty,
    )
    .option(
      '--settings <json>',
      'more of them, as config.ppo of POST /v1/runs names them, like {"separateValue": true, "answersPerPrompt": 1}; they go before the options',
      settings,
      {},
    )
    .option('--answer-tokens <n>', 'longest answer', count, 64)
    .addOption(loraRank())
    .addOption(loraOn())
    .option('--seed <n>', 'of answers and order', seed, 0)
    .addOption(deterministic())
    .addOption(plan())
    .action(async (options) => (await stages()).ppoOnFiles(options));

  train
    .command('evaluate')
    .description(
      'the gate: does a candidate beat its parent, by a judge fitted to judgements that neither was trained on?',
    )
    .requiredOption(
      '--data <file>',
      'judgements, JSONL: two thirds of their conversations fit the judge, one third checks it',
    )
    .requiredOption('--prompts <file>', 'JSONL of {prompt} on which the two compete')
    .requiredOption('--base <policy>', 'the parent')
    .requiredOption('--candidate <folder>', 'the new policy')
    .option('--root <folder>', 'first policy of the line (the parent, unless said)')
    .option('--answer-tokens <n>', 'longest answer', count, 64)
    .option('--seed <n>', 'of judge and answers', seed, 0)
    .action(async (options) => (await stages()).evaluateOnFiles(options));

  return train;
}
