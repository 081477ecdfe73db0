// The most that this processor and this engine make of 128-bit dot products: eight independent sums, operands in registers or L1, and
// nothing else. The decoder's kernels are held against the faster of the two.

const OPERANDS: usize = 1024; // 1 KB a side

/** Sums of two products in 16 bits, as int4.ts has them: 16 multiplications and additions a call of the pair. */
export function pairs(rounds: i32): i32 {
  let a = i16x8.splat(0),
    b = a,
    c = a,
    d = a,
    e = a,
    f = a,
    g = a,
    h = a;
  for (let i = 0; i < rounds; i++)
    for (let at: usize = 1024; at < 1024 + OPERANDS; at += 128) {
      const x = v128.load(at);
      a = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1024)), a);
      b = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1040)), b);
      c = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1056)), c);
      d = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1072)), d);
      e = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1088)), e);
      f = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1104)), f);
      g = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1120)), g);
      h = i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, v128.load(at, 1136)), h);
    }
  const sum = i16x8.add(i16x8.add(i16x8.add(a, b), i16x8.add(c, d)), i16x8.add(i16x8.add(e, f), i16x8.add(g, h)));
  return i32x4.extract_lane(sum, 0);
}

/** Sums of four products in 32 bits. */
export function fours(rounds: i32): i32 {
  let a = i32x4.splat(0),
    b = a,
    c = a,
    d = a,
    e = a,
    f = a,
    g = a,
    h = a;
  for (let i = 0; i < rounds; i++)
    for (let at: usize = 1024; at < 1024 + OPERANDS; at += 128) {
      const x = v128.load(at);
      a = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1024), a);
      b = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1040), b);
      c = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1056), c);
      d = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1072), d);
      e = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1088), e);
      f = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1104), f);
      g = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1120), g);
      h = i32x4.relaxed_dot_i8x16_i7x16_add_s(x, v128.load(at, 1136), h);
    }
  const sum = i32x4.add(i32x4.add(i32x4.add(a, b), i32x4.add(c, d)), i32x4.add(i32x4.add(e, f), i32x4.add(g, h)));
  return i32x4.extract_lane(sum, 0);
}
