// The image of a policy: what is packed is what the model held, to within half a step, and a damaged image is refused.
import { expect, test } from 'vitest';
import { packEdge, readEdge, unpackEdge } from '../../schema/edge.ts';
import type { ModelConfig } from '../../schema/manifest.ts';
import { randomModel, randomNumbers, tinyConfig } from '../support/model.ts';

test.each<Partial<ModelConfig>>([
  {},
  { vocab_size: 301, tie_word_embeddings: false, num_key_value_heads: 2 },
  { intermediate_size: 75 },
])('each weight is within half a step of the model’s (%o)', (over) => {
  const config = tinyConfig(over);
  const tensors = randomModel(config, 2);
  const read = unpackEdge(packEdge(config, tensors));
  expect(read.config).toEqual(config);
  expect([...read.tensors.keys()].sort()).toEqual([...tensors.keys()].sort());
  for (const [name, { shape, data }] of tensors) {
    const packed = read.tensors.get(name)!;
    expect(packed.shape).toEqual(shape);
    const cols = shape.at(-1)!;
    for (let block = 0; block < data.length; block += Math.min(32, cols - (block % cols))) {
      const part = data.subarray(block, block + Math.min(32, cols - (block % cols)));
      const step = shape.length === 1 ? 0 : part.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 127;
      for (const [i, v] of part.entries())
        expect(Math.abs(packed.data[block + i]! - v)).toBeLessThanOrEqual(step * 0.5001);
    }
  }
});

test.each<Partial<ModelConfig>>([{}, { vocab_size: 301, tie_word_embeddings: false, num_key_value_heads: 2 }])(
  'in 4 bits a matrix is nearer to the model’s than by rounding between each block’s extremes, embedding and head are as in 8 (%o)',
  (over) => {
    const config = tinyConfig(over);
    const tensors = randomModel(config, 2);
    const in8 = unpackEdge(packEdge(config, tensors)).tensors;
    const image = packEdge(config, tensors, 4);
    expect(readEdge(image).bits).toBe(4);
    const { tensors: in4 } = unpackEdge(image);
    for (const [name, { shape, data }] of tensors) {
      const packed = in4.get(name)!;
      expect(packed.shape).toEqual(shape);
      if (!name.includes('_proj')) {
        expect(packed.data).toEqual(in8.get(name)!.data);
        continue;
      }
      let [ours, plain] = [0, 0];
      for (let block = 0; block < data.length; block += 32) {
        const part = data.subarray(block, block + 32);
        const [least, most] = [Math.min(...part), Math.max(...part)];
        const step = (most - least) / 15;
        for (const [i, v] of part.entries()) {
          ours += (packed.data[block + i]! - v) ** 2;
          plain += (least + step * Math.round((v - least) / step) - v) ** 2;
        }
      }
      expect(ours / plain, name).toBeLessThan(0.75);
    }
  },
);

/** What llama.cpp's Q4_0 makes of matrices: the number of a block that is largest by magnitude becomes −8 steps of −8 to 7. */
function inQ4_0(tensors: ReturnType<typeof randomModel>): ReturnType<typeof randomModel> {
  const rounded = ([name, tensor]: [string, { shape: number[]; data: Float32Array }]) => {
    if (!name.includes('_proj')) return [name, tensor] as const;
    const data = tensor.data.slice();
    for (let block = 0; block < data.length; block += 32) {
      const part = data.subarray(block, block + 32);
      const step = part.reduce((largest, v) => (Math.abs(v) > Math.abs(largest) ? v : largest), 0) / -8;
      for (const [i, v] of part.entries()) part[i] = step * (Math.min(15, Math.round(v / step + 8)) - 8);
    }
    return [name, { ...tensor, data }] as const;
  };
  return new Map([...tensors].map(rounded));
}

test('what lies on the steps of another file of 4 bits is kept, but for the rounding of scales', () => {
  const config = tinyConfig({ num_hidden_layers: 1 });
  const tensors = inQ4_0(randomModel(config, 2));
  const read = unpackEdge(packEdge(config, tensors, 4)).tensors;
  for (const [name, { data }] of tensors) {
    if (!name.includes('_proj')) continue;
    for (let block = 0; block < data.length; block += 32) {
      const step = data.subarray(block, block + 32).reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 8;
      for (let i = block; i < block + 32; i++)
        expect(Math.abs(read.get(name)!.data[i]! - data[i]!)).toBeLessThan(0.06 * step);
    }
  }
});

