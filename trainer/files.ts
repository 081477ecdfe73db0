// What plumb train does: one stage of the loop on files. cli.ts has the options.

import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { GATE_DEFAULTS, type LoraConfig, PPO_DEFAULTS, REWARD_DEFAULTS } from '../schema/run-config.ts';
import { tokenizerJson, trainBpe } from '../schema/tokenizer.ts';
import { reportOn, tableOf } from './calibration.ts';
import { fitStateFromFile, ppoStateFromFile, rewardFromFile, sftStateFromFile, treeToFile } from './checkpoint.ts';
import { runConfig, SFT_DEFAULTS, type SftConfig } from './config.ts';
import {
  promptOf,
  type Row,
  readLines,
  readSftLines,
  requireRoom,
  rootOf,
  type SftLine,
  sftRows,
  TextOrMessages,
  textsIn,
  withPrompt,
} from './data.ts';
import { compilations, dispose } from './engine/compile.ts';
import { parked } from './engine/parked.ts';
import { cautious, memberSeed, memberSees, memberStage, scoresByMember } from './ensemble.ts';
import { evaluate } from './evaluate.ts';
import { writeWhole } from './folder.ts';
import { weightFiles } from './import/from-folder.ts';
import { isGguf } from './import/from-gguf.ts';
import { judgedPrompts, readJudgements, requireRated, subjectsOf } from './judgements.ts';
import { formOf } from './lora.ts';
import { sha256 } from './manifest.ts';
import { toTerminal } from './metrics.ts';
import { initialParameters, type Parameters } from './model.ts';
import { drawingShape, fullestShape, rolloutShape, shapeFor } from './pack.ts';
import { planned } from './plan.ts';
import { type Policy, policyFromTexts, readPolicy } from './policy.ts';
import { policyCalls, ppo } from './ppo.ts';
import { random } from './random.ts';
import { fitReward, type RewardModel, rewardCalls, rightShare, scoresOf, tallied } from './reward.ts';
import { rowsOf, startSampler } from './rollout.ts';
import { savepoint } from './savepoint.ts';
import { sft } from './sft.ts';
import { reading, requireFolder, UserError } from './user-error.ts';
import { countParameters, readWeights, writePolicy } from './weights.ts';

interface Training {
  data: string;
  base: string;
  out: string;
  loraRank: number;
  loraOn: LoraConfig['on'];
  seed: number;
  deterministic?: boolean;
  plan?: boolean;
}
const loraOf = ({ loraRank, loraOn }: Training): LoraConfig | null =>
  loraRank > 0 ? { rank: loraRank, on: loraOn } : null;

