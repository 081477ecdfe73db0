// A run: reward model → PPO → gate, on judgements that are already parted into sides. Knows nothing of HTTP or files; job.ts
// (over the job protocol) and the simulation call it.

import type { ModelConfig } from '../schema/manifest.ts';
import type { RunConfig } from '../schema/run-config.ts';
import type { Side } from '../schema/snapshot.ts';
import { calibrationOf, preferredIn, scaleOf } from './calibration.ts';
import type { Row } from './data.ts';
import { dispose } from './engine/compile.ts';
import { parked } from './engine/parked.ts';
import { cautious, memberSeed, memberSees, memberStage, scoresByMember } from './ensemble.ts';
import { evaluate, type GateReport } from './evaluate.ts';
import { type Judgement, judgedPrompts, requireRated } from './judgements.ts';
import { DivergedError, type Report } from './metrics.ts';
import type { Parameters } from './model.ts';
import type { Shape } from './pack.ts';
import { type PpoState, policyCalls, ppo } from './ppo.ts';
import { type FitState, fitReward, type RewardModel, rewardCalls, rightShare, scoresOf, tallied } from './reward.ts';
import { rowsOf, type startSampler } from './rollout.ts';

interface RunInput {
  model: ModelConfig;
  root: Parameters;
  parent: Parameters;
  judgements: Record<Side, Judgement[]>;
  /** Distinct prompts as ids, by side. */
  prompts: Record<Side, number[][]>;
}

/** Where a run that was cut off goes on. */
export interface Progressed {
  /** The next reward model, or with a candidate the judge, as far as it is fitted. */
  fit?: FitState;
  /** Those that are fitted. */
  reward?: RewardModel[];
  ppo?: PpoState;
  candidate?: Parameters;
}

/** Judged prompts that are enough to practise on. */
const LEAST_PROMPTS = 64;

type ArgumentsOf<F> = F extends (...args: infer A) => unknown ? A : never;

interface RunResult {
  candidate: Parameters | null;
  gate: GateReport;
}

/** The compiled calls of every stage, all at one shape. */
type StageCalls = { policy: ReturnType<typeof policyCalls>; reward: ReturnType<typeof rewardCalls> };
export const stageCalls = (model: ModelConfig, shape: Shape, config: RunConfig): StageCalls => ({
  policy: policyCalls(model, shape, config.ppo, config.lora),
  reward: rewardCalls(model, shape, config.reward, config.lora),
});

/**
 * Fits the reward model on side A, optimises the policy on A's prompts (those that were judged, if they are enough), fits the judge on side B
 * from the root, and runs the gate. A policy that diverges is rejected with the reason; every other error is thrown.
 * @param keep is called with what there is to go on from: after each step that leaves something, and after each stage
 */
export async function runStages(...args: ArgumentsOf<typeof stages>): Promise<RunResult> {
  try {
    return await stages(...args);
  } catch (error) {
    if (!(error instanceof DivergedError)) throw error;
    return { candidate: null, gate: refused('training', error.message) };
  }
}

