// A token's row of the embedding, which lies as every matrix of 8 bits does (schema/edge.ts): rows in groups of eight, a group in blocks of 32
// columns.
//   block: | 8 × f32 scale, of row 0 … 7 | columns 0–3: row 0 … row 7, four i8 each | columns 4–7: … | … columns 28–31 |   288 bytes

const BLOCK_BYTES: usize = 288;

/** (D) */
export function embed(table: usize, token: i32, D: i32, to: usize): void {
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
