// What a stage would take, said without running it: plumb train … --plan. The stage begins as it would, its first steps are timed, and
// nothing is written. Left out: what comes after the last step, which is little.

import { readFileSync } from 'node:fs';
import { treeToFile } from './checkpoint.ts';
import { compilations, type Tree } from './engine/compile.ts';
import type { Report } from './metrics.ts';

/** Steps that are timed, once all that they need is compiled. */
const TIMED = 3;
const ENOUGH = new Error('timed');

/**
 * Stands where a stage's report and savepoint would stand.
 * @param tokens of a step
 * @param extra so many steps' time goes into what comes between steps and is not timed
 */
export function planned(parameters: number, tokens: (metrics: Record<string, number>) => number, extra = 0) {
  let from = { step: 0, at: 0 };
  let last = { ...from, steps: 0, tokens: 0 };
  let compiled = -1;
  let saved = false;
  const report: Report = ({ step, steps, metrics }) => {
    const at = performance.now(); // since the process began
    last = { step, at, steps, tokens: tokens(metrics) };
    if (compiled !== compilations.length) from = { step, at };
    compiled = compilations.length;
  };
  const print = () => {
    const each = last.step > from.step ? (last.at - from.at) / (last.step - from.step) : 0;
    const time = from.at + (last.steps - from.step + extra) * each;
    for (const [name, value] of [
      ['parameters', whole(parameters)],
      ['tokens a step', whole(last.tokens)],
      ['steps', whole(last.steps)],
      ['peak memory', `${whole(peakMemory() / 2 ** 20)} MiB`],
      ['time', inTime(time / 1000)],
    ] as const)
      console.log(`${name.padEnd(14)}${value.padStart(14)}`);
  };
  return {
    report,
    saved: () => null,
    /** Its memory counts too; then it ends, if the steps were enough. */
    save: (_step: number, tensors: Tree) => {
      if (!saved) treeToFile(tensors);
      if (!saved) from = { ...from, at: performance.now() };
      saved = true;
      if (last.step - from.step >= TIMED || last.step === last.steps) throw ENOUGH;
    },
    giveUp: (error: unknown): never => {
      if (error !== ENOUGH) throw error;
      print();
      process.exit(0);
    },
    remove: () => {},
  };
}

const whole = (number: number) => Math.round(number).toLocaleString('en-US');

function inTime(exact: number): string {
  const seconds = Math.ceil(exact);
  const [h, min, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h > 0 ? `${h} h ${min} min` : min > 0 ? `${min} min ${s} s` : `${s} s`;
}

/** Bytes that a process holds now, or held at most, its threads' among them, as Linux counts them. */
export const memoryOf = (of: number | 'self', what: 'VmRSS' | 'VmHWM'): number =>
  1024 * Number(new RegExp(`^${what}:\\s+(\\d+) kB$`, 'm').exec(readFileSync(`/proc/${of}/status`, 'utf8'))![1]);

/** Bytes that a process held at most; this one's, if it is not said which. */
export function peakMemory(of: number | 'self' = 'self'): number {
  if (process.platform !== 'linux') return process.resourceUsage().maxRSS * 1024;
  return memoryOf(of, 'VmHWM');
}