async function stages(
  input: RunInput,
  config: RunConfig,
  calls: StageCalls,
  sampler: ReturnType<typeof startSampler>,
  maxTokens: number,
  report: Report,
  from: Progressed = {},
  keep: (progressed: Progressed) => void | Promise<void> = () => {},
): Promise<RunResult> {
  const { model, root, parent, judgements, prompts } = input;
  const pad = model.pad_token_id;
  requireRated(config.reward.mix, judgements.A);

  // Answers that a fresh head's scores are brought to mean 0 and variance 1 on: a hundred tell both within a tenth, and large models draw slowly.
  const draw = async (parameters: Parameters, of: number[][], seed: number): Promise<Row[]> => {
    const asked = Array.from(
      { length: Math.min(config.lora ? 100 : 400, 2 * of.length) },
      (_, i) => of[i % of.length]!,
    );
    const seeds = asked.map((_, i) => (seed * 1_000_003 + i) >>> 0);
    const sampled = await sampler.sample(parameters, asked, seeds, { maxTokens, temperature: 1 });
    return rowsOf(asked, sampled);
  };

  let candidate = from.candidate ?? null;
  if (!candidate) {
    // Practised on is what was judged, where that is enough: there the reward model knows best what people want (LOG.md).
    const judged = judgedPrompts(judgements.A);
    const practised = judged.length >= LEAST_PROMPTS ? judged : prompts.A;
    const members = [...(from.reward ?? [])];
    const next = members.length;
    const drawn = members.length < config.reward.members ? await draw(parent, practised, config.seed) : [];
    for (let i = members.length; i < config.reward.members; i++) {
      const begun = i === next ? from.fit : null;
      const seen = memberSees(judgements.A, i, config.seed);
      const seed = memberSeed(config.seed, i);
      const stage = memberStage(i);
      const keepFit = (fit: FitState) => keep({ reward: members, fit });
      members.push(await fitReward(model, calls.reward, parent, seen, drawn, seed, stage, report, begun, keepFit));
      await keep({ reward: members });
    }
    const rm = members[0]!;
    const byMember = (rows: Row[]) => scoresByMember(calls.reward, members, rows, pad);
    const scored = await scoresOf(calls.reward, rm, judgements.C, pad);
    const pairs = preferredIn(judgements.C, scored, scaleOf(rm));
    if (pairs.length > 0) {
      const { asFitted, temperature, agreement } = calibrationOf(pairs);
      const metrics = {
        'reward/accuracy_held_out': rightShare(tallied(judgements.C, scored)),
        'reward/log_loss': asFitted.logLoss,
        'reward/brier': asFitted.brier,
        'reward/ece': asFitted.ece,
        'reward/temperature': temperature,
        ...(agreement && { 'reward/rater_agreement': agreement.right }),
      };
      await report({ stage: 'reward', step: 1, steps: 1, metrics });
    }
    {
      using resting = parked(members.map(({ parameters }) => parameters));
      candidate = await ppo(
        model,
        calls.policy,
        async (rows) => cautious(await resting.use(() => byMember(rows)), config.ppo.spreadPenalty),
        parent,
        practised,
        sampler.sample,
        maxTokens,
        { ...config.ppo, seed: config.seed },
        report,
        from.ppo ?? null,
        (state) => resting.use(() => keep({ reward: members, ppo: state })),
      );
    }
    dispose(members);
    await keep({ candidate });
  }
  const optimised = candidate;

  const asked = [...prompts.B, ...prompts.C];
  if (judgements.B.length === 0 || asked.length === 0) {
    const words = `not enough evidence: ${judgements.B.length} judgements on side B, ${asked.length} prompts on sides B and C`;
    return { candidate, gate: refused('judge', words) };
  }
  const judgeSeed = config.seed + 1; // what chance did to the reward model, it shall not do to its judge
  const judge = await fitReward(
    model,
    calls.reward,
    root,
    judgements.B,
    await draw(root, asked, judgeSeed),
    judgeSeed,
    'judge',
    report,
    from.candidate && from.fit,
    (fit) => keep({ candidate: optimised, fit }),
  );
  await report({ stage: 'evaluate', step: 0, steps: 1, metrics: {} });
  const gate = await evaluate(
    model,
    calls,
    { root, parent, candidate },
    judge,
    judgements.C,
    asked,
    sampler,
    maxTokens,
    { ...config.gate, seed: config.seed },
  );
  dispose(judge);
  await report({ stage: 'evaluate', step: 1, steps: 1, metrics: gate.metrics });
  return { candidate, gate };
}

const refused = (check: string, words: string): GateReport => ({
  verdict: 'reject',
  metrics: {},
  reasons: [{ check, value: 0, limit: 0, passed: false, words }],
});
