// Where a stage's numbers go: a JSONL file, and the terminal with rate and time left (plain lines where there is none).

import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { writing } from './folder.ts';

export interface Progress {
  stage: string;
  step: number;
  steps: number;
  metrics: Record<string, number>;
}
export type Report = (progress: Progress) => void | Promise<void>;

/** Each of the reports in turn. */
export const toAll =
  (...reports: Report[]): Report =>
  async (progress) => {
    for (const report of reports) await report(progress);
  };

/** A NaN or an infinity in any metric ends the run, with the metric's name. */
export function requireFinite(stage: string, step: number, metrics: Record<string, number>): void {
  for (const [name, value] of Object.entries(metrics)) {
    if (!Number.isFinite(value)) throw new DivergedError(`${stage}: ${name} is ${value} at step ${step}`);
  }
}
/** Training went wrong in a way that more steps cannot mend. */
export class DivergedError extends Error {}

/**
 * Appends each step's metrics to a file, one JSON object a line. What a process that was cut off wrote of steps that are done
 * again goes away, so that each number stands there once.
 */
export function toFile(path: string): Report {
  const begun = new Set<string>();
  return ({ stage, step, metrics }) =>
    writing(path, () => {
      const what = [stage, ...Object.keys(metrics)].join();
      if (!begun.has(what)) forget(path, what, step);
      begun.add(what);
      appendFileSync(path, `${JSON.stringify({ stage, step, time: new Date().toISOString(), ...metrics })}\n`);
    });
}

/** Leaves out the lines of these metrics from a step on, and one that was broken off. */
function forget(path: string, what: string, from: number): void {
  if (!existsSync(path)) return;
  const before = readFileSync(path, 'utf8');
  const kept = before.split('\n').flatMap((line) => {
    try {
      const { stage, step, time: _, ...metrics } = JSON.parse(line);
      return [stage, ...Object.keys(metrics)].join() === what && step >= from ? [] : [`${line}\n`];
    } catch {
      return [];
    }
  });
  const after = kept.join('');
  if (after === before) return;
  writeFileSync(`${path}.part`, after);
  renameSync(`${path}.part`, path);
}

/**
 * Shows progress: one line that is overwritten on a terminal, else a line every tenth of the way.
 * @param compiled grows with what is compiled, of which each is told
 */
export function toTerminal(
  stream: NodeJS.WriteStream = process.stderr,
  compiled: { name: string; precision: string; seconds: number }[] = [],
): Report {
  let told = compiled.length;
  let began = performance.now();
  let last = '';
  let first = 0; // a stage that goes on begins further along
  return ({ stage, step, steps, metrics }) => {
    if (stage !== last || step <= 1) {
      began = performance.now();
      last = stage;
      first = step;
    }
    for (; told < compiled.length; told++) {
      const { name, precision, seconds } = compiled[told]!;
      stream.write(
        `${stream.isTTY ? '\r\x1b[K' : ''}compiled ${name} in ${seconds.toFixed(1)} s, products in ${precision}\n`,
      );
    }
    const seconds = (performance.now() - began) / 1000;
    const rate = step > first ? (step - first) / seconds : 0;
    const pace = rate > 0 ? `${rate.toFixed(1)} steps/s  ${Math.ceil((steps - step) / rate)} s left` : '';
    const shown = Object.entries(metrics)
      .slice(0, 5)
      .map(([name, value]) => `${name} ${value.toPrecision(4)}`)
      .join('  ');
    const line = `${stage} ${step}/${steps}  ${pace}  ${shown}`;
    if (stream.isTTY) stream.write(`\r\x1b[K${line}${step === steps ? '\n' : ''}`);
    else if (step === 1 || step === steps || step % Math.ceil(steps / 10) === 0) stream.write(`${line}\n`);
  };
}
