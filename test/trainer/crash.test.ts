// Each stage is killed at moments drawn from a seed and resumed until it ends: what it writes is what a call left alone writes.
// npm run test:crash kills more often.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { sha256 } from '../../trainer/manifest.ts';
import { random } from '../../trainer/random.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { PLUMB } from '../support/plumb.ts';
import { tinyFolder } from '../support/tiny-folder.ts';

const KILLS = Number(process.env.PLUMB_CRASH_KILLS ?? 3);

const folder = mkdtempSync(join(tmpdir(), 'plumb-crash-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

tinyFolder(at('base'));
writeFileSync(
  at('pairs.jsonl'),
  tickets('tests', 8, 24)
    .flatMap(({ text }, i) =>
      ['No. Go away now.', 'What order?'].map((rejected) => {
        // Of many lengths, so that a step's batch now fits into one call and now does not.
        const chosen = 'We are sorry. It is on its way. '.repeat(1 + (i % 4));
        return JSON.stringify({ prompt: text, chosen, rejected });
      }),
    )
    .join('\n'),
);

/** When to kill: so many milliseconds after the start, or after the first save was seen. */
interface Kill {
  after: number;
  of: 'start' | 'save';
}
/** Runs a stage, and kills it as a power cut would. */
async function train(stage: string, out: string, args: string[], kill?: Kill) {
  const fixed = ['--data', at('pairs.jsonl'), '--base', at('base'), '--out', at(out), '--deterministic'];
  const began = performance.now();
  const child = spawn(process.execPath, [PLUMB, 'train', stage, ...fixed, ...args]);
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      said += chunk;
    });
  const place = () => existsSync(at(out)) && readdirSync(at(out)).some((name) => /state\.\d+\.json$/.test(name));
  let saved = Number.POSITIVE_INFINITY;
  const watch = setInterval(() => {
    const passed = performance.now() - began;
    if (place()) saved = Math.min(saved, passed);
    if (kill && passed > kill.after + (kill.of === 'save' ? saved : 0)) child.kill('SIGKILL');
  }, 2);
  const signal = await new Promise((resolve) => child.on('close', (_, signal) => resolve(signal)));
  clearInterval(watch);
  const killed = signal === 'SIGKILL';
  if (!killed) expect([child.exitCode, said]).toEqual([0, expect.any(String)]);
  return { killed, saved, ended: performance.now() - began, said };
}

const stages = [
  ['sft', 'model.safetensors', ['--steps', '120', '--batch', '8']],
  ['reward', 'reward.safetensors', ['--epochs', '10']],
  [
    'ppo',
    'model.safetensors',
    ['--reward', at('reward-whole'), '--episodes', '512', '--answer-tokens', '12', '--learning-rate', '1e-3'],
  ],
] as const;
test.each(stages)(
  'plumb train %s, killed at any moment and resumed, ends with the same bytes',
  async (stage, file, args) => {
    const wholeOut = `${stage}-whole`;
    const whole = await train(stage, wholeOut, [...args]);
    const written = (out: string) => sha256(readFileSync(join(at(out), file)));
    const steps = (out: string) =>
      readFileSync(join(at(out), 'metrics.jsonl'), 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line).step as number)
        .sort((a, b) => a - b);
    const expectWhole = (out: string) => {
      expect(written(out)).toBe(written(wholeOut));
      expect(steps(out)).toEqual(steps(wholeOut)); // each once, whatever was done twice
      expect(readdirSync(at(out)).filter((name) => /state|part$/.test(name))).toEqual([]);
    };

    const uniform = random(11, stage);
    let out = `${stage}-0`;
    let kills = 0;
    let afterSave = 0;
    let fresh = true;
    for (let call = 1; kills < KILLS; call++) {
      // The first kill of a folder comes once there is something to go on from; the others at any moment.
      const kill: Kill = fresh
        ? { after: uniform() * (whole.ended - whole.saved), of: 'save' }
        : { after: uniform() * whole.ended, of: 'start' };
      const { killed, saved } = await train(stage, out, [...args], kill);
      fresh = false;
      if (killed) {
        kills++;
        if (saved < Number.POSITIVE_INFINITY) afterSave++;
        continue;
      }
      expectWhole(out);
      out = `${stage}-${call}`;
      fresh = true;
    }
    await train(stage, out, [...args]);
    expectWhole(out);
    expect(afterSave).toBeGreaterThan(KILLS / 2);
  },
  120_000 + KILLS * 60_000,
);
