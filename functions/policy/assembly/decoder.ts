// The decoder that serves: a Llama in SIMD WebAssembly (AssemblyScript), written to be read beside ../reference.ts.
// Weights are the blocks of schema/edge.ts; activations are rounded to 16 bits a block of 32 before each product, whose
// integer sums are exact; everything else is float32. A row's result is made of the same operations in the same order
// whatever rows run beside it, so a batch gives bit for bit what each sequence gives alone.
//
// Built by `npm run build:decoder` with -O0 (Binaryen's optimiser reorders the kernels and makes them slower), once with
// relaxed SIMD (a fused multiply-add where the plain build has two operations) and once without.
//
// T rows in a call · D hidden · A heads · G key-value heads · H = 64 · F inner · V vocabulary, V8 padded to 8 · C context

const H: i32 = 64;
const HEAD: usize = 256; // bytes of a head in float32
const BLOCK_BYTES: usize = 288; // 8 scales, then 8 × (8 rows × 4 columns) of int8

let L: i32, D: i32, A: i32, G: i32, F: i32, V: i32, V8: i32, C: i32, S: i32;
let epsilon: f32;
let tied: i32;

// Addresses. Weights lie where the image's offsets say, from `weights` on.
let weights: usize;
let offsets: usize; // (6L + 3) u32: by layer attention norm, qkv, o, mlp norm, gate and up, down; then norm, embed, head
let tokens: usize, positions: usize, slots: usize, wanted: usize; // (T) i32
let cosines: usize, sines: usize; // (C, H/2) f32
let keys: usize; // (S, L, G, C/4, H, 4) f32: four positions side by side, so that scores come four at a time
let values: usize; // (S, L, G, C, H) f32
let x: usize; // (T, D) f32, the residual stream
let normed: usize; // (T, max(D, A·H)) f32
let qkv: usize; // (T, (A + 2G)·H) f32
let mixed: usize; // (T, A·H) f32
let gateUp: usize; // (T, 2F) f32
let quants: usize; // (T/4, K/4, 4, 4) i16
let scales: usize; // (T/4, K/32, 4) f32
let scores: usize; // (C) f32
let logits: usize; // (wanted, V8) f32
let shares: usize; // (V8) f32

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
  layers: i32, hidden: i32, heads: i32, kvHeads: i32, inner: i32, vocabulary: i32, context: i32, slotCount: i32,
  rowCount: i32, logitRows: i32, eps: f32, isTied: i32, weightBytes: i32,
): void {
  L = layers; D = hidden; A = heads; G = kvHeads; F = inner; V = vocabulary; V8 = (vocabulary + 7) & ~7;
  C = (context + 3) & ~3; S = slotCount; epsilon = eps; tied = isTied;
  const T = <usize>((rowCount + 3) & ~3); // products run four rows at a time and may fill up the last four
  const widest = max(max(D, F), A * H);
  top = __heap_base;
  weights = take(weightBytes);
  offsets = take((L * 6 + 3) * 4);
  tokens = take(T * 4); positions = take(T * 4); slots = take(T * 4); wanted = take(T * 4);
  cosines = take(<usize>C * (H / 2) * 4); sines = take(<usize>C * (H / 2) * 4);
  const cache = <usize>S * L * G * C * H * 4;
  keys = take(cache); values = take(cache);
  x = take(T * D * 4);
  normed = take(T * max(D, A * H) * 4);
  qkv = take(T * (A + 2 * G) * HEAD);
  mixed = take(T * A * HEAD);
  gateUp = take(T * 2 * F * 4);
  quants = take(T * widest * 2);
  scales = take(T * (widest / 32) * 4);
  scores = take(<usize>C * 4);
  logits = take(<usize>((logitRows + 3) & ~3) * V8 * 4);
  shares = take(V8 * 4);
}

