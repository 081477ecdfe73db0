// Where a stage on files leaves what it has: the folder that --out names, and what it goes on from there.

import { accessSync, constants, existsSync, readdirSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import type { ModelConfig } from '../schema/manifest.ts';
import { treeToFile } from './checkpoint.ts';
import { compilations, type Tree } from './engine/compile.ts';
import { tryLock } from './engine/lock.ts';
import { endInTime } from './engine/tf.ts';
import { makeFolder, writeWhole } from './folder.ts';
import { GRACE, interrupted, saveOnSignals } from './interrupt.ts';
import { alike, apart, Machine, onGpu, thisMachine } from './machine.ts';
import { sha256 } from './manifest.ts';
import { DivergedError, toAll, toFile, toTerminal } from './metrics.ts';
import { toTensorBoard } from './tensorboard.ts';
import { UserError } from './user-error.ts';

/** The folder that --out names, made where it is not there. What is begun from is never written over. */
function makeOut(path: string, base: string): void {
  if (resolve(path) === resolve(base) || (existsSync(path) && realpathSync(path) === realpathSync(base)))
    throw new UserError(`--out ${path} is the base itself: give another folder, so that the base stays`);
  try {
    makeFolder(path);
    if (!statSync(path).isDirectory()) throw new UserError(`${path} is a file: --out wants a folder`);
    accessSync(path, constants.W_OK);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`cannot write to ${path}: ${(error as NodeJS.ErrnoException).code}`);
  }
}

/** Seconds between two saves, when some time has passed; and no more than a twentieth of the time goes into them. */
const SAVE_EVERY = 10;
const SAVE_SHARE = 1 / 20;
/** What is said of a save's tensors, in a file beside theirs with its own hash. */
const Save = z.object({
  settings: z.string(),
  machines: z.array(Machine),
  step: z.int(),
  scalars: z.unknown(),
  /** The tensors' hash. */
  tensors: z.string(),
});
const Hashed = z.object({ sha256: z.string(), save: z.unknown() });
const hashOf = (save: unknown): string => sha256(Buffer.from(JSON.stringify(save)));