export async function sftOnFiles(
  options: Training & {
    fromScratch?: boolean;
    ownTokenizer?: number;
    steps: number;
    batch: number;
    answerTokens: number;
    learningRate: number;
    schedule: SftConfig['schedule'];
    patience: number;
  },
): Promise<void> {
  let policy = readPolicy(options.base);
  const context = policy.config.max_position_embeddings;
  if (options.answerTokens >= context) throw tooLong(options.answerTokens, context);
  const read = () =>
    readSftLines(options.data, (line, at) => ({
      line,
      root: rootOf(line, at),
      rows: sftRows(policy, line, options.answerTokens),
    }));
  let conversations = read();
  if (options.ownTokenizer) {
    const lines = conversations.map(({ line }) => line);
    policy = withOwnTokenizer(policy, lines, options.ownTokenizer);
    conversations = read();
  }
  const rows = conversations.flatMap((conversation) => conversation.rows);
  const { train, held: heldOut } = parted(conversations, ({ root }) => root, 10);
  const [fitted, held] = [train, heldOut].map((part) => part.flatMap((conversation) => conversation.rows)) as [
    Row[],
    Row[],
  ];
  if (held.length === 0) console.error('fewer than ten conversations: none is held out, so there is no held-out loss');
  const fresh = options.fromScratch || options.ownTokenizer;
  const weights = fresh
    ? initialParameters(policy.config, random(options.seed, 'weights'))
    : readWeights(options.base, policy.config);
  const answered = conversations.flatMap(({ line, rows }) => ('text' in line ? [] : rows));
  const cut = answered.filter(({ answer }) => answer.at(-1) !== policy.config.eos_token_id).length;
  const many = (count: number, what: string) => `: ${count} of ${answered.length} ${what}`;
  if (cut > 0)
    console.error(
      `longer than ${options.answerTokens} tokens (--answer-tokens), and learnt to there alone${many(cut, 'answers')}`,
    );
  const long = longerThan(context, answered);
  if (long > 0)
    console.error(`longer than the policy's context, and learnt without the beginning${many(long, 'prompts')}`);
  const longest = rows.reduce((most, { prompt, answer }) => Math.max(most, prompt.length + answer.length), 0);
  const shape = shapeFor(Math.min(longest, policy.config.max_position_embeddings));
  const warmup = Math.max(1, Math.min(SFT_DEFAULTS.warmup, Math.floor(options.steps / 10)));
  const lora = loraOf(options);
  const tokens = options.batch * tokensIn(fitted);
  // The held-out loss is measured ten times, forward alone; where steps are so few, it falls among those that are timed.
  const measuring = options.steps > 40 && held.length > 0 ? (10 * held.length * tokensIn(held)) / (3 * tokens) : 0;
  const work = options.plan
    ? planned(countParameters(weights), () => tokens, measuring)
    : await savepoint('sft', options, [options.data, ...baseFiles(options.base)], policy.config);
  const { parameters, loss } = await sft(
    policy.config,
    weights,
    fitted,
    held,
    {
      ...SFT_DEFAULTS,
      steps: options.steps,
      batch: options.batch,
      shape,
      warmup,
      learningRate: options.learningRate,
      schedule: options.schedule,
      patience: options.patience,
      lora,
      seed: options.seed,
    },
    work.report,
    work.saved((tensors, scalars) => sftStateFromFile(tensors, scalars, formOf(policy.config, lora, weights))),
    ({ trained, adam, best, ...scalars }) =>
      work.save(scalars.step, { trained, adam, ...(best ? { best } : {}) }, scalars),
  ).catch(work.giveUp);
  writePolicy(options.out, policy, parameters);
  work.remove();
  console.log(
    `${Number.isNaN(loss) ? '' : `held-out loss ${loss.toFixed(4)} nats a token; `}policy written to ${options.out}`,
  );
}