export function weightsAt(): usize { return weights; }
export function offsetsAt(): usize { return offsets; }
export function tokensAt(): usize { return tokens; }
export function positionsAt(): usize { return positions; }
export function slotsAt(): usize { return slots; }
export function wantedAt(): usize { return wanted; }
export function cosinesAt(): usize { return cosines; }
export function sinesAt(): usize { return sines; }
export function logitsAt(): usize { return logits; }
export function sharesAt(): usize { return shares; }

// a · b + c
@inline function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}
@inline function dot(a: v128, b: v128, sum: v128): v128 {
  return i32x4.add(i32x4.dot_i16x8_s(a, b), sum);
}
// Two registers of (row, half) sums make one of row sums: a holds rows 0 and 1, b rows 2 and 3.
@inline function fold(a: v128, b: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.add(i32x4.shuffle(a, b, 0, 2, 4, 6), i32x4.shuffle(a, b, 1, 3, 5, 7)));
}
@inline function sum4(a: v128): f32 {
  return (f32x4.extract_lane(a, 0) + f32x4.extract_lane(a, 1)) + (f32x4.extract_lane(a, 2) + f32x4.extract_lane(a, 3));
}
@inline function max4(a: v128): f32 {
  return max(max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)), max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)));
}

/** e^v by 2^n · e^r, |r| ≤ ln 2 / 2, to 2 ulp or so; 0 below −87. */
@inline function exp4(v: v128): v128 {
  const alive = f32x4.ge(v, f32x4.splat(-87.0));
  v = f32x4.max(v, f32x4.splat(-87.0));
  const n = f32x4.nearest(f32x4.mul(v, f32x4.splat(1.44269504088896341)));
  let r = f32x4.sub(v, f32x4.mul(n, f32x4.splat(0.693145751953125)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(1.428606765330187e-6)));
  let p = f32x4.splat(1.0 / 720.0);
  p = madd(p, r, f32x4.splat(1.0 / 120.0));
  p = madd(p, r, f32x4.splat(1.0 / 24.0));
  p = madd(p, r, f32x4.splat(1.0 / 6.0));
  p = madd(p, r, f32x4.splat(0.5));
  p = madd(p, r, f32x4.splat(1.0));
  p = madd(p, r, f32x4.splat(1.0));
  return v128.and(alive, i32x4.add(p, i32x4.shl(i32x4.trunc_sat_f32x4_s(n), 23)));
}

// Activations are rounded to 16 bits by blocks of 32, in tiles of four rows: for each 4 columns the four rows' numbers
// lie side by side, so that one pointer and constant offsets reach all that a product needs.
//   quants: tile t, columns 4c … 4c + 3, row r at  t · 8K + 32c + 8r      scales: tile t, block b, row r at  t · K/2 + 16b + 4r

/** Rounds the row `from` of K numbers; `to` and `scale` are its places in its tile. */
function quantise(from: usize, K: i32, to: usize, scale: usize): void {
  const end = from + (<usize>K << 2);
  while (from < end) {
    let m = f32x4.splat(0);
    for (let i: usize = 0; i < 128; i += 16) m = f32x4.max(m, f32x4.abs(v128.load(from + i)));
    const largest = max4(m);
    const inverse = f32x4.splat(largest == 0 ? 0 : <f32>32767.0 / largest);
    store<f32>(scale, largest / 32767.0);
    for (let i: usize = 0; i < 128; i += 32) {
      const low = i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(v128.load(from + i), inverse)));
      const high = i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(v128.load(from + i, 16), inverse)));
      const both = i16x8.narrow_i32x4_s(low, high);
      v128.store64_lane(to, both, 0);
      v128.store64_lane(to, both, 1, 32);
      to += 64;
    }
    from += 128;
    scale += 16;
  }
}