test.each([
  ['its own', (config: ModelConfig) => unpackEdge(packEdge(config, randomModel(config, 2), 4)).tensors],
  ['Q4_0’s', (config: ModelConfig) => inQ4_0(randomModel(config, 2))],
])(
  'in 4 bits a change of low rank that is small beside steps, %s, is kept, and noise of that size is not',
  (_, from) => {
    const config = tinyConfig({ hidden_size: 192, intermediate_size: 512, num_hidden_layers: 1 });
    // as a policy lies on steps that was imported from such a file
    const steps = from(config);
    const random = randomNumbers(4);
    const numbers = (length: number, scale: number) => Float32Array.from({ length }, () => scale * (random() - 0.5));
    const kept = (change: (rows: number, cols: number) => (r: number, c: number) => number) => {
      const changed = new Map(steps);
      const wanted = new Map<string, Float32Array>();
      for (const [name, { shape, data }] of steps) {
        if (!name.includes('_proj')) continue;
        const [rows, cols] = shape as [number, number];
        const of = change(rows, cols);
        const delta = data.map((_, i) => of(Math.floor(i / cols), i % cols));
        wanted.set(name, delta);
        changed.set(name, { shape, data: data.map((x, i) => x + delta[i]!) });
      }
      const image = packEdge(config, changed, 4);
      const { tensors } = unpackEdge(image);
      const shares = [...wanted].map(([name, delta]) => {
        let [along, squares] = [0, 0];
        for (const [i, want] of delta.entries()) {
          along += want * (tensors.get(name)!.data[i]! - steps.get(name)!.data[i]!);
          squares += want * want;
        }
        return along / squares;
      });
      return { corrected: readEdge(image).corrected, least: Math.min(...shares), most: Math.max(...shares) };
    };
    const adapter = kept((rows, cols) => {
      const [u, v] = [numbers(rows * 4, 0.05), numbers(cols * 4, 0.1)];
      return (r, c) => [0, 1, 2, 3].reduce((sum, j) => sum + u[4 * r + j]! * v[4 * c + j]!, 0);
    });
    expect(adapter.corrected).toBe(true);
    expect(adapter.least).toBeGreaterThan(0.94);
    expect(adapter.most).toBeLessThan(1.06);
    const noise = kept(() => () => 0.002 * (random() - 0.5));
    expect(noise.most).toBeLessThan(0.6);
  },
);

test.each([8, 4] as const)('a weight that is no number is refused with its matrix, in %i bits', (bits) => {
  const config = tinyConfig();
  for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY])
    for (const name of ['mlp.down_proj', 'input_layernorm']) {
      const tensors = randomModel(config, 2);
      tensors.get(`model.layers.1.${name}.weight`)!.data[7] = wrong;
      expect(() => packEdge(config, tensors, bits)).toThrow(`model.layers.1.${name}.weight holds a number that is not`);
    }
});

test('heads that cannot share the keys evenly are refused', () => {
  const config = tinyConfig({ num_attention_heads: 3, num_key_value_heads: 2 });
  expect(() => packEdge(config, randomModel(config, 2))).toThrow(/^3 heads do not share 2 key-value heads evenly$/);
});

test('a tied model may carry its output matrix once more', () => {
  const config = tinyConfig();
  const tensors = randomModel(config, 2);
  const twice = new Map([...tensors, ['lm_head.weight', tensors.get('model.embed_tokens.weight')!]]);
  expect(packEdge(config, twice)).toEqual(packEdge(config, tensors));
});

test('packing what was unpacked gives the same bytes, and a block of zeros stays zeros', () => {
  const config = tinyConfig();
  const tensors = randomModel(config, 2);
  tensors.get('model.layers.0.mlp.up_proj.weight')!.data.fill(0, 64, 128);
  const image = packEdge(config, tensors);
  const { tensors: unpacked } = unpackEdge(image);
  expect(unpacked.get('model.layers.0.mlp.up_proj.weight')!.data.subarray(64, 128)).toEqual(new Float32Array(64));
  expect(Buffer.compare(packEdge(config, unpacked), image)).toBe(0);
});

test('a damaged image is refused', () => {
  const config = tinyConfig();
  const image = packEdge(config, randomModel(config, 1));
  const damaged = (change: (file: Uint8Array, header: string) => Uint8Array | undefined) => {
    const file = image.slice();
    const end = 16 + new DataView(file.buffer).getUint32(12, true);
    const out = change(file, new TextDecoder().decode(file.subarray(16, end))) ?? file;
    return () => readEdge(out);
  };
  const rewrite = (from: string, to: string) =>
    damaged((file, header) => {
      const text = header.replace(from, to);
      expect(text).not.toBe(header);
      file.set(new TextEncoder().encode(text.trimEnd().padEnd(header.length).slice(0, header.length)), 16);
      return undefined;
    });
  expect(damaged(() => new Uint8Array(5))).toThrow('no image');
  expect(damaged((file) => void file.fill(0, 0, 1))).toThrow('no image');
  expect(damaged((file) => void file.fill(9, 8, 9))).toThrow('version 9');
  expect(damaged((file) => void file.fill(255, 12, 16))).toThrow('ends inside its header');
  expect(damaged((file) => void file.fill(0x21, 16, 17))).toThrow('not JSON');
  expect(damaged((file) => file.subarray(0, file.length - 1))).toThrow('its config needs');
  expect(damaged((file) => new Uint8Array([...file, 0]))).toThrow('its config needs');
  expect(rewrite('"vocab_size":300', '"vocab_size":308')).toThrow('other places');
  expect(rewrite('"offset":0', '"offset":9')).toThrow('other places');
  expect(rewrite('"head_dim":64', '"head_dim":-4')).toThrow('head_dim');
  expect(rewrite('"rms_norm_eps"', '"rms_norm_epz"')).toThrow('rms_norm_eps');
});
