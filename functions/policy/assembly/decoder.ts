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
import { product4 } from './int4';
import { product8 } from './int8';
import { correct } from './low';
import { exp4, larger, madd, max4, sum4 } from './simd';

const H: i32 = 64;
const HEAD: usize = 256; // bytes of a head in float32
const BLOCK_BYTES: usize = 288; // of the embedding, in 8 bits: 8 scales, then 8 × (8 rows × 4 columns)

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

/** (N) → (N) */
@inline function rmsNormOf(N: i32, from: usize, gain: usize, to: usize): void {
  const bytes = <usize>N << 2;
  let squares = f32x4.splat(0);
  for (let i: usize = 0; i < bytes; i += 16) { const v = v128.load(from + i); squares = madd(v, v, squares); }
  const scale = f32x4.splat(<f32>1.0 / sqrt<f32>(sum4(squares) / <f32>N + epsilon));
  for (let i: usize = 0; i < bytes; i += 16) v128.store(to + i, f32x4.mul(f32x4.mul(v128.load(from + i), scale), v128.load(gain + i)));
}

/** (D) → (D) */
function rmsNorm(from: usize, gain: usize, to: usize): void { rmsNormOf(D, from, gain, to); }

/** Brings n heads to the same length. */
function level(head: usize, n: i32, gain: usize): void {
  for (let h = 0; h < n; h++) { rmsNormOf(H, head, gain, head); head += HEAD; }
}

function addTo(to: usize, from: usize, bytes: usize): void {
  for (let i: usize = 0; i < bytes; i += 16) v128.store(to + i, f32x4.add(v128.load(to + i), v128.load(from + i)));
}

/** Turns n heads by their position: dimension i with i + 32. */
function rope(head: usize, n: i32, position: i32): void {
  const c = cosines + <usize>position * (HEAD / 2), s = sines + <usize>position * (HEAD / 2);
  for (let h = 0; h < n; h++) {
    for (let i: usize = 0; i < HEAD / 2; i += 16) {
      const a = v128.load(head + i), b = v128.load(head + i, HEAD / 2);
      const cos = v128.load(c + i), sin = v128.load(s + i);
      v128.store(head + i, f32x4.sub(f32x4.mul(a, cos), f32x4.mul(b, sin)));
      v128.store(head + i, f32x4.add(f32x4.mul(b, cos), f32x4.mul(a, sin)), HEAD / 2);
    }
    head += HEAD;
  }
}

/** A token's row of the embedding, out of its group of eight. (D) */
function embed(table: usize, token: i32, to: usize): void {
  let block = table + <usize>(token >> 3) * (<usize>(D >> 5) * BLOCK_BYTES);
  const lane = <usize>(token & 7) << 2;
  for (let b = 0; b < D; b += 32) {
    const scale = load<f32>(block + lane);
    const row = block + 32 + lane;
    for (let c: usize = 0; c < 32; c++) {
      store<f32>(to, scale * <f32>load<i8>(row + ((c >> 2) << 5) + (c & 3)));
      to += 4;
    }
    block += BLOCK_BYTES;
  }
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
  for (let t = 0; t < T; t++) embed(tensor(S * L + 1), input(tokens, t), x + <usize>t * Db);
  for (let l = 0; l < L; l++) {
    const at = S * l, rest = at + S - 6; // what Qwen adds lies between
    const low = S * L + (tied ? 2 : 3) + 4 * l;
    for (let t = 0; t < T; t++) rmsNorm(x + <usize>t * Db, tensor(at), normed + <usize>t * Db);
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
      rope(row, A + G, position);
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
    for (let t = 0; t < T; t++) rmsNorm(x + <usize>t * Db, tensor(rest + 3), normed + <usize>t * Db);
    product(tensor(rest + 4), 2 * F, D, T, normed, Db, gateUp, 2 * Fb); // (T, D) → (T, 2F)
    if (corrected) {
      const up = correct(tensor(low + 2), F, D, T, normed, Db, gateUp, 2 * Fb, parts);
      correct(up, F, D, T, normed, Db, gateUp + Fb, 2 * Fb, parts);
    }
    for (let t = 0; t < T; t++) {
      const row = gateUp + <usize>t * 2 * Fb;
      for (let i: usize = 0; i < Fb; i += 16) {
        const gate = v128.load(row + i);
        const sigmoid = f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.pmin(f32x4.neg(gate), f32x4.splat(87)))));
        v128.store(row + i, f32x4.mul(f32x4.mul(gate, sigmoid), v128.load(row + i + Fb)));
      }
    }
    product(tensor(rest + 5), D, F, T, gateUp, 2 * Fb, normed, Db); // (T, F) → (T, D)
    if (corrected) correct(tensor(low + 3), D, F, T, gateUp, 2 * Fb, normed, Db, parts);
    addTo(x, normed, <usize>T * Db);
  }
  for (let i = 0; i < n; i++) rmsNorm(x + <usize>i * Db, tensor(S * L), normed + <usize>i * Db);
  if (n > 0) product8(tensor(tied ? S * L + 1 : S * L + 2), V8, D, n, normed, Db, logits, <usize>V8 << 2, quants, scales); // (n, D) → (n, V8)
}

/** shares = exp((logits[i] − the largest) / temperature) */
export function weigh(i: i32, temperature: f32): void {
  const row = logits + ((<usize>i * V8) << 2), bytes = <usize>V << 2, whole = bytes & ~15;
  let m = f32x4.splat(-Infinity);
  for (let p: usize = 0; p < whole; p += 16) m = larger(m, v128.load(row + p));
  let largest = max4(m);
  for (let p = whole; p < bytes; p += 4) largest = max(largest, load<f32>(row + p));
  const most = f32x4.splat(largest), cool = f32x4.splat(<f32>1.0 / temperature);
  // The last four may reach into the padding, where they do no harm.
  for (let p: usize = 0; p < bytes; p += 16) v128.store(shares + p, exp4(f32x4.mul(f32x4.sub(v128.load(row + p), most), cool)));
}

/** Copies the first n positions of a sequence to another's stretch; of keys, which lie in groups of positions, whole groups. */
export function copyPositions(from: i32, to: i32, n: i32): void {
  const bytes = <usize>((n + 7) & ~7) * H * cached;
  for (let i = 0; i < L * G; i++) {
    const head = <usize>i * P, source = (head + from) * H * cached, target = (head + to) * H * cached;
    memory.copy(keys + target, keys + source, bytes);
    memory.copy(values + target, values + source, bytes);
  }
}