/** The stage that wrote a file of metrics, as its command is called. */
function lastStage(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  const line = readFileSync(path, 'utf8').trimEnd().split('\n').at(-1)!;
  return /^\{"stage":"(\w+)/.exec(line)?.[1];
}

/**
 * What a stage leaves in its folder, which is this process's as long as it runs: metrics in metrics.jsonl and for TensorBoard; and where it
 * goes on if it is cut off, its last two saves: a file of tensors each, and once that is whole one that says what they are.
 */
export async function savepoint(
  stage: string,
  options: { out: string; base: string; deterministic?: boolean; plan?: boolean },
  inputs: string[],
  model: ModelConfig,
) {
  makeOut(options.out, options.base);
  if (!(await tryLock(`out ${realpathSync(options.out)}`)))
    throw new UserError(`another plumb train writes to ${options.out}: wait for it, or give another --out`);
  saveOnSignals();
  endInTime(GRACE);
  const { deterministic, plan: _, ...rest } = options;
  // What the files hold counts, not how they are called.
  const numbers = Object.entries(rest).filter(([name, value]) => typeof value !== 'string' || name === 'schedule');
  const settings = JSON.stringify([...numbers.sort(), ...inputs.map((path) => sha256(readFileSync(path)))]);
  const aboutOf = (count: number) => join(options.out, `${stage}.state.${count}.json`);
  const tensorsOf = (count: number) => join(options.out, `${stage}.state.${count}.safetensors`);
  const all = join(options.out, `${stage}.state.*`);
  const damaged = () => new UserError(`${all} are damaged: remove them, and the stage begins anew`);
  /** Null where a save's file is not as it was written. */
  const about = (count: number): z.infer<typeof Save> | null => {
    try {
      const { sha256: hash, save } = Hashed.parse(JSON.parse(readFileSync(aboutOf(count), 'utf8')));
      return hashOf(save) === hash ? Save.parse(save) : null;
    } catch {
      return null;
    }
  };
  /** The newest first. */
  let saves = readdirSync(options.out)
    .flatMap((name) => (name.startsWith(`${stage}.state.`) && /\.(\d+)\.json$/.exec(name)?.[1]) || [])
    .map(Number)
    .sort((a, b) => b - a)
    .map((count) => ({ count, save: about(count) }));
  const last = saves.find(({ save }) => save)?.save ?? null;
  if (saves.length > 0 && !last) throw damaged();
  if (last && last.settings !== settings)
    throw new UserError(
      `${options.out} holds the unfinished work of a call with other settings or data: give it the same ones to go on, another --out, or remove ${all}`,
    );
  if (deterministic && onGpu())
    throw new UserError(
      '--deterministic holds on processors alone, and this engine computes on a GPU: set CUDA_VISIBLE_DEVICES to nothing, or leave it out',
    );
  const here = thisMachine(model);
  const machines = last?.machines ?? [];
  const other = machines.find((machine) => apart(machine, here) !== '');
  if (deterministic && other)
    throw new UserError(
      `${all} are of another machine (${apart(other, here)}): ${alike(other, here)}, or leave --deterministic out`,
    );
  if (other)
    console.error(
      `going on with a save of another machine (${apart(other, here)}): results may differ in the last digits`,
    );
  if (machines.every((machine) => apart(machine, here) !== '')) machines.push(here);
  const finished = readdirSync(options.out).some((name) => /^(model|reward)\.safetensors$/.test(name));
  const maker = finished ? lastStage(join(options.out, 'metrics.jsonl')) : undefined;
  if (maker && maker !== stage)
    throw new UserError(`${options.out} holds what plumb train ${maker} made: give another --out, or remove it`);
  if (!last && finished)
    console.error(`${options.out} holds finished work: this call begins anew, and takes its place`);
  let first = Number.NaN;
  let next = 0;
  return {
    report: toAll(
      toFile(join(options.out, 'metrics.jsonl')),
      toTensorBoard(join(options.out, 'tensorboard')),
      toTerminal(process.stderr, compilations),
    ),
    remove: () => {
      for (const { count } of saves) rmSync(aboutOf(count), { force: true }); // first: what is not whole is not said to be there
      for (const name of readdirSync(options.out))
        if (name.startsWith(`${stage}.state.`)) rmSync(join(options.out, name));
    },
    /** What has diverged would only diverge again: the last good state stays, for who wants to look at it. */
    giveUp: (error: unknown): never => {
      if (error instanceof DivergedError && saves[0]?.save)
        error.message += `; the state after step ${saves[0].save.step} is kept in ${options.out}: try a lower --learning-rate with another --out`;
      throw error;
    },
    /** Reads what there is to go on from, the one before it where the last is damaged; null where there is nothing. */
    saved: <T>(read: (tensors: Uint8Array, scalars: unknown) => T): T | null => {
      for (const [index, { count, save }] of saves.entries()) {
        try {
          const file = readFileSync(tensorsOf(count));
          if (!save || sha256(file) !== save.tensors) throw new Error('other bytes than were written');
          const state = read(file, save.scalars);
          saves = saves.slice(index);
          return state;
        } catch {
          const path = save ? tensorsOf(count) : aboutOf(count);
          if (index + 1 < saves.length) console.error(`${path} is damaged: going on from the save before it`);
        }
      }
      if (saves.length > 0) throw damaged();
      return null;
    },
    save: (step: number, tensors: Tree, scalars: object) => {
      const began = performance.now();
      const code = interrupted();
      if (began < next && code === null) return;
      const count = (saves[0]?.count ?? 0) + 1;
      const file = treeToFile(tensors, { stage, step });
      writeWhole(tensorsOf(count), file);
      const save = { settings, machines, step, scalars, tensors: sha256(file) };
      writeWhole(aboutOf(count), new TextEncoder().encode(JSON.stringify({ sha256: hashOf(save), save })));
      const [kept, ...gone] = saves;
      saves = [{ count, save }, ...(kept ? [kept] : [])];
      for (const { count } of gone)
        for (const path of [aboutOf(count), tensorsOf(count)]) rmSync(path, { force: true });
      if (code !== null) {
        const clear = process.stderr.isTTY ? '\r\x1b[K' : ''; // of the line of progress
        console.error(`${clear}${stage} was interrupted: the same call goes on from here`);
        process.exit(code);
      }
      // The first saves come close together, after 0, 1, 2, 4 and 8 s: short runs are cut off too.
      if (Number.isNaN(first)) first = began;
      const took = performance.now() - began;
      const pause = Math.min(1000 * SAVE_EVERY, Math.max(1000, began - first));
      next = began + took + Math.max(pause, took / SAVE_SHARE);
    },
  };
}
