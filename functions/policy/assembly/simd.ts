// What the kernels share: sums over lanes, a multiply-add that is fused where the build has one, the exponential.

// a · b + c
@inline export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}
/** The larger of each two numbers, of NaN and a number either: one instruction, of which f32x4.max, which hands NaN on, takes seven. */
@inline export function larger(a: v128, b: v128): v128 { return f32x4.pmax(a, b); }
/** The farther from zero of m, which has no sign, and x: without one, floats lie in the order of whole numbers, NaN above all. */
@inline export function farther(m: v128, x: v128): v128 { return i32x4.max_s(m, f32x4.abs(x)); }
/** To whole numbers, of those that fit in 32 bits. */
@inline export function whole4(a: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i32x4.relaxed_trunc_f32x4_s(a);
  return i32x4.trunc_sat_f32x4_s(a);
}
@inline export function dot(a: v128, b: v128, sum: v128): v128 {
  return i32x4.add(i32x4.dot_i16x8_s(a, b), sum);
}
// Two registers of (row, half) sums make one of row sums: a holds rows 0 and 1, b rows 2 and 3.
@inline export function fold(a: v128, b: v128): v128 {
  return f32x4.convert_i32x4_s(i32x4.add(i32x4.shuffle(a, b, 0, 2, 4, 6), i32x4.shuffle(a, b, 1, 3, 5, 7)));
}
@inline export function clear8(at: usize): void { v128.store(at, f32x4.splat(0)); v128.store(at, f32x4.splat(0), 16); }
@inline export function sum4(a: v128): f32 {
  return (f32x4.extract_lane(a, 0) + f32x4.extract_lane(a, 1)) + (f32x4.extract_lane(a, 2) + f32x4.extract_lane(a, 3));
}
@inline export function max4(a: v128): f32 {
  return max(max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)), max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)));
}

// Read from memory, for a constant in the code is made anew each time: two of the instructions that one unit alone runs.
const EXP = memory.data<f32>([
  -87.0, 1.44269504088896341, 0.693145751953125, 1.428606765330187e-6, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0,
]);

/** e^v by 2^n · e^r, |r| ≤ ln 2 / 2, to 2 ulp or so; 0 below −87, NaN of NaN. */
@inline export function exp4(v: v128): v128 {
  const least = v128.load32_splat(EXP);
  const gone = f32x4.lt(v, least);
  v = larger(v, least);
  const n = f32x4.nearest(f32x4.mul(v, v128.load32_splat(EXP, 4)));
  let r = f32x4.sub(v, f32x4.mul(n, v128.load32_splat(EXP, 8)));
  r = f32x4.sub(r, f32x4.mul(n, v128.load32_splat(EXP, 12)));
  let p = madd(v128.load32_splat(EXP, 16), r, v128.load32_splat(EXP, 20));
  p = madd(p, r, v128.load32_splat(EXP, 24));
  p = madd(p, r, v128.load32_splat(EXP, 28));
  p = madd(p, r, v128.load32_splat(EXP, 32));
  const one = v128.load32_splat(EXP, 36);
  p = madd(p, r, one);
  p = madd(p, r, one);
  return v128.andnot(i32x4.add(p, i32x4.shl(whole4(n), 23)), gone);
}

/** Of eight bfloat16 those in even places, and those in odd ones, as floats. */
@inline export function even(v: v128): v128 { return i32x4.shl(v, 16); }
@inline export function odd(v: v128): v128 { return v128.and(v, i32x4.splat(0xffff0000)); }

/** Scores become exp(score − the largest), in `bytes` of them; up to `padded` they are of no position, and become 0. Their sum. */
export function softmax(scores: usize, bytes: usize, padded: usize): f32 {
  for (let p = bytes; p < padded; p += 4) store<f32>(scores + p, -Infinity);
  let m = f32x4.splat(-Infinity);
  for (let p: usize = 0; p < padded; p += 16) m = larger(m, v128.load(scores + p));
  const largest = f32x4.splat(max4(m));
  let total = f32x4.splat(0);
  for (let p: usize = 0; p < padded; p += 16) {
    const e = exp4(f32x4.sub(v128.load(scores + p), largest));
    v128.store(scores + p, e);
    total = f32x4.add(total, e);
  }
  return sum4(total);
}
