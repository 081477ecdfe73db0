// Sets up the training engine: tfjs-node's JavaScript and its native binding, patched and compiled against the libraries of
// TensorFlow's PyPI wheel. One relocatable folder in the user's cache, made once for all checkouts.
//
//   plumb engine            what is used, why, and how to mend it
//   plumb engine --install  sets it up now
//
// Needs npm, python3 with pip, and a C++17 compiler (without one, zig is taken from PyPI). Linux x64 only.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { makeFolder } from '../folder.ts';
import { lock } from './lock.ts';
import { download, EngineError, findPip, offline, run, unzip } from './wheel.ts';

const TFJS_NODE = '4.22.0';
const NODE_API_HEADERS = '1.9.0';
const WHEELS = {
  cpu: {
    requirement: 'tensorflow-cpu==2.21.0',
    sha256: '2b847d217b02ee7731ed91431daf3250daa0196c3c94614d23be27232e6e5b6c',
  },
  gpu: {
    requirement: 'tensorflow==2.21.0',
    sha256: '9056fbc9ba04235810b71ae6cbd958a196e8804fb53bbcffbf3e23b56155f124',
  },
};
const ZIG = 'ziglang==0.16.0 --hash=sha256:9fcda73f62b851dd72a54b710ad40a209896db14cfb13649e62191243556342b';
const LIBRARIES = ['libtensorflow_framework.so.2', 'libtensorflow_cc.so.2'];
const HEADERS = [
  'tensorflow/c/c_api.h',
  'tensorflow/c/c_api_macros.h',
  'tensorflow/c/eager/c_api.h',
  'tensorflow/c/tf_attrtype.h',
  'tensorflow/c/tf_buffer.h',
  'tensorflow/c/tf_datatype.h',
  'tensorflow/c/tf_status.h',
  'tensorflow/c/tf_tensor.h',
  'tensorflow/c/tf_tstring.h',
  'tensorflow/core/platform/ctstring.h',
  'tensorflow/core/platform/ctstring_internal.h',
  'tsl/platform/ctstring.h',
  'tsl/platform/ctstring_internal.h',
  'xla/tsl/c/tsl_status.h',
];
const REPEAT = 'npx plumb engine --install';
const offlineHint = offline(REPEAT);
const HERE = import.meta.dirname;
const ROOT = join(HERE, '../..');

type Device = 'cpu' | 'gpu';

/** The GPU wheel where an NVIDIA device answers, else the CPU wheel. */
export function device(): Device {
  return spawnSync('nvidia-smi', ['-L'], { stdio: 'ignore' }).status === 0 ? 'gpu' : 'cpu';
}

/** Where the engine of this version lives; the name changes with anything that goes into it. */
export function engineFolder(which: Device = device()): string {
  const cache = process.env.PLUMB_ENGINE_HOME ?? join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'plumb');
  const recipe = createHash('sha256');
  for (const file of ['graph_function.cc', 'exports.cc', 'stderr.cc'])
    recipe.update(readFileSync(join(HERE, 'binding', file)));
  recipe.update(JSON.stringify([TFJS_NODE, NODE_API_HEADERS, WHEELS[which]]));
  return join(cache, `engine-${which}-${recipe.digest('hex').slice(0, 12)}`);
}

export const engineReady = (folder = engineFolder()): boolean => existsSync(join(folder, 'ready.json'));

/** Told as it goes: a step's name and, where known, the share done (0 to 1). */
type Report = (step: string, share?: number) => void;

/** Whether the tfjs-node package is to be taken as it installs itself. */
export function stockAsked(): boolean {
  const asked = process.env.PLUMB_ENGINE ?? '';
  if (asked !== '' && asked !== 'stock')
    throw new EngineError(`PLUMB_ENGINE=${asked} cannot be: set it to stock, or leave it out`);
  return asked === 'stock';
}

/**
 * Sets the engine up unless it is there, and returns its folder. Two processes at once: one works, the other waits.
 * Throws EngineError with what to do when something it needs is missing.
 */
export async function setUpEngine(report: Report = () => {}): Promise<string> {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new EngineError(
      `the training engine is built for Linux on x64, and this is ${process.platform} on ${process.arch}: train in the container or on a Linux machine`,
    );
  }
  // The stock package was set up by npm, or was not: tf.ts tells when it loads it.
  if (stockAsked()) return '';
  const which = device();
  const folder = engineFolder(which);
  makeFolder(folder);
  const unlock = await lock(folder, () => report('waiting for another process, which is setting it up'));
  try {
    if (engineReady(folder)) return folder;
    const pip = findPip(REPEAT);
    const work = join(folder, 'work');
    makeFolder(work);

    report('unpacking tfjs-node');
    const js = await npmPackage(`@tensorflow/tfjs-node@${TFJS_NODE}`, work);
    const nodeApi = await npmPackage(`node-api-headers@${NODE_API_HEADERS}`, work);
    rmSync(join(folder, 'js'), { recursive: true, force: true });
    renameSync(js, join(folder, 'js'));

    const wheel = await download(pip, WHEELS[which], work, REPEAT, (share) => report('downloading TensorFlow', share));
    report('unpacking TensorFlow');
    const files = [
      ...LIBRARIES.map((name) => [`tensorflow/${name}`, `lib/${name}`]),
      ...HEADERS.map((name) => [`tensorflow/include/${name}`, `include/${name}`]),
    ];
    await unzip(pip, wheel, files, folder);
    const strip = spawnSync('strip', ['--version'], { stdio: 'ignore' }).status === 0;
    if (strip) await run('strip', ['--strip-unneeded', ...LIBRARIES.map((name) => join(folder, 'lib', name))]);

    report('compiling the binding');
    patchBinding(join(folder, 'js/binding'));
    const libraries = LIBRARIES.map((name) => join(folder, 'lib', name));
    const compiler = await findCompiler(pip, work, report);
    const addon = (name: string, sources: string[], ...rest: string[]) =>
      run(compiler[0]!, [
        ...compiler.slice(1),
        ...`-std=c++17 -O2 -fPIC -shared -w -DNAPI_VERSION=8 -DNODE_GYP_MODULE_NAME=${name}`.split(' '),
        `-I${join(nodeApi, 'include')}`,
        ...sources,
        '-o',
        join(folder, `lib/${name}.node`),
        ...rest,
      ]);
    await addon('stderr', [join(HERE, 'binding/stderr.cc')]);
    await addon(
      'tfjs_binding',
      ['tfjs_backend.cc', 'tfjs_binding.cc'].map((file) => join(folder, 'js/binding', file)),
      `-I${join(folder, 'include')}`,
      ...libraries,
      '-Wl,-rpath,$ORIGIN',
    );

    rmSync(work, { recursive: true, force: true });
    writeFileSync(
      join(folder, 'ready.json.part'),
      JSON.stringify({
        device: which,
        wheel: WHEELS[which].requirement,
        tfjsNode: TFJS_NODE,
        at: new Date().toISOString(),
      }),
    );
    renameSync(join(folder, 'ready.json.part'), join(folder, 'ready.json'));
    return folder;
  } finally {
    await unlock();
  }
}

