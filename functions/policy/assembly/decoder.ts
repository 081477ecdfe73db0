// The decoder that serves: a Llama in SIMD WebAssembly (AssemblyScript), written to be read beside ../reference.ts.
// Weights are the blocks of schema/edge.ts; activations are rounded a block of 32 before each product, to 16 bits where weights
// have 8 and to 8 where they have 4; its integer sums are exact; everything else is float32. A row's result is made of the same operations in the same order
// whatever rows run beside it, so a batch gives bit for bit what each sequence gives alone.
//
// Built by `npm run build:decoder` with -O0 (Binaryen's optimiser reorders the kernels and makes them slower), once with
// relaxed SIMD (a fused multiply-add where the plain build has two operations) and once without.
//
// T rows in a call · D hidden · A heads · G key-value heads · H = 64 · F inner · V vocabulary, V8 padded to 8 · C context ·
// P positions of the cache: a sequence has a stretch of them that begins at a multiple of 8

import { attend16, attend16of4, remember16 } from './attention16';
import { attend32, remember32 } from './attention32';
import { embed } from './embed';
import { product4 } from './int4';
import { product8 } from './int8';
import { correct } from './low';
import { addTo, rmsNorm } from './norm';
import { rope } from './rope';
import { swiglu } from './swiglu';
import { weighRow } from './weigh';

const H: i32 = 64;
const HEAD: usize = 256; // bytes of a head in float32

let L: i32, D: i32, A: i32, G: i32, F: i32, V: i32, V8: i32, C: i32, P: i32;
let epsilon: f32;
let tied: i32;
let bits: i32; // of the layers' matrices: 4 or 8
let S: i32; // tensors a layer: 6, with Qwen 2's biases 9, with Qwen 3's norms of heads 8
let corrected: i32; // whether each matrix of a layer has a correction

// Addresses. Weights lie where the image's offsets say, from `weights` on.
let weights: usize;
let offsets: usize; // ((S + 4) L + 3) u32: by layer attention norm, qkv, what Qwen adds, o, mlp norm, gate and up, down; then norm, embed, head; then corrections
let tokens: usize, positions: usize, starts: usize, wanted: usize; // (T) i32
let cosines: usize, sines: usize; // (C, H/2) f32
let keys: usize, values: usize; // (L, G, P·H) each, f32, or bf16 beside weights of 4 bits: see attention32.ts, attention16.ts
let cached: usize; // bytes of a number there
let x: usize; // (T, D) f32, the residual stream
let normed: usize; // (T, max(D, A·H)) f32
let qkv: usize; // (T, (A + 2G)·H) f32
let mixed: usize; // (T, A·H) f32
let gateUp: usize; // (T, 2F) f32
let quants: usize; // (T/4, K/4, 4, 4) i16, or i8 beside weights of 4 bits
let scales: usize; // (T/4, K/32, 4) f32, or (T/4, K/32, 2, 4)
let unpacked: usize; // weights of 4 bits of four groups, a byte each, with their scales and offsets in f32
let scores: usize; // (4, C) f32
let logits: usize; // (wanted, V8) f32
let shares: usize; // (V8) f32
let parts: usize; // (8) f32, of a correction

let top: usize = 0;

function take(bytes: usize): usize {
  const at = (top + 63) & ~63;
  top = at + bytes;
  const pages = <i32>((top + 65535) >> 16) - memory.size();
  if (pages > 0 && memory.grow(pages) < 0) unreachable();
  return at;
}