/** The first row of a tile: y = W q. (K) → (R) */
function product1(w: usize, R: i32, K: i32, tile: usize, tileScales: usize, y: usize): void {
  const end = tile + (<usize>K << 3);
  for (let r = 0; r < R; r += 8) {
    let sum0 = f32x4.splat(0), sum1 = f32x4.splat(0);
    let q = tile, s = tileScales;
    while (q < end) {
      let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0), v: v128;
      v = v128.load64_splat(q);
      a = dot(v128.load8x8_s(w, 32), v, a); b = dot(v128.load8x8_s(w, 40), v, b);
      c = dot(v128.load8x8_s(w, 48), v, c); d = dot(v128.load8x8_s(w, 56), v, d);
      v = v128.load64_splat(q, 32);
      a = dot(v128.load8x8_s(w, 64), v, a); b = dot(v128.load8x8_s(w, 72), v, b);
      c = dot(v128.load8x8_s(w, 80), v, c); d = dot(v128.load8x8_s(w, 88), v, d);
      v = v128.load64_splat(q, 64);
      a = dot(v128.load8x8_s(w, 96), v, a); b = dot(v128.load8x8_s(w, 104), v, b);
      c = dot(v128.load8x8_s(w, 112), v, c); d = dot(v128.load8x8_s(w, 120), v, d);
      v = v128.load64_splat(q, 96);
      a = dot(v128.load8x8_s(w, 128), v, a); b = dot(v128.load8x8_s(w, 136), v, b);
      c = dot(v128.load8x8_s(w, 144), v, c); d = dot(v128.load8x8_s(w, 152), v, d);
      v = v128.load64_splat(q, 128);
      a = dot(v128.load8x8_s(w, 160), v, a); b = dot(v128.load8x8_s(w, 168), v, b);
      c = dot(v128.load8x8_s(w, 176), v, c); d = dot(v128.load8x8_s(w, 184), v, d);
      v = v128.load64_splat(q, 160);
      a = dot(v128.load8x8_s(w, 192), v, a); b = dot(v128.load8x8_s(w, 200), v, b);
      c = dot(v128.load8x8_s(w, 208), v, c); d = dot(v128.load8x8_s(w, 216), v, d);
      v = v128.load64_splat(q, 192);
      a = dot(v128.load8x8_s(w, 224), v, a); b = dot(v128.load8x8_s(w, 232), v, b);
      c = dot(v128.load8x8_s(w, 240), v, c); d = dot(v128.load8x8_s(w, 248), v, d);
      v = v128.load64_splat(q, 224);
      a = dot(v128.load8x8_s(w, 256), v, a); b = dot(v128.load8x8_s(w, 264), v, b);
      c = dot(v128.load8x8_s(w, 272), v, c); d = dot(v128.load8x8_s(w, 280), v, d);
      const scale = v128.load32_splat(s);
      sum0 = madd(fold(a, b), f32x4.mul(v128.load(w), scale), sum0);
      sum1 = madd(fold(c, d), f32x4.mul(v128.load(w, 16), scale), sum1);
      w += BLOCK_BYTES; q += 256; s += 16;
    }
    v128.store(y, sum0); v128.store(y, sum1, 16);
    y += 32;
  }
}

