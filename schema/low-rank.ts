// The products of a column and a row that come nearest to a matrix: its largest singular values with their vectors, by subspace
// iteration from a fixed beginning (Halko, Martinsson, Tropp 2011, algorithm 4.4).

/** Products that stand for a matrix. */
export const RANK = 8;

/** e m, for each row of e. (rows, cols), (cols, RANK) → (rows, RANK) */
function across(e: Float32Array, m: Float32Array, rows: number): Float32Array {
  const cols = e.length / rows;
  const out = new Float32Array(rows * RANK);
  for (let r = 0, i = 0; r < rows; r++) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = [0, 0, 0, 0, 0, 0, 0, 0];
    for (let at = 0; at < cols * RANK; at += RANK, i++) {
      const x = e[i]!;
      s0 += x * m[at]!;
      s1 += x * m[at + 1]!;
      s2 += x * m[at + 2]!;
      s3 += x * m[at + 3]!;
      s4 += x * m[at + 4]!;
      s5 += x * m[at + 5]!;
      s6 += x * m[at + 6]!;
      s7 += x * m[at + 7]!;
    }
    out.set([s0, s1, s2, s3, s4, s5, s6, s7], r * RANK);
  }
  return out;
}

/** eᵀ m. (rows, cols), (rows, RANK) → (cols, RANK) */
function down(e: Float32Array, m: Float32Array, rows: number): Float32Array {
  const cols = e.length / rows;
  const out = new Float32Array(cols * RANK);
  for (let r = 0, i = 0; r < rows; r++) {
    const [m0, m1, m2, m3, m4, m5, m6, m7] = m.subarray(r * RANK, (r + 1) * RANK) as unknown as number[];
    for (let at = 0; at < cols * RANK; at += RANK, i++) {
      const x = e[i]!;
      out[at] = out[at]! + x * m0!;
      out[at + 1] = out[at + 1]! + x * m1!;
      out[at + 2] = out[at + 2]! + x * m2!;
      out[at + 3] = out[at + 3]! + x * m3!;
      out[at + 4] = out[at + 4]! + x * m4!;
      out[at + 5] = out[at + 5]! + x * m5!;
      out[at + 6] = out[at + 6]! + x * m6!;
      out[at + 7] = out[at + 7]! + x * m7!;
    }
  }
  return out;
}

/** Makes the columns of a (n, RANK) matrix orthonormal, in place; one that is of no direction of its own becomes 0. Gram–Schmidt, twice. */
function orthonormal(m: Float32Array): Float32Array {
  const n = m.length / RANK;
  for (let j = 0; j < RANK; j++) {
    const length = () => {
      let squares = 0;
      for (let i = 0; i < n; i++) squares += m[i * RANK + j]! ** 2;
      return Math.sqrt(squares);
    };
    const before = length();
    for (let again = 0; again < 2; again++)
      for (let k = 0; k < j; k++) {
        let dot = 0;
        for (let i = 0; i < n; i++) dot += m[i * RANK + j]! * m[i * RANK + k]!;
        for (let i = 0; i < n; i++) m[i * RANK + j] = m[i * RANK + j]! - dot * m[i * RANK + k]!;
      }
    const left = length();
    const scale = left > 1e-5 * before ? 1 / left : 0;
    for (let i = 0; i < n; i++) m[i * RANK + j] = m[i * RANK + j]! * scale;
  }
  return m;
}

function squaresOf(of: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < of.length; i++) sum += of[i]! * of[i]!;
  return sum;
}

/**
 * @param e (rows, cols)
 * @returns columns u (rows, RANK), orthonormal, and rows v (cols, RANK) such that u vᵀ is near e; and the squares of e and of u vᵀ
 */
export function lowRank(
  e: Float32Array,
  rows: number,
): { u: Float32Array; v: Float32Array; squares: number; told: number } {
  const cols = e.length / rows;
  let state = 1;
  const begin = Float32Array.from({ length: cols * RANK }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  });
  const first = orthonormal(across(e, begin, rows));
  const second = orthonormal(down(e, first, rows));
  const u = orthonormal(across(e, second, rows));
  const v = down(e, u, rows);
  return { u, v, squares: squaresOf(e), told: squaresOf(v) };
}