/** Sets the shape and takes all memory there will ever be, so that views of it stay valid. */
export function init(
  layers: i32, hidden: i32, heads: i32, kvHeads: i32, inner: i32, vocabulary: i32, context: i32, held: i32,
  rowCount: i32, logitRows: i32, eps: f32, isTied: i32, weightBits: i32, hasCorrections: i32, layerTensors: i32,
  weightBytes: i32,
): void {
  L = layers; D = hidden; A = heads; G = kvHeads; F = inner; V = vocabulary; V8 = (vocabulary + 7) & ~7;
  C = (context + 7) & ~7; P = (held + 7) & ~7; epsilon = eps; tied = isTied; bits = weightBits; S = layerTensors;
  corrected = hasCorrections;
  const T = <usize>((rowCount + 3) & ~3); // products run four rows at a time and may fill up the last four
  const widest = max(max(D, F), A * H);
  top = __heap_base;
  weights = take(weightBytes);
  offsets = take((L * (S + 4) + 3) * 4);
  tokens = take(T * 4); positions = take(T * 4); starts = take(T * 4); wanted = take(T * 4);
  cosines = take(<usize>C * (H / 2) * 4); sines = take(<usize>C * (H / 2) * 4);
  cached = bits == 4 ? 2 : 4;
  const cache = <usize>L * G * P * H * cached;
  keys = take(cache); values = take(cache);
  x = take(T * D * 4);
  normed = take(T * max(D, A * H) * 4);
  qkv = take(T * (A + 2 * G) * HEAD);
  mixed = take(T * A * HEAD);
  gateUp = take(T * 2 * F * 4);
  const wantedRows = <usize>((logitRows + 3) & ~3);
  quants = take(max(T * widest * (bits == 4 ? 1 : 2), wantedRows * D * 2)); // the logits' matrix has 8 bits in any case
  scales = take(T * (widest / 32) * 8);
  unpacked = take(bits == 4 ? <usize>widest * 40 : 0);
  scores = take(<usize>C * 16);
  logits = take(wantedRows * V8 * 4);
  shares = take(V8 * 4);
  parts = take(32);
}

export function weightsAt(): usize { return weights; }
export function offsetsAt(): usize { return offsets; }
export function tokensAt(): usize { return tokens; }
export function positionsAt(): usize { return positions; }
export function startsAt(): usize { return starts; }
export function wantedAt(): usize { return wanted; }
export function cosinesAt(): usize { return cosines; }
export function sinesAt(): usize { return sines; }
export function logitsAt(): usize { return logits; }
export function sharesAt(): usize { return shares; }

/** (D) → (D) */
function normRow(from: usize, gain: usize, to: usize): void { rmsNorm(D, from, gain, to, epsilon); }

/** Brings n heads to the same length. */
function level(head: usize, n: i32, gain: usize): void {
  for (let h = 0; h < n; h++) { rmsNorm(H, head, gain, head, epsilon); head += HEAD; }
}

/** y = W x for T rows, W of a layer. (T, K) → (T, R) */
function product(w: usize, R: i32, K: i32, T: i32, from: usize, fromStride: usize, y: usize, yStride: usize): void {
  if (bits == 4) product4(w, R, K, T, from, fromStride, y, yStride, quants, scales, unpacked);
  else product8(w, R, K, T, from, fromStride, y, yStride, quants, scales);
}

@inline function tensor(i: i32): usize { return weights + load<u32>(offsets + (<usize>i << 2)); }
@inline function input(list: usize, t: i32): i32 { return load<i32>(list + (<usize>t << 2)); }

/** Whether row t and the three after it are a sequence's tokens one after another. */
function follow(t: i32): bool {
  for (let i = t; i < t + 3; i++)
    if (input(starts, i) != input(starts, i + 1) || input(positions, i) + 1 != input(positions, i + 1)) return false;
  return true;
}

/** Row i becomes what row t ≥ i is, as attention and what follows see it. */
function moveRow(t: i32, i: i32): void {
  const row = <usize>D << 2, queries = <usize>(A * H) << 2, all = <usize>((A + 2 * G) * H) << 2;
  memory.copy(x + <usize>i * row, x + <usize>t * row, row);
  memory.copy(qkv + <usize>i * all, qkv + <usize>t * all, queries);
  store<i32>(positions + (<usize>i << 2), input(positions, t));
  store<i32>(starts + (<usize>i << 2), input(starts, t));
}

