// Products in bfloat16, everything else in float32: a rewrite of a traced graph. The weights stay float32, and so do the sums inside a
// product (oneDNN and cuBLAS accumulate in float32); only what is multiplied is rounded, to 8 bits of mantissa.
//
//   a ──┐                     a ──Cast──┐
//       MatMul ── c    ──▶              MatMul (bf16) ──Cast── c
//   b ──┘                     b ──Cast──┘
//
// What it gains is measured in LOG.md. TensorFlow's own product in bfloat16 (oneDNN) is what is fast on a processor, XLA's is not: so such a
// graph runs as it is, and XLA compiles what lies between the products, in clusters (TF_XLA_FLAGS in tf.ts).

import { boolAttribute, type Node, typeAttribute } from './graph.ts';
import { backend } from './tf.ts';

const BFLOAT16 = 14; // DT_BFLOAT16, which the binding does not name
const PRODUCTS = new Set(['MatMul', 'BatchMatMul', 'BatchMatMulV2']);

export function inBfloat16(nodes: Node[]): Node[] {
  const { TF_FLOAT } = backend.binding;
  const casts = new Map<string, string>(); // float32 reference → its bfloat16 cast
  const out: Node[] = [];
  const cast = (name: string, from: string, source: number, target: number): string => {
    const attributes = [typeAttribute('SrcT', source), typeAttribute('DstT', target), boolAttribute('Truncate', false)];
    out.push({ name, op: 'Cast', inputs: [from], attributes });
    return `${name}:0`;
  };
  for (const node of nodes) {
    const type = node.attributes.find(({ name }) => name === 'T')?.value;
    if (!PRODUCTS.has(node.op) || type !== TF_FLOAT) {
      out.push(node);
      continue;
    }
    const inputs = node.inputs.map((from) => {
      const known = casts.get(from) ?? cast(`${node.name}_of_${casts.size}`, from, TF_FLOAT!, BFLOAT16);
      casts.set(from, known);
      return known;
    });
    const name = `${node.name}_bf16`;
    const attributes = node.attributes.map((a) => (a.name === 'T' ? typeAttribute('T', BFLOAT16) : a));
    out.push({ ...node, name, inputs, attributes });
    cast(node.name, `${name}:0`, BFLOAT16, TF_FLOAT!); // under the product's name, so that whoever reads it stays as it is
  }
  return out;
}
