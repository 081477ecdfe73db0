// The training engine: TensorFlow's API as tfjs-node has it, on the binding that setup.ts made. Importing this file loads it,
// so whoever may run without an engine imports it late. PLUMB_ENGINE=stock takes the tfjs-node package as it installs itself
// (slow: no traced calls; for comparison only).

import { readFileSync, realpathSync } from 'node:fs';
import { createRequire, registerHooks } from 'node:module';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import util from 'node:util';
import type * as Tf from '@tensorflow/tfjs';
import { engineFolder, engineReady, stockAsked } from './setup.ts';
import { EngineError } from './wheel.ts';

/** What the patched binding offers beside tfjs-node's own calls. */
export interface Binding {
  createTensor(shape: number[], dtype: number, values: ArrayBufferView | number): number;
  deleteTensor(id: number): void;
  tensorDataSync(id: number): ArrayBufferView;
  executeOp(op: string, attributes: OpAttribute[], inputs: number[], outputs: number): OutputTensor[];
  addGraphFunction?(name: string, graphDef: Uint8Array, inputs: string, outputs: string): void;
  removeGraphFunction?(name: string): void;
  returnFreedMemory?(): void;
  endAfterSignals?(seconds: number): void;
  readonly [constant: `TF_${string}`]: number;
}
export interface OpAttribute {
  name: string;
  type: number;
  value: unknown;
}
export interface OutputTensor {
  id: number;
  dtype: number;
  shape: number[];
}
/** The part of tfjs-node's backend that tracing needs. */
interface NodeBackend {
  binding: Binding;
  isUsingGpuDevice: boolean;
  /** What lies behind a tensor, by its dataId: which of the binding's tensors, and how many of tfjs' share it. */
  tensorMap: {
    has(dataId: object): boolean;
    get(dataId: object): { id: number; shape: number[]; dtype: number; refCount: number; values: object | null };
  };
  move(dataId: object, ...what: unknown[]): void;
  readSync(dataId: object): ArrayBufferView;
  getDTypeInteger(dtype: string): number;
  getInputTensorIds(tensors: Tf.Tensor[]): number[];
  createOutputTensor(output: OutputTensor): Tf.Tensor;
  executeSingleOutput(op: string, attributes: OpAttribute[], inputs: Tf.Tensor[]): Tf.Tensor;
}

// A fixed thread count repeats bit for bit; TensorFlow reads these once, when the binding loads.
process.env.TF_NUM_INTRAOP_THREADS ??= String(availableParallelism());
process.env.TF_CPP_MIN_LOG_LEVEL ??= '2';
// TensorFlow's choice is by the processor: without AVX512-VNNI it takes neither oneDNN's products nor the allocator that `takeRegion` is for.
process.env.TF_ENABLE_ONEDNN_OPTS ??= '1';

/** What products can be computed in, beside float32: bfloat16 where the processor multiplies it. */
export const hasBfloat16 =
  process.platform === 'linux' && /\b(avx512_bf16|amx_bf16)\b/.test(readFileSync('/proc/cpuinfo', 'utf8'));
// A graph with such products is not compiled as a whole; these let XLA take what lies between them (bf16.ts).
if (hasBfloat16)
  process.env.TF_XLA_FLAGS ??=
    '--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit=true --tf_xla_ops_to_cluster=FUSIBLE --tf_xla_min_cluster_size=2';
// Node 23 dropped what tfjs-node still calls.
Object.assign(util, {
  isNullOrUndefined: (value: unknown) => value === null || value === undefined,
  isArray: Array.isArray,
});

const stock = stockAsked();

/** TensorFlow greets on stderr as it loads; everything else that is said meanwhile is passed on. */
function quietly<T>(stderr: { hold(): void; release(): string }, work: () => T): T {
  stderr.hold();
  try {
    return work();
  } finally {
    const greetings = /absl::InitializeLog|oneDNN custom operations/;
    for (const line of stderr.release().split('\n')) if (line && !greetings.test(line)) console.error(line);
  }
}