async function findCompiler(python: string, work: string, report: Report): Promise<string[]> {
  if (process.env.CXX) return process.env.CXX.split(' ');
  for (const name of ['g++', 'clang++'])
    if (spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0) return [name];
  report('no C++ compiler here: fetching zig');
  const target = join(work, 'zig');
  const requirements = join(work, 'zig.txt');
  writeFileSync(requirements, ZIG);
  await run(
    python,
    ['-m', 'pip', 'install', '--quiet', '--require-hashes', '--target', target, '-r', requirements],
    offlineHint,
  );
  return [join(target, 'ziglang/zig'), 'c++', '-target', 'x86_64-linux-gnu.2.28'];
}

/** Unpacks a package of the npm registry without running anything of it; checks it against the lock file where that names it. */
async function npmPackage(spec: string, work: string): Promise<string> {
  const name = spec.slice(0, spec.lastIndexOf('@'));
  const packed = await run(
    'npm',
    ['pack', '--silent', '--fetch-retries=1', '--fetch-retry-mintimeout=1000', '--pack-destination', work, spec],
    offlineHint,
  );
  const tarball = join(work, packed.trim().split('\n').at(-1)!);
  const locked = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')).packages[`node_modules/${name}`]
    ?.integrity;
  const actual = `sha512-${createHash('sha512').update(readFileSync(tarball)).digest('base64')}`;
  if (!locked || locked !== actual)
    throw new EngineError(`${spec} does not have the hash of package-lock.json: ${actual}`);
  const folder = join(work, name.replace(/\W/g, '_'));
  makeFolder(folder);
  await run('tar', ['xzf', tarball, '-C', folder, '--strip-components=1']);
  return folder;
}

/** Adds addGraphFunction, removeGraphFunction and returnFreedMemory to the binding's sources. */
function patchBinding(folder: string): void {
  const insert = (file: string, anchor: string, text: string, where: 'before' | 'after') => {
    const path = join(folder, file);
    const source = readFileSync(path, 'utf8');
    if (source.split(anchor).length !== 2)
      throw new EngineError(`${file} of tfjs-node ${TFJS_NODE} is not as expected: no single "${anchor}"`);
    writeFileSync(
      path,
      source.replace(anchor, () => (where === 'before' ? text + anchor : anchor + text)),
    );
  };
  insert(
    'tfjs_backend.h',
    '  // Load a SavedModel from a path:',
    '  void AddGraphFunction(napi_env env, napi_value name, napi_value graph_def, napi_value inputs, napi_value outputs);\n  void RemoveGraphFunction(napi_env env, napi_value name);\n\n',
    'before',
  );
  insert('tfjs_backend.cc', '#include "tensorflow/c/eager/c_api.h"\n', '#include "tensorflow/c/c_api.h"\n', 'before');
  insert(
    'tfjs_backend.cc',
    'napi_value TFJSBackend::LoadSavedModel(',
    `#include "${join(HERE, 'binding/graph_function.cc')}"\n\n`,
    'before',
  );
  insert(
    'tfjs_binding.cc',
    '#include "tfjs_backend.h"\n',
    '#include <malloc.h>\n#include <signal.h>\n#include <unistd.h>\n',
    'after',
  );
  // Inside the backend's own namespace, where the file's last lines close it.
  insert(
    'tfjs_binding.cc',
    'static napi_value IsUsingGPUDevice(',
    `#include "${join(HERE, 'binding/exports.cc')}"\n\n`,
    'before',
  );
  const entry = (js: string, cc: string) =>
    `      {"${js}", nullptr, ${cc}, nullptr, nullptr, nullptr, napi_default, nullptr},\n`;
  insert(
    'tfjs_binding.cc',
    '      {"loadSavedModel", nullptr,',
    entry('addGraphFunction', 'AddGraphFunction') +
      entry('removeGraphFunction', 'RemoveGraphFunction') +
      entry('returnFreedMemory', 'ReturnFreedMemory') +
      entry('endAfterSignals', 'EndAfterSignals'),
    'before',
  );
}
