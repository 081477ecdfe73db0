// Whether a reward model's probabilities can be trusted, on judgements that it was not fitted to: how often it is right, in what and
// by whom it is right least, how sure it is when it is, and how often people agree with one another, which is as right as one can be.
//
// Of two answers of which one was preferred, P(better) = σ(s·(r_better − r_worse)): Davidson's model where it is known that they were not
// called equal. Thumbs, ratings and outcomes judge one answer, so what is measured there is how often two of unequal value are ordered alike.

import { type Judgement, pairsOf, type Subjects, weightOf } from './judgements.ts';
import { aspectHead, type RewardCalls, type RewardModel, scores, wins } from './reward.ts';

/** Two answers of which a judgement preferred one. */
export interface Preferred {
  /** s·(r_better − r_worse). */
  margin: number;
  /** The pairs of one judgement weigh as much as it does. */
  weight: number;
  kind: string;
  rater: string | null;
  cohorts: Record<string, string>;
  /** The same for everyone who judged these two answers to this prompt. */
  answers: string;
  better: string;
}

/** Of so much weight, what share was right; of how many comparisons. */
interface Share {
  right: number;
  pairs: number;
}
interface Fit {
  /** Nats a pair. */
  logLoss: number;
  /** The mean of (1 − P(better))². */
  brier: number;
  /** Expected calibration error (Guo et al. 2017): the mean over ten bins of how far accuracy is from confidence. */
  ece: number;
}
interface Bin {
  from: number;
  to: number;
  pairs: number;
  confidence: number;
  accuracy: number;
}
export interface Calibration {
  pairs: number;
  accuracy: number;
  /** What margins must be divided by for the least log loss, between 1/20 and 20 (Guo et al. 2017). */
  temperature: number;
  asFitted: Fit;
  tempered: Fit;
  /** Of the tempered probabilities. */
  reliability: Bin[];
  byKind: Record<string, Share>;
  byCohort: Record<string, Share>;
  /** The cohort, of those with ten pairs at least, that it is right about least. */
  worstCohort: string | null;
  /** Of two raters who preferred one of the same two answers, how often it was the same one; null where there are none. */
  agreement: Share | null;
}

const BINS = 10;
const LEAST_PAIRS = 10;

/** What margins are multiplied by: the scale of choices. */
export const scaleOf = ({ likelihood }: RewardModel): number => Math.exp(likelihood.choices.logScale.dataSync()[0]!);

export function preferredIn(judgements: Judgement[], scored: number[][], scale: number): Preferred[] {
  return judgements.flatMap((judgement, j) => {
    const pairs = pairsOf(judgement);
    return pairs.map(([better, worse]) => {
      const texts = [judgement.texts[better]!, judgement.texts[worse]!];
      return {
        margin: scale * (scored[j]![better]! - scored[j]![worse]!),
        weight: weightOf(judgement) / pairs.length,
        kind: judgement.kind,
        rater: judgement.rater,
        cohorts: judgement.cohorts,
        answers: JSON.stringify([judgement.rows[0]!.prompt, ...texts.toSorted()]),
        better: texts[0]!,
      };
    });
  });
}

/** @param pairs at least one */
export function calibrationOf(pairs: Preferred[]): Calibration {
  const temperature = temperatureOf(pairs);
  const shares = (namesOf: (pair: Preferred) => string[]) => {
    const groups = new Map<string, Preferred[]>();
    for (const pair of pairs)
      for (const name of namesOf(pair)) {
        if (!groups.has(name)) groups.set(name, []);
        groups.get(name)!.push(pair);
      }
    return Object.fromEntries([...groups].map(([name, of]): [string, Share] => [name, shareOf(of)]));
  };
  const byCohort = shares(({ cohorts }) => Object.entries(cohorts).map(([name, value]) => `${name}=${value}`));
  const judgedEnough = Object.entries(byCohort).filter(([, share]) => share.pairs >= LEAST_PAIRS);
  return {
    pairs: pairs.length,
    accuracy: shareOf(pairs).right,
    temperature,
    asFitted: fitOf(pairs, 1),
    tempered: fitOf(pairs, temperature),
    reliability: binsOf(pairs, temperature),
    byKind: shares(({ kind }) => [kind]),
    byCohort,
    worstCohort: judgedEnough.sort(([, a], [, b]) => a.right - b.right)[0]?.[0] ?? null,
    agreement: agreementOf(pairs),
  };
}