/** Runs T rows; logits are made for the n rows that `wanted` names, in rising order. */
export function forward(T: i32, n: i32): void {
  const Db = <usize>D << 2, Fb = <usize>F << 2, Qb = <usize>(A * H) << 2, Kb = <usize>(G * H) << 2, QKVb = Qb + 2 * Kb;
  const cacheHead = <usize>P * H * cached;
  for (let t = 0; t < T; t++) embed(tensor(S * L + 1), input(tokens, t), D, x + <usize>t * Db);
  for (let l = 0; l < L; l++) {
    const at = S * l, rest = at + S - 6; // what Qwen adds lies between
    const low = S * L + (tied ? 2 : 3) + 4 * l;
    for (let t = 0; t < T; t++) normRow(x + <usize>t * Db, tensor(at), normed + <usize>t * Db);
    product(tensor(at + 1), (A + 2 * G) * H, D, T, normed, Db, qkv, QKVb); // (T, D) → (T, (A + 2G)·H)
    if (corrected) {
      const k = correct(tensor(low), A * H, D, T, normed, Db, qkv, QKVb, parts);
      const v = correct(k, G * H, D, T, normed, Db, qkv + Qb, QKVb, parts);
      correct(v, G * H, D, T, normed, Db, qkv + Qb + Kb, QKVb, parts);
    }
    for (let t = 0; t < T; t++) {
      const row = qkv + <usize>t * QKVb, position = input(positions, t);
      if (S == 9) addTo(row, tensor(at + 2), QKVb);
      if (S == 8) { level(row, A, tensor(at + 2)); level(row + Qb, G, tensor(at + 3)); }
      const angles = <usize>position * (HEAD / 2);
      rope(row, A + G, cosines + angles, sines + angles);
      for (let g = 0; g < G; g++) {
        const cache = <usize>(l * G + g) * cacheHead + <usize>input(starts, t) * H * cached;
        const k = row + Qb + <usize>g * HEAD;
        if (cached == 2) remember16(k, k + Kb, keys + cache, values + cache, position);
        else remember32(k, k + Kb, keys + cache, values + cache, position);
      }
    }
    if (l == L - 1) {
      // of the others keys and values are all that is ever asked for
      for (let i = 0; i < n; i++) moveRow(input(wanted, i), i);
      T = n;
    }
    for (let t = 0, rows = 1; t < T; t += rows) {
      rows = cached == 2 && t + 3 < T && follow(t) ? 4 : 1;
      for (let a = 0; a < A; a++) {
        const cache = <usize>(l * G + a / (A / G)) * cacheHead + <usize>input(starts, t) * H * cached;
        const head = <usize>a * HEAD;
        const q = qkv + <usize>t * QKVb + head, n = input(positions, t) + 1, to = mixed + <usize>t * Qb + head;
        if (rows == 4) attend16of4(q, QKVb, keys + cache, values + cache, n, to, Qb, scores, <usize>C << 2);
        else if (cached == 2) attend16(q, keys + cache, values + cache, n, to, scores);
        else attend32(q, keys + cache, values + cache, n, to, scores);
      }
    }
    product(tensor(rest + 2), D, A * H, T, mixed, Qb, normed, Db); // (T, A·H) → (T, D)
    if (corrected) correct(tensor(low + 1), D, A * H, T, mixed, Qb, normed, Db, parts);
    addTo(x, normed, <usize>T * Db);
    for (let t = 0; t < T; t++) normRow(x + <usize>t * Db, tensor(rest + 3), normed + <usize>t * Db);
    product(tensor(rest + 4), 2 * F, D, T, normed, Db, gateUp, 2 * Fb); // (T, D) → (T, 2F)
    if (corrected) {
      const up = correct(tensor(low + 2), F, D, T, normed, Db, gateUp, 2 * Fb, parts);
      correct(up, F, D, T, normed, Db, gateUp + Fb, 2 * Fb, parts);
    }
    for (let t = 0; t < T; t++) swiglu(gateUp + <usize>t * 2 * Fb, Fb);
    product(tensor(rest + 5), D, F, T, gateUp, 2 * Fb, normed, Db); // (T, F) → (T, D)
    if (corrected) correct(tensor(low + 3), D, F, T, gateUp, 2 * Fb, normed, Db, parts);
    addTo(x, normed, <usize>T * Db);
  }
  for (let i = 0; i < n; i++) normRow(x + <usize>i * Db, tensor(S * L), normed + <usize>i * Db);
  if (n > 0) product8(tensor(tied ? S * L + 1 : S * L + 2), V8, D, n, normed, Db, logits, <usize>V8 << 2, quants, scales); // (n, D) → (n, V8)
}

/** shares = exp((logits[i] − the largest) / temperature) */
export function weigh(i: i32, temperature: f32): void { weighRow(logits + ((<usize>i * V8) << 2), <usize>V << 2, temperature, shares); }

/** Copies the first n positions of a sequence to another's stretch; of keys, which lie in groups of positions, whole groups. */
export function copyPositions(from: i32, to: i32, n: i32): void {
  const bytes = <usize>((n + 7) & ~7) * H * cached;
  for (let i = 0; i < L * G; i++) {
    const head = <usize>i * P, source = (head + from) * H * cached, target = (head + to) * H * cached;
    memory.copy(keys + target, keys + source, bytes);
    memory.copy(values + target, values + source, bytes);
  }
}