/** A tile's four rows and four of the matrix's, those of the half group at w: y[t] = W q[t]. (4, K) → (4, 4) */
function product4(w: usize, K: i32, q: usize, s: usize, y: usize, stride: usize): void {
  const end = q + (<usize>K << 3);
  let sum0 = f32x4.splat(0), sum1 = f32x4.splat(0), sum2 = f32x4.splat(0), sum3 = f32x4.splat(0);
  while (q < end) {
    let a0 = i32x4.splat(0), a1 = i32x4.splat(0), a2 = i32x4.splat(0), a3 = i32x4.splat(0);
    let b0 = i32x4.splat(0), b1 = i32x4.splat(0), b2 = i32x4.splat(0), b3 = i32x4.splat(0);
    let wa: v128, wb: v128, v: v128;
    wa = v128.load8x8_s(w, 32); wb = v128.load8x8_s(w, 40);
    v = v128.load64_splat(q); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 8); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 16); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 24); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 64); wb = v128.load8x8_s(w, 72);
    v = v128.load64_splat(q, 32); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 40); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 48); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 56); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 96); wb = v128.load8x8_s(w, 104);
    v = v128.load64_splat(q, 64); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 72); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 80); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 88); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 128); wb = v128.load8x8_s(w, 136);
    v = v128.load64_splat(q, 96); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 104); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 112); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 120); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 160); wb = v128.load8x8_s(w, 168);
    v = v128.load64_splat(q, 128); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 136); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 144); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 152); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 192); wb = v128.load8x8_s(w, 200);
    v = v128.load64_splat(q, 160); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 168); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 176); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 184); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 224); wb = v128.load8x8_s(w, 232);
    v = v128.load64_splat(q, 192); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 200); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 208); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 216); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    wa = v128.load8x8_s(w, 256); wb = v128.load8x8_s(w, 264);
    v = v128.load64_splat(q, 224); a0 = dot(wa, v, a0); b0 = dot(wb, v, b0);
    v = v128.load64_splat(q, 232); a1 = dot(wa, v, a1); b1 = dot(wb, v, b1);
    v = v128.load64_splat(q, 240); a2 = dot(wa, v, a2); b2 = dot(wb, v, b2);
    v = v128.load64_splat(q, 248); a3 = dot(wa, v, a3); b3 = dot(wb, v, b3);
    const scale = v128.load(w);
    sum0 = madd(fold(a0, b0), f32x4.mul(scale, v128.load32_splat(s)), sum0);
    sum1 = madd(fold(a1, b1), f32x4.mul(scale, v128.load32_splat(s, 4)), sum1);
    sum2 = madd(fold(a2, b2), f32x4.mul(scale, v128.load32_splat(s, 8)), sum2);
    sum3 = madd(fold(a3, b3), f32x4.mul(scale, v128.load32_splat(s, 12)), sum3);
    w += BLOCK_BYTES; q += 256; s += 16;
  }
  v128.store(y, sum0);
  v128.store(y + stride, sum1);
  v128.store(y + 2 * stride, sum2);
  v128.store(y + 3 * stride, sum3);
}

/** y = W x for T rows. (T, K) → (T, R); x and y may have wider rows */
function product(w: usize, R: i32, K: i32, T: i32, from: usize, fromStride: usize, y: usize, yStride: usize): void {
  const tile = <usize>K << 3, tileScales = <usize>K >> 1; // bytes
  for (let t: usize = 0; t < <usize>T; t++)
    quantise(from + t * fromStride, K, quants + (t >> 2) * tile + ((t & 3) << 3), scales + (t >> 2) * tileScales + ((t & 3) << 2));
  const tiles = <usize>((T & 3) == 1 ? T >> 2 : (T + 3) >> 2); // two or three rows left are run as four
  const group = <usize>(K >> 5) * BLOCK_BYTES;
  if (tiles > 0) {
    let at = w;
    for (let r: usize = 0; r < <usize>R; r += 8) {
      for (let t: usize = 0; t < tiles; t++) {
        const to = y + (t << 2) * yStride + (r << 2);
        product4(at, K, quants + t * tile, scales + t * tileScales, to, yStride);
        product4(at + 16, K, quants + t * tile, scales + t * tileScales, to + 16, yStride);
      }
      at += group;
    }
  }
  if ((T & 3) == 1) product1(w, R, K, quants + tiles * tile, scales + tiles * tileScales, y + (tiles << 2) * yStride);
}