export async function rewardOnFiles(
  options: Training & {
    epochs: number;
    learningRate: number;
    answerTokens: number;
    members: number;
    mix: Record<string, number>;
  },
): Promise<void> {
  const policy = readPolicy(options.base);
  requireContext(policy, options.answerTokens);
  const weights = readWeights(options.base, policy.config);
  const judgements = readJudgements(policy, options.data);
  const long = longerThan(
    policy.config.max_position_embeddings,
    judgements.flatMap(({ rows }) => rows),
  );
  if (long > 0)
    console.error(`${long} answers are longer than the policy's context, and are judged by their beginnings`);
  const { train: fitted, held } = parted(judgements, (judgement) => judgement.root, 10);
  if (held.length === 0)
    console.error('fewer than ten conversations: none is held out, so nothing says how right it is');
  const judged = judgements.map(({ rows }) => rows);
  const { maxTokens, longest } = drawingShape(policy.config.max_position_embeddings, judged, [], options.answerTokens);
  const { epochs, learningRate, members, mix, seed } = options;
  const lora = loraOf(options);
  const config = runConfig({ lora, reward: { epochs, learningRate, members, mix } }).reward;
  requireRated(mix, fitted);
  const calls = rewardCalls(policy.config, fullestShape(longest, judged, config.judgements), config, lora);
  const on = await drawn(policy, weights, judgedPrompts(judgements), maxTokens, seed);
  const tokens =
    (Math.min(calls.config.judgements, fitted.length) / fitted.length) *
    sumOfTokens(fitted.flatMap(({ rows }) => rows));
  const work = options.plan
    ? planned(
        countParameters(weights),
        () => tokens,
        (members - 1) * epochs * Math.ceil(fitted.length / config.judgements),
      )
    : await savepoint('reward', options, [options.data, ...baseFiles(options.base)], policy.config);
  const form = formOf(policy.config, lora, weights);
  const begun = work.saved((tensors, scalars) => ({
    fit: fitStateFromFile(tensors, scalars, form),
    ...MemberScalar.parse(scalars),
  }));
  const finished: string[] = []; // hashes of the members' files
  const pad = policy.config.pad_token_id;
  const scored: number[][][] = []; // by member, judgement and answer
  for (let member = 0; member < members; member++) {
    const path = rewardFile(options.out, member);
    let rm: RewardModel;
    const hash = begun?.finished[member];
    let file: Uint8Array | null = hash && existsSync(path) ? readFileSync(path) : null;
    if (file && sha256(file) === hash) rm = rewardFromFile(file, weights);
    else {
      if (hash) console.error(`${path} is damaged: its model is fitted anew`);
      rm = await fitReward(
        policy.config,
        calls,
        weights,
        memberSees(fitted, member, seed),
        on,
        memberSeed(seed, member),
        memberStage(member),
        work.report,
        begun?.member === member ? begun.fit : null,
        ({ rm, adam, step }) => work.save(step, { rm, adam }, { step, member, finished }),
      ).catch(work.giveUp);
      file = treeToFile(rm);
      writeWhole(path, file);
    }
    finished.push(sha256(file));
    scored.push(await scoresOf(calls, rm, held, pad));
    if (member === 0) {
      const report = await reportOn(calls, rm, subjectsOf(fitted), held, scored[0]!, pad);
      const text = new TextEncoder().encode(`${JSON.stringify(report, null, 2)}\n`);
      writeWhole(join(options.out, 'reward.report.json'), text);
      for (const line of tableOf(report)) console.log(line);
    }
    dispose(rm);
  }
  // Those of an earlier call that had more: ppo would go by them too.
  for (let member = members; existsSync(rewardFile(options.out, member)); member++)
    rmSync(rewardFile(options.out, member));
  work.remove();
  const together = held.map((_, j) =>
    cautious(
      scored.map((by) => by[j]!),
      0,
    ),
  );
  const tallies = tallied(held, together);
  const whose = members > 1 ? `, by the mean of ${members} models` : '';
  const accurate =
    tallies.length > 0
      ? `right about ${(100 * rightShare(tallies)).toFixed(1)} % of the pairs in ${tallies.length} held-out conversations${whose}; `
      : '';
  console.log(`${accurate}${members > 1 ? 'reward models' : 'reward model'} written to ${options.out}`);
}

export async function ppoOnFiles(
  options: Training & {
    reward: string;
    episodes: number;
    learningRate: number;
    beta: number;
    klTarget: number;
    spreadPenalty: number;
    settings: object;
    answerTokens: number;
  },
): Promise<void> {
  const policy = readPolicy(options.base);
  requireContext(policy, options.answerTokens);
  const parent = readWeights(options.base, policy.config);
  const members = readRewards(options.reward, parent);
  const prompts = readPrompts(policy, options.data);
  const context = policy.config.max_position_embeddings;
  const { maxTokens, longest } = drawingShape(context, [], prompts, options.answerTokens);
  const { episodes, learningRate, beta, klTarget, spreadPenalty, seed } = options;
  const lora = loraOf(options);
  const given = { episodes, learningRate, beta, klTarget, spreadPenalty, ...options.settings };
  const config = { ...runConfig({ lora, ppo: given }).ppo, seed };
  if (config.episodes < config.rollout)
    throw new UserError(
      `--episodes ${config.episodes}: each step draws ${config.rollout} answers, so give that many or more`,
    );
  const asked = prompts.reduce((sum, { length }) => sum + length, 0) / prompts.length;
  const inputs = [options.data, ...baseFiles(options.base), ...members.map((_, i) => rewardFile(options.reward, i))];
  const work = options.plan
    ? planned(countParameters(parent), (metrics) => config.rollout * (asked + metrics['objective/length']!))
    : await savepoint('ppo', options, inputs, policy.config);
  const first = prompts.slice(0, Math.ceil(config.rollout / config.answersPerPrompt));
  const like = await drawn(policy, parent, first, maxTokens, seed);
  const shape = rolloutShape(longest, prompts, like, config);
  const calls = {
    policy: policyCalls(policy.config, shape, config, lora),
    reward: rewardCalls(policy.config, shape, REWARD_DEFAULTS),
  };
  const byMember = (rows: Row[]) => scoresByMember(calls.reward, members, rows, policy.config.pad_token_id);
  const sampler = startSampler(policy.config);
  try {
    using resting = parked(members.map(({ parameters }) => parameters));
    const optimised = await ppo(
      policy.config,
      calls.policy,
      async (rows) => cautious(await resting.use(() => byMember(rows)), config.spreadPenalty),
      parent,
      prompts,
      sampler.sample,
      maxTokens,
      config,
      work.report,
      work.saved((tensors, scalars) => ppoStateFromFile(tensors, scalars, formOf(policy.config, lora, parent))),
      ({ actor, adam, ...scalars }) => work.save(scalars.iteration, { actor, adam }, scalars),
    ).catch(work.giveUp);
    writePolicy(options.out, policy, optimised);
  } finally {
    await sampler.close();
  }
  work.remove();
  console.log(`policy written to ${options.out}`);
}