function load(): typeof Tf {
  if (stock) {
    try {
      return createRequire(import.meta.url)('@tensorflow/tfjs-node');
    } catch (error) {
      throw new EngineError(
        `PLUMB_ENGINE=stock: the tfjs-node package does not load (${(error as Error).message.split('\n')[0]}); its install script is not run by npm ci, see its own documentation, or leave PLUMB_ENGINE unset`,
      );
    }
  }
  const folder = engineFolder();
  if (!engineReady(folder))
    throw new EngineError('the training engine is not set up on this machine: run npx plumb engine --install');
  const own = createRequire(import.meta.url);
  const js = createRequire(join(folder, 'js/package.json'));
  // tfjs-node's files lie outside this checkout; the packages they ask for by name are the ones installed here.
  const inside = pathToFileURL(realpathSync(folder)).href; // modules are known by where they are, whatever links led there
  registerHooks({
    resolve: (specifier, context, next) =>
      context.parentURL?.startsWith(inside) && /^(@tensorflow|google-protobuf)/.test(specifier)
        ? { url: pathToFileURL(own.resolve(specifier)).href, format: 'commonjs', shortCircuit: true }
        : next(specifier, context),
  });
  const tf = own('@tensorflow/tfjs') as typeof Tf;
  if (tf.findBackendFactory('tensorflow')) return tf;
  js('./dist/register_all_kernels.js');
  const { NodeJSKernelBackend } = js('./dist/nodejs_kernel_backend.js');
  const native = quietly(js(join(folder, 'lib/stderr.node')), () => js(join(folder, 'lib/tfjs_binding.node')));
  tf.registerBackend('tensorflow', () => new NodeJSKernelBackend(native, 'tfjs-node'), 3);
  if (!tf.setBackend('tensorflow')) throw new EngineError('TensorFlow did not load: run npx plumb engine');
  return tf;
}

export const tf = load();
/** Which TensorFlow it is, and of which wheel: "tensorflow-cpu==2.21.0". */
export const engineName: string = stock
  ? `tfjs-node ${(tf as unknown as { version: Record<string, string> }).version['tfjs-node']}`
  : JSON.parse(readFileSync(join(engineFolder(), 'ready.json'), 'utf8')).wheel;
export const backend = tf.backend() as unknown as NodeBackend;
/** The messages of TensorFlow's protobuf files that tfjs-node ships (GraphDef and what it is made of). */
export const messages = stock
  ? undefined
  : createRequire(join(engineFolder(), 'js/package.json'))('./dist/proto/api_pb.js');
export type Tensor = Tf.Tensor;

/** From so many weights on, what is freed goes back to the kernel, and what is idle leaves memory. */
export const FRUGAL = 50e6;

/**
 * To be told before the first tensor. TensorFlow's own allocator keeps all that it ever had, and a small model's training is the faster for it;
 * a large one's calls take so long that clearing pages is nothing beside them, and so much that what is kept would count (LOG.md).
 */
export function expectWeights(count: number): void {
  if (count < FRUGAL) takeRegion();
  else {
    process.env.TF_ONEDNN_USE_SYSTEM_ALLOCATOR ??= '1'; // is read at the first tensor
    backend.binding.returnFreedMemory?.();
  }
}

const REGION = 512 * 2 ** 20;
let taken = false;
/**
 * That allocator takes memory in regions, each twice the last, and what lies in two of them is never one piece: a step's intermediate
 * tensors, which XLA wants in one, would find no place where tracing's have been. In a region that is large from the start they do. Its
 * pages count once they are written to.
 */
function takeRegion(): void {
  if (taken || backend.isUsingGpuDevice) return;
  taken = true;
  const { binding } = backend;
  const size = binding.createTensor([1], binding.TF_INT32!, Int32Array.of(REGION / 4));
  const attributes = [
    { name: 'dtype', type: binding.TF_ATTR_TYPE!, value: binding.TF_FLOAT },
    { name: 'init', type: binding.TF_ATTR_BOOL!, value: false },
  ];
  const [region] = binding.executeOp('Empty', attributes, [size], 1);
  for (const id of [size, region!.id]) binding.deleteTensor(id);
}

/**
 * From here on a signal that asks the process to end does end it, so many seconds later at the latest: what listens in JavaScript hears of it
 * only between two calls, and the compiling of one may take a minute. To be called once something listens.
 */
export const endInTime = (seconds: number): void => backend.binding.endAfterSignals?.(seconds);