/** (D) → (D) */
function rmsNorm(from: usize, gain: usize, to: usize): void {
  const bytes = <usize>D << 2;
  let squares = f32x4.splat(0);
  for (let i: usize = 0; i < bytes; i += 16) { const v = v128.load(from + i); squares = madd(v, v, squares); }
  const scale = f32x4.splat(<f32>1.0 / sqrt<f32>(sum4(squares) / <f32>D + epsilon));
  for (let i: usize = 0; i < bytes; i += 16) v128.store(to + i, f32x4.mul(f32x4.mul(v128.load(from + i), scale), v128.load(gain + i)));
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

function remember(k: usize, v: usize, keyCache: usize, valueCache: usize, position: i32): void {
  const to = keyCache + <usize>(position >> 2) * (HEAD * 4) + (<usize>(position & 3) << 2);
  for (let i: usize = 0; i < 64; i++) store<f32>(to + (i << 4), load<f32>(k + (i << 2)));
  memory.copy(valueCache + <usize>position * HEAD, v, HEAD);
}

/** One head over positions 0 … n − 1. (H) → (H) */
function attend(q: usize, keyCache: usize, valueCache: usize, n: i32, to: usize): void {
  const bytes = <usize>n << 2, padded = <usize>((n + 3) & ~3) << 2;
  let k = keyCache;
  for (let p: usize = 0; p < padded; p += 16) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    for (let i: usize = 0; i < HEAD; i += 16) {
      a = madd(v128.load32_splat(q + i), v128.load(k), a);
      b = madd(v128.load32_splat(q + i, 4), v128.load(k, 16), b);
      c = madd(v128.load32_splat(q + i, 8), v128.load(k, 32), c);
      d = madd(v128.load32_splat(q + i, 12), v128.load(k, 48), d);
      k += 64;
    }
    v128.store(scores + p, f32x4.mul(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)), f32x4.splat(0.125)));
  }
  for (let p = bytes; p < padded; p += 4) store<f32>(scores + p, -Infinity); // positions of another time
  let m = f32x4.splat(-Infinity);
  for (let p: usize = 0; p < padded; p += 16) m = f32x4.max(m, v128.load(scores + p));
  const largest = f32x4.splat(max4(m));
  let total = f32x4.splat(0);
  for (let p: usize = 0; p < padded; p += 16) {
    const e = exp4(f32x4.sub(v128.load(scores + p), largest));
    v128.store(scores + p, e);
    total = f32x4.add(total, e);
  }
  const share = f32x4.splat(<f32>1.0 / sum4(total));
  for (let i: usize = 0; i < HEAD; i += 128) {
    let a = f32x4.splat(0), b = f32x4.splat(0), c = f32x4.splat(0), d = f32x4.splat(0);
    let e = f32x4.splat(0), f = f32x4.splat(0), g = f32x4.splat(0), h = f32x4.splat(0);
    let v = valueCache + i;
    for (let p: usize = 0; p < bytes; p += 4) {
      const s = v128.load32_splat(scores + p);
      a = madd(s, v128.load(v), a); b = madd(s, v128.load(v, 16), b);
      c = madd(s, v128.load(v, 32), c); d = madd(s, v128.load(v, 48), d);
      e = madd(s, v128.load(v, 64), e); f = madd(s, v128.load(v, 80), f);
      g = madd(s, v128.load(v, 96), g); h = madd(s, v128.load(v, 112), h);
      v += HEAD;
    }
    const o = to + i;
    v128.store(o, f32x4.mul(a, share)); v128.store(o, f32x4.mul(b, share), 16);
    v128.store(o, f32x4.mul(c, share), 32); v128.store(o, f32x4.mul(d, share), 48);
    v128.store(o, f32x4.mul(e, share), 64); v128.store(o, f32x4.mul(f, share), 80);
    v128.store(o, f32x4.mul(g, share), 96); v128.store(o, f32x4.mul(h, share), 112);
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

@inline function tensor(i: i32): usize { return weights + load<u32>(offsets + (<usize>i << 2)); }
@inline function input(list: usize, t: i32): i32 { return load<i32>(list + (<usize>t << 2)); }

/** Runs T rows; logits are made for the n rows that `wanted` names. */
export function forward(T: i32, n: i32): void {
  const Db = <usize>D << 2, Fb = <usize>F << 2, Qb = <usize>(A * H) << 2, Kb = <usize>(G * H) << 2, QKVb = Qb + 2 * Kb;
  const cacheHead = <usize>C * HEAD;
  for (let t = 0; t < T; t++) embed(tensor(6 * L + 1), input(tokens, t), x + <usize>t * Db);
  for (let l = 0; l < L; l++) {
    const at = 6 * l;
    for (let t = 0; t < T; t++) rmsNorm(x + <usize>t * Db, tensor(at), normed + <usize>t * Db);
    product(tensor(at + 1), (A + 2 * G) * H, D, T, normed, Db, qkv, QKVb); // (T, D) → (T, (A + 2G)·H)
    for (let t = 0; t < T; t++) {
      const row = qkv + <usize>t * QKVb, position = input(positions, t);
      rope(row, A + G, position);
      for (let g = 0; g < G; g++) {
        const cache = (<usize>((input(slots, t) * L + l) * G + g)) * cacheHead;
        const k = row + Qb + <usize>g * HEAD;
        remember(k, k + Kb, keys + cache, values + cache, position);
      }
    }
    for (let t = 0; t < T; t++) {
      for (let a = 0; a < A; a++) {
        const cache = (<usize>((input(slots, t) * L + l) * G + a / (A / G))) * cacheHead;
        const head = <usize>a * HEAD;
        attend(qkv + <usize>t * QKVb + head, keys + cache, values + cache, input(positions, t) + 1, mixed + <usize>t * Qb + head);
      }
    }
    product(tensor(at + 2), D, A * H, T, mixed, Qb, normed, Db); // (T, A·H) → (T, D)
    addTo(x, normed, <usize>T * Db);
    for (let t = 0; t < T; t++) rmsNorm(x + <usize>t * Db, tensor(at + 3), normed + <usize>t * Db);
    product(tensor(at + 4), 2 * F, D, T, normed, Db, gateUp, 2 * Fb); // (T, D) → (T, 2F)
    for (let t = 0; t < T; t++) {
      const row = gateUp + <usize>t * 2 * Fb;
      for (let i: usize = 0; i < Fb; i += 16) {
        const gate = v128.load(row + i);
        const sigmoid = f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.min(f32x4.neg(gate), f32x4.splat(87)))));
        v128.store(row + i, f32x4.mul(f32x4.mul(gate, sigmoid), v128.load(row + i + Fb)));
      }
    }
    product(tensor(at + 5), D, F, T, gateUp, 2 * Fb, normed, Db); // (T, F) → (T, D)
    addTo(x, normed, <usize>T * Db);
  }
  for (let i = 0; i < n; i++) rmsNorm(x + <usize>input(wanted, i) * Db, tensor(6 * L), normed + <usize>i * Db);
  if (n > 0) product(tensor(tied ? 6 * L + 1 : 6 * L + 2), V8, D, n, normed, Db, logits, <usize>V8 << 2); // (n, D) → (n, V8)
}

