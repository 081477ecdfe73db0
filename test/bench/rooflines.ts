// What a processor could do at best, which rows of the decoder stand beside: reading the weights from memory, and dot products of 128 bits alone.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { ModelConfig } from '../../schema/manifest.ts';
import type { Pair } from './pair.ts';

/** Weights of a layer's matrices: as many products a token. */
export const layerWeights = ({
  hidden_size: D,
  num_attention_heads: h,
  num_key_value_heads: kv,
  head_dim,
  intermediate_size,
}: ModelConfig) => 2 * D * head_dim * (h + kv) + 3 * D * intermediate_size;

/** Products that a token takes with all matrices, where it is not attended to anything. */
export const productsPerToken = (model: ModelConfig): number =>
  model.num_hidden_layers * layerWeights(model) + model.vocab_size * model.hidden_size;

type Dots = Record<'pairs' | 'fours', (rounds: number) => number>;
let compiled: Dots | undefined;

function dots(): Dots {
  const source = join(import.meta.dirname, 'assembly/dots.ts');
  const out = join(mkdtempSync(join(tmpdir(), 'plumb-dots-')), 'dots.wasm');
  const options = ['--runtime', 'stub', '-O0', '--noAssert', '--use', 'abort=', '--initialMemory', '1'];
  const enabled = ['--enable', 'simd', '--enable', 'relaxed-simd', '--outFile', out];
  const { status } = spawnSync('npx', ['asc', source, ...options, ...enabled], { stdio: 'inherit' });
  if (status !== 0) throw new Error('assembly/dots.ts does not compile');
  // the types are workerd's, where a module cannot be made from bytes
  const Module = WebAssembly.Module as unknown as new (bytes: Uint8Array) => WebAssembly.Module;
  const { exports } = new WebAssembly.Instance(new Module(readFileSync(out)));
  rmSync(dirname(out), { recursive: true });
  return exports as Dots;
}

/** Products a second, in 10^9, of the faster of the two dot products that wasm has, from the innermost cache. */
export function dotProducts(): number {
  compiled ??= dots();
  const [PRODUCTS, ROUNDS] = [1024, 300_000];
  const speeds: number[] = [];
  // thrice each: the engine's optimising compiler takes over while the first runs
  for (let time = 0; time < 3; time++)
    for (const run of [compiled.pairs, compiled.fours]) {
      const started = performance.now();
      run(ROUNDS);
      speeds.push((ROUNDS * PRODUCTS) / (performance.now() - started) / 1e6);
    }
  return Math.max(...speeds);
}

/** More than any cache holds. */
const BEYOND_CACHES = 2 ** 29;

/** Bytes a second that one thread reads of a stretch that is so long, again and again: its two halves, which are equal, are compared. */
export function bandwidth(bytes = BEYOND_CACHES): number {
  const [a, b] = [Buffer.alloc(bytes >> 1, 1), Buffer.alloc(bytes >> 1, 1)];
  a.compare(b); // the caches hold what they can
  const times = Math.ceil(BEYOND_CACHES / bytes);
  const started = performance.now();
  for (let time = 0; time < times; time++) a.compare(b);
  return (times * 2 * a.length * 1000) / (performance.now() - started);
}

/** What a token takes of memory and of a processor. */
interface Work {
  bytes: number;
  products: number;
}

/** How near a pair's own side, in tokens a second, comes to both rooflines. */
export function roofed(row: Pair, { bytes, products }: Work, read = bandwidth()): Pair {
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  const shares = `${percent((row.ours * bytes) / read)} of read bandwidth, ${percent((row.ours * products) / 1e9 / dotProducts())} of dot products’ peak`;
  return { ...row, note: `${row.note}; ${shares}` };
}