const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b, 0);
const weighedMean = (pairs: Preferred[], of: (pair: Preferred) => number): number =>
  sum(pairs.map((pair) => pair.weight * of(pair))) / sum(pairs.map(({ weight }) => weight));
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const right = ({ margin }: Preferred) => wins(margin, 0);
const shareOf = (pairs: Preferred[]): Share => ({ right: weighedMean(pairs, right), pairs: pairs.length });

/** The log loss is convex in 1/T, so its slope there is 0 where it is least: by bisection. */
function temperatureOf(pairs: Preferred[]): number {
  const slope = (inverse: number) => -weighedMean(pairs, ({ margin }) => margin * sigmoid(-inverse * margin));
  let [low, high] = [1 / 20, 20];
  for (let i = 0; i < 60; i++) {
    const middle = Math.sqrt(low * high);
    if (slope(middle) < 0) low = middle;
    else high = middle;
  }
  return 1 / Math.sqrt(low * high);
}

function fitOf(pairs: Preferred[], temperature: number): Fit {
  const p = ({ margin }: Preferred) => sigmoid(margin / temperature);
  const total = sum(pairs.map(({ weight }) => weight));
  const bins = binned(pairs, temperature).filter((bin) => bin.length > 0);
  const gap = (bin: Preferred[]) =>
    Math.abs(weighedMean(bin, right) - weighedMean(bin, (pair) => Math.max(p(pair), 1 - p(pair))));
  return {
    logLoss: weighedMean(
      pairs,
      ({ margin }) => Math.max(0, -margin / temperature) + Math.log1p(Math.exp(-Math.abs(margin / temperature))),
    ),
    brier: weighedMean(pairs, (pair) => (1 - p(pair)) ** 2),
    ece: sum(bins.map((bin) => (sum(bin.map(({ weight }) => weight)) / total) * gap(bin))),
  };
}

/** By confidence, which is from ½ to 1 where there are two answers. */
function binned(pairs: Preferred[], temperature: number): Preferred[][] {
  const bins: Preferred[][] = Array.from({ length: BINS }, () => []);
  for (const pair of pairs) {
    const confidence = sigmoid(Math.abs(pair.margin) / temperature);
    bins[Math.min(BINS - 1, Math.floor((confidence - 0.5) * 2 * BINS))]!.push(pair);
  }
  return bins;
}

const binsOf = (pairs: Preferred[], temperature: number): Bin[] =>
  binned(pairs, temperature).flatMap((bin, i) =>
    bin.length === 0
      ? []
      : {
          from: 0.5 + i / (2 * BINS),
          to: 0.5 + (i + 1) / (2 * BINS),
          pairs: bin.length,
          confidence: weighedMean(bin, ({ margin }) => sigmoid(Math.abs(margin) / temperature)),
          accuracy: weighedMean(bin, right),
        },
  );

function agreementOf(pairs: Preferred[]): Share | null {
  const votes = new Map<string, Map<string, string>>(); // answers → rater → the better one
  for (const { answers, rater, better } of pairs) {
    if (rater === null) continue;
    if (!votes.has(answers)) votes.set(answers, new Map());
    votes.get(answers)!.set(rater, better);
  }
  let [agreed, of] = [0, 0];
  for (const byRater of votes.values()) {
    const said = [...byRater.values()];
    for (const [i, one] of said.entries())
      for (const other of said.slice(i + 1)) {
        if (one === other) agreed++;
        of++;
      }
  }
  return of === 0 ? null : { right: agreed / of, pairs: of };
}

/** Values of single answers that are compared with one another; beyond so many of a kind, the first ones. */
const MOST_VALUES = 2000;