export async function evaluateOnFiles(options: {
  data: string;
  prompts: string;
  base: string;
  candidate: string;
  root?: string;
  answerTokens: number;
  seed: number;
}): Promise<void> {
  const policy = readPolicy(options.base);
  requireContext(policy, options.answerTokens);
  const model = policy.config;
  const parent = readWeights(options.base, model);
  const candidate = weightsLike(policy, options.candidate);
  const root = options.root ? weightsLike(policy, options.root) : parent;
  const judgements = readJudgements(policy, options.data);
  const prompts = readPrompts(policy, options.prompts);
  const judged = judgements.map(({ rows }) => rows);
  const { maxTokens, shape } = drawingShape(model.max_position_embeddings, judged, prompts, options.answerTokens);
  const calls = {
    policy: policyCalls(model, shape, PPO_DEFAULTS),
    reward: rewardCalls(model, shape, REWARD_DEFAULTS),
  };
  const { train: fitted, held } = parted(judgements, (judgement) => judgement.root, 3);
  const on = await drawn(policy, root, prompts, maxTokens, options.seed);
  const judge = await fitReward(
    model,
    calls.reward,
    root,
    fitted,
    on,
    options.seed,
    'judge',
    toTerminal(process.stderr, compilations),
  );
  const sampler = startSampler(model);
  try {
    const gate = await evaluate(model, calls, { root, parent, candidate }, judge, held, prompts, sampler, maxTokens, {
      ...GATE_DEFAULTS,
      seed: options.seed,
    });
    for (const reason of gate.reasons)
      console.log(`${reason.passed ? 'passed' : 'FAILED'}  ${reason.check}: ${reason.words}`);
    console.log(gate.verdict);
    if (gate.verdict === 'reject') process.exitCode = 3;
  } finally {
    await sampler.close();
    dispose(judge);
  }
}

const tooLong = (answerTokens: number, context: number) =>
  new UserError(`--answer-tokens ${answerTokens}: the policy takes ${context} tokens, the prompt's among them`);
/** Answers that are drawn end with the context, but nobody means more than it. */
function requireContext({ config }: Policy, answerTokens: number): void {
  const context = config.max_position_embeddings;
  if (answerTokens > context) throw tooLong(answerTokens, context);
}

const sumOfTokens = (rows: Row[]): number =>
  rows.reduce((sum, { prompt, answer }) => sum + prompt.length + answer.length, 0);
/** Of a row, on average. */
const tokensIn = (rows: Row[]): number => sumOfTokens(rows) / rows.length;

/** What a policy is made of: another shape or tokenizer below the same weights is another base. */
const baseFiles = (policy: string) =>
  isGguf(policy)
    ? [policy]
    : [
        ...['config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja']
          .map((name) => join(policy, name))
          .filter((path) => existsSync(path)),
        ...weightFiles(policy),
      ];

/** Where a reward model is: the first, which is all of them unless --members says more, has no number. */
const rewardFile = (folder: string, member: number) =>
  join(folder, member === 0 ? 'reward.safetensors' : `reward.${member + 1}.safetensors`);
/** Of which reward model a save is, and of those before it their files' hashes. */
const MemberScalar = z.object({ member: z.int(), finished: z.array(z.string()) });