/** shares = exp((logits[i] − the largest) / temperature) */
export function weigh(i: i32, temperature: f32): void {
  const row = logits + ((<usize>i * V8) << 2), bytes = <usize>V << 2, whole = bytes & ~15;
  let m = f32x4.splat(-Infinity);
  for (let p: usize = 0; p < whole; p += 16) m = f32x4.max(m, v128.load(row + p));
  let largest = max4(m);
  for (let p = whole; p < bytes; p += 4) largest = max(largest, load<f32>(row + p));
  const most = f32x4.splat(largest), cool = f32x4.splat(<f32>1.0 / temperature);
  // The last four may reach into the padding, where they do no harm.
  for (let p: usize = 0; p < bytes; p += 16) v128.store(shares + p, exp4(f32x4.mul(f32x4.sub(v128.load(row + p), most), cool)));
}

/** Copies positions 0 … n − 1 of a slot to another. */
export function copySlot(from: i32, to: i32, n: i32): void {
  const head = <usize>C * HEAD, slot = <usize>(L * G) * head;
  for (let i = 0; i < L * G; i++) {
    const source = <usize>from * slot + <usize>i * head, target = <usize>to * slot + <usize>i * head;
    memory.copy(keys + target, keys + source, <usize>((n + 3) >> 2) * (HEAD * 4));
    memory.copy(values + target, values + source, <usize>n * HEAD);
  }
}