/** Of two answers of unequal value, how often the higher one scores higher; null where no two differ. For thumbs the area under the ROC curve. */
export function concordanceOf(all: { score: number; value: number }[]): Share | null {
  const valued = all.slice(0, MOST_VALUES);
  let [agreed, of] = [0, 0];
  for (const [i, a] of valued.entries())
    for (const b of valued.slice(i + 1)) {
      if (a.value === b.value) continue;
      agreed += a.value > b.value ? wins(a.score, b.score) : wins(b.score, a.score);
      of++;
    }
  return of === 0 ? null : { right: agreed / of, pairs: of };
}

export interface RewardReport {
  /** Of pairs; null where none was held out. */
  preferences: Calibration | null;
  thumbs: Share | null;
  byAspect: Record<string, Share>;
  byOutcome: Record<string, Share>;
}

/**
 * All that held-out judgements say of a reward model.
 * @param subjects of the judgements it was fitted to: the order of its aspects
 */
export async function reportOn(
  calls: RewardCalls,
  rm: RewardModel,
  subjects: Subjects,
  held: Judgement[],
  scored: number[][],
  pad: number,
): Promise<RewardReport> {
  const pairs = preferredIn(held, scored, scaleOf(rm));
  const named = (entries: [string, Share | null][]) =>
    Object.fromEntries(entries.filter((entry): entry is [string, Share] => entry[1] !== null));
  const byAspect: [string, Share | null][] = [];
  for (const [place, aspect] of subjects.aspects.entries()) {
    const rated = held.flatMap(({ rows, ratings }) =>
      ratings.flatMap((rating) => (rating.aspect === aspect ? [{ row: rows[rating.row]!, value: rating.value }] : [])),
    );
    const head = aspectHead(rm, place);
    const own = await scores(
      calls,
      { parameters: rm.parameters, head },
      rated.map(({ row }) => row),
      pad,
    );
    head.weight.dispose();
    head.bias.dispose();
    byAspect.push([aspect, concordanceOf(rated.map(({ value }, i) => ({ score: own[i]!, value })))]);
  }
  const valued = (of: (judgement: Judgement) => { row: number; value: number }[]) =>
    concordanceOf(
      held.flatMap((judgement, j) => of(judgement).map(({ row, value }) => ({ score: scored[j]![row]!, value }))),
    );
  return {
    preferences: pairs.length > 0 ? calibrationOf(pairs) : null,
    thumbs: valued(({ thumbs }) => thumbs.map(({ row, up }) => ({ row, value: Number(up) }))),
    byAspect: named(byAspect),
    byOutcome: named(
      subjects.outcomes.map(({ name }) => [
        name,
        valued(({ outcomes }) =>
          outcomes.filter((outcome) => outcome.name === name).map(({ row, value }) => ({ row, value: Number(value) })),
        ),
      ]),
    ),
  };
}

/** The report as lines for a terminal. */
export function tableOf({ preferences, thumbs, byAspect, byOutcome }: RewardReport): string[] {
  const line = (name: string, { right, pairs }: Share) =>
    `  ${name.padEnd(24)} ${(100 * right).toFixed(1).padStart(5)} % of ${pairs}`;
  const lines: string[] = [];
  if (preferences) {
    const { asFitted, tempered, temperature, agreement, worstCohort } = preferences;
    for (const [kind, share] of Object.entries(preferences.byKind)) lines.push(line(`pairs of a ${kind}`, share));
    if (worstCohort) lines.push(line(`worst, ${worstCohort}`, preferences.byCohort[worstCohort]!));
    if (agreement) lines.push(line('raters agree', agreement));
    const figures = ({ logLoss, brier, ece }: Fit) =>
      `log loss ${logLoss.toFixed(3)}  Brier ${brier.toFixed(3)}  ECE ${ece.toFixed(3)}`;
    lines.push(`  as fitted: ${figures(asFitted)}`, `  temperature ${temperature.toFixed(2)}: ${figures(tempered)}`);
  }
  if (thumbs) lines.push(line('up above down', thumbs));
  for (const [aspect, share] of Object.entries(byAspect)) lines.push(line(`ordered by ${aspect}`, share));
  for (const [name, share] of Object.entries(byOutcome)) lines.push(line(`ordered by ${name}`, share));
  return lines;
}