/** Every n-th conversation is held out, whole: rows of one conversation never stand on both sides. */
function parted<T>(rows: T[], rootOf: (row: T) => string, nth: number): { train: T[]; held: T[] } {
  const places = new Map<string, number>();
  for (const row of rows) if (!places.has(rootOf(row))) places.set(rootOf(row), places.size);
  const held = (row: T) => places.get(rootOf(row))! % nth === nth - 1;
  return { train: rows.filter((row) => !held(row)), held: rows.filter(held) };
}

const PromptLine = z.preprocess(withPrompt, z.looseObject({ prompt: TextOrMessages }));
/** Distinct prompts, in the order in which they first come. */
const readPrompts = (policy: Policy, path: string): number[][] => {
  const encoded = readLines(path, PromptLine, ({ prompt }) =>
    requireRoom(policy, policy.encodePrompt(promptOf(prompt))),
  );
  return [...new Map(encoded.map((ids) => [ids.join(), ids])).values()];
};

/** The weights of a policy that is to be compared with another: of the same form. */
function weightsLike({ config }: Policy, folder: string): Parameters {
  requireFolder(folder);
  const other = readPolicy(folder).config;
  const differ = (['vocab_size', 'hidden_size', 'num_hidden_layers'] as const).filter(
    (name) => other[name] !== config[name],
  );
  if (differ.length > 0)
    throw new UserError(
      `${folder} is not of the base's form: ${differ.map((name) => `${name} ${other[name]}, not ${config[name]}`).join('; ')}`,
    );
  return readWeights(folder, config);
}

/** The reward models of a folder, by their numbers. */
function readRewards(folder: string, like: Parameters): RewardModel[] {
  requireFolder(folder);
  const members: RewardModel[] = [];
  for (let path = rewardFile(folder, 0); existsSync(path); path = rewardFile(folder, members.length))
    members.push(reading(path, () => rewardFromFile(readFileSync(path), like)));
  if (members.length === 0)
    throw new UserError(`${folder} has no reward.safetensors: make one with npx plumb train reward`);
  return members;
}

/** Answers of the policy to given prompts, by which scores are brought to mean 0 and variance 1, or a shape is chosen. */
async function drawn(
  policy: Policy,
  weights: Parameters,
  prompts: number[][],
  answer: number,
  seed: number,
): Promise<Row[]> {
  const sampler = startSampler(policy.config);
  try {
    const asked = prompts.slice(0, 400);
    const sampled = await sampler.sample(
      weights,
      asked,
      asked.map((_, i) => seed * 1_000_003 + i),
      { maxTokens: answer, temperature: 1 },
    );
    return rowsOf(asked, sampled);
  } finally {
    await sampler.close();
  }
}

/** How many rows the policy's context does not take whole. */
const longerThan = (context: number, rows: Row[]): number =>
  rows.filter(({ prompt, answer }) => prompt.length + answer.length > context).length;

/** The base's form with a tokenizer trained on the data; its special tokens come first, in their order. */
function withOwnTokenizer(base: Policy, lines: SftLine[], vocabSize: number): Policy {
  const special = [...base.tokenizer.added.keys()];
  const least = 256 + special.length;
  if (vocabSize <= least)
    throw new UserError(`--own-tokenizer ${vocabSize}: a tokenizer has more than ${least} tokens`);
  const moved = (id: number) => {
    const place = special.findIndex((name) => base.tokenizer.added.get(name)!.id === id);
    if (place < 0) throw new UserError(`token ${id} of the base's config.json is none of its tokenizer's added tokens`);
    return place;
  };
  const { bos_token_id: bos, eos_token_id: eos, pad_token_id: pad } = base.config;
  const ids = {
    bos_token_id: bos === null ? null : moved(bos),
    eos_token_id: moved(eos),
    pad_token_id: moved(pad),
  };
  const scratch = { ...base.config, ...ids, vocab_size: vocabSize };
  const files = {
    ...base.files,
    'tokenizer.json': tokenizerJson(trainBpe(lines.flatMap(textsIn), { vocabSize, special, individualDigits: true })),
    'generation_config.json': `${JSON.stringify({ ...JSON.parse(base.files['generation_config.json']), ...ids }, null, 2)}\n`,
  };
  return policyFromTexts((name) =>
    name === 'config.json' ? JSON.stringify(scratch) : files[name as keyof typeof files],
  );
}
