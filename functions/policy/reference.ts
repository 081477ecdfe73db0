// The decoder's oracle: a Llama with a KV cache in plain TypeScript, one row at a time, sums in double. Slow, meant to be
// read beside assembly/decoder.ts, and right. It runs on raw float32 weights, or on what unpackEdge makes of an image.
import type { ModelConfig } from '../../schema/manifest.ts';
import type { FloatTensor } from '../../schema/safetensors.ts';
import { type Decoder, type DecoderOptions, ropeTables, stretch } from './decoder.ts';

/** y = W x */
function matVec(weight: Float32Array, x: Float32Array): Float32Array {
  const cols = x.length;
  const y = new Float32Array(weight.length / cols); // (K) → (R)
  for (let r = 0; r < y.length; r++) {
    let sum = 0;
    for (let c = 0, at = r * cols; c < cols; c++, at++) sum += weight[at]! * x[c]!;
    y[r] = sum;
  }
  return y;
}

function rmsNorm(x: Float32Array, gain: Float32Array, epsilon: number): Float32Array {
  let squares = 0;
  for (const v of x) squares += v * v;
  const scale = 1 / Math.sqrt(squares / x.length + epsilon);
  return x.map((v, i) => v * scale * gain[i]!);
}

const add = (x: Float32Array, y: Float32Array) => x.map((v, i) => v + y[i]!);

function softmax(x: Float32Array): Float32Array {
  const largest = x.reduce((a, b) => Math.max(a, b));
  const e = x.map((v) => Math.exp(v - largest));
  const sum = e.reduce((a, b) => a + b);
  return e.map((v) => v / sum);
}

export function referenceDecoder(
  config: ModelConfig,
  tensors: Map<string, FloatTensor>,
  {
    context = config.max_position_embeddings,
    slots = 1,
    rows = 64,
    positions = slots * stretch(context),
  }: DecoderOptions = {},
): Decoder {
  const { num_hidden_layers: L, num_attention_heads: A, num_key_value_heads: G, head_dim: H, hidden_size: D } = config;
  const weight = (name: string) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new Error(`the model has no ${name}`);
    return tensor.data;
  };
  const embed = weight('model.embed_tokens.weight'); // (V, D)
  const head = config.tie_word_embeddings ? embed : weight('lm_head.weight'); // (V, D)
  const { cos, sin } = ropeTables(config, context); // (C, H/2)
  const cache = () => Array.from({ length: L }, () => new Float32Array(positions * G * H)); // (L) of (P, G, H)
  const keys = cache();
  const values = cache();
  let logits: Float32Array[] = [];

  /** Turns each head by its position: dimension i with i + H/2. */
  function rope(x: Float32Array, position: number): void {
    const half = H / 2;
    for (let at = 0; at < x.length; at += H)
      for (let i = 0; i < half; i++) {
        const c = cos[position * half + i]!;
        const s = sin[position * half + i]!;
        const a = x[at + i]!;
        const b = x[at + i + half]!;
        x[at + i] = a * c - b * s;
        x[at + i + half] = b * c + a * s;
      }
  }

  /** Brings each head to the same length. */
  function level(x: Float32Array, gain: Float32Array): void {
    for (let at = 0; at < x.length; at += H) x.set(rmsNorm(x.slice(at, at + H), gain, config.rms_norm_eps), at);
  }

  function attend(q: Float32Array, k: Float32Array, v: Float32Array, position: number): Float32Array {
    const out = new Float32Array(A * H);
    for (let a = 0; a < A; a++) {
      const g = Math.floor(a / (A / G));
      const scores = new Float32Array(position + 1); // (C)
      for (let p = 0; p <= position; p++) {
        let sum = 0;
        for (let i = 0; i < H; i++) sum += q[a * H + i]! * k[(p * G + g) * H + i]!;
        scores[p] = sum / Math.sqrt(H);
      }
      const share = softmax(scores);
      for (let i = 0; i < H; i++) {
        let sum = 0;
        for (let p = 0; p <= position; p++) sum += share[p]! * v[(p * G + g) * H + i]!;
        out[a * H + i] = sum;
      }
    }
    return out; // (A·H)
  }

  function row(token: number, position: number, start: number): Float32Array {
    let x = embed.slice(token * D, (token + 1) * D); // (D)
    for (let l = 0; l < L; l++) {
      const name = `model.layers.${l}`;
      const h = rmsNorm(x, weight(`${name}.input_layernorm.weight`), config.rms_norm_eps);
      const [q, k, v] = (['q', 'k', 'v'] as const).map((one) => {
        const plain = matVec(weight(`${name}.self_attn.${one}_proj.weight`), h); // (D) → (A·H), (G·H), (G·H)
        if (config.model_type === 'qwen2') return add(plain, weight(`${name}.self_attn.${one}_proj.bias`));
        if (config.model_type === 'qwen3' && one !== 'v') level(plain, weight(`${name}.self_attn.${one}_norm.weight`));
        return plain;
      }) as [Float32Array, Float32Array, Float32Array];
      rope(q, position);
      rope(k, position);
      keys[l]!.set(k, (start + position) * G * H);
      values[l]!.set(v, (start + position) * G * H);
      const own = (cache: Float32Array) => cache.subarray(start * G * H); // (P, G, H) → (P − start, G, H)
      const mixed = attend(q, own(keys[l]!), own(values[l]!), position);
      x = add(x, matVec(weight(`${name}.self_attn.o_proj.weight`), mixed)); // (A·H) → (D)

      const m = rmsNorm(x, weight(`${name}.post_attention_layernorm.weight`), config.rms_norm_eps);
      const gate = matVec(weight(`${name}.mlp.gate_proj.weight`), m); // (D) → (F)
      const up = matVec(weight(`${name}.mlp.up_proj.weight`), m); // (D) → (F)
      const inner = gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]!);
      x = add(x, matVec(weight(`${name}.mlp.down_proj.weight`), inner)); // (F) → (D)
    }
    return x;
  }

  return {
    config,
    context,
    slots,
    positions,
    rows,
    logitRows: rows,
    forward(tokens, places, starts, wanted) {
      const hidden = tokens.map((token, i) => row(token, places[i]!, starts[i]!)); // (T, D)
      logits = wanted.map((i) => matVec(head, rmsNorm(hidden[i]!, weight('model.norm.weight'), config.rms_norm_eps)));
    },
    logits: (i) => logits[i]!,
    weights(i, temperature) {
      const row = logits[i]!;
      const largest = row.reduce((a, b) => Math.max(a, b));
      return row.map((v) => Math.exp((v - largest) / temperature));
    },
    copy(from, to, count) {
      for (const layer of [...keys, ...values]) layer.copyWithin(to * G * H, from * G * H, (from + count) * G * H);
    },
  };
}
