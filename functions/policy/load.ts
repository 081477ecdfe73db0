// An image becomes a decoder: an instance of the wasm module with the weights in its memory. All memory is taken at once,
// so its size is known before the first token: weights, the cache's positions, and the rows' activations.
import {
  cacheBytes,
  type EdgeHeader,
  headerBytes,
  paddedInner,
  readEdge,
  readHeader,
  tensorsALayer,
} from '../../schema/edge.ts';
import { MalformedFile } from '../../schema/malformed.ts';
import type { ModelConfig } from '../../schema/manifest.ts';
import { type Decoder, type DecoderOptions, ropeTables, stretch } from './decoder.ts';

export interface WasmDecoder extends Decoder {
  /** Overwrites the weights in place by those of another image of the same shape. What the cache holds is void after. */
  load(image: Uint8Array): void;
  memoryBytes: number;
}

/** Where one decoder takes the place of another: the instance of all of them, whose memory grows where one needs more, and never shrinks. */
export interface Place {
  instance?: Exports;
}

type Exports = { memory: WebAssembly.Memory } & Record<
  | 'weightsAt'
  | 'offsetsAt'
  | 'tokensAt'
  | 'positionsAt'
  | 'startsAt'
  | 'wantedAt'
  | 'cosinesAt'
  | 'sinesAt'
  | 'logitsAt'
  | 'sharesAt',
  () => number
> & {
    init(...shape: number[]): void;
    forward(rows: number, wanted: number): void;
    weigh(i: number, temperature: number): void;
    copyPositions(from: number, to: number, positions: number): void;
  };

/** What the decoder takes beside weights and cache for the rows of a call, some with logits (assembly/decoder.ts, `init`) … */
export function workBytes(config: ModelConfig, bits: 4 | 8, rows: number, logitRows: number): number {
  const { hidden_size: D, num_attention_heads: A, num_key_value_heads: G, head_dim: H } = config;
  const F = paddedInner(config);
  const widest = Math.max(D, F, A * H);
  const floats = D + Math.max(D, A * H) + (A + 2 * G) * H + A * H + 2 * F; // x, normed, qkv, mixed, gateUp
  const rounded = Math.max(rows * widest * (bits === 4 ? 1 : 2), logitRows * D * 2) + (rows * widest) / 4; // with scales
  const unpacked = bits === 4 ? widest * 40 : 0;
  return rows * 4 * floats + rounded + unpacked + (logitRows + 1) * config.vocab_size * 4;
}
/** … and for each position of a context: RoPE's cosines and sines, and a score for each of four rows. */
export const positionBytes = ({ head_dim }: ModelConfig): number => 4 * (head_dim + 4);

/** A decoder of an image that is in memory. */
export function wasmDecoder(module: WebAssembly.Module, image: Uint8Array, options?: DecoderOptions): WasmDecoder {
  const read = readEdge(image);
  const { decoder, weights } = instance(module, read, {}, options);
  weights.set(read.data);
  return decoder;
}

/**
 * A decoder of an image that comes in pieces, each copied to its place as it comes: no memory is taken for the whole.
 * @param place of which whatever decoder had it is void from here on, whatever its shape, and though this one fails: an isolate has no memory
 * for two, nor for one and another that waits to be collected.
 */
export async function streamedDecoder(
  module: WebAssembly.Module,
  image: AsyncIterable<Uint8Array>,
  optionsFor: (header: EdgeHeader) => DecoderOptions,
  place: Place = {},
): Promise<WasmDecoder> {
  let head = new Uint8Array();
  let made: ReturnType<typeof instance> | undefined;
  let at = 0;
  for await (const piece of image) {
    let rest = piece;
    if (!made) {
      const longer = new Uint8Array(head.length + piece.length);
      longer.set(head);
      longer.set(piece, head.length);
      head = longer;
      if (head.length < 16 || head.length < headerBytes(head)) continue;
      const start = headerBytes(head);
      const header = readHeader(head.subarray(0, start));
      made = instance(module, header, place, optionsFor(header));
      rest = head.subarray(start);
    }
    if (at + rest.length > made.weights.length) throw new MalformedFile('edge.bin: is longer than its config says');
    made.weights.set(rest, at);
    at += rest.length;
  }
  if (!made || at < made.weights.length) throw new MalformedFile('edge.bin: ends too soon');
  return made.decoder;
}

/** An instance with room for the weights, and that room. */
function instance(
  module: WebAssembly.Module,
  header: EdgeHeader,
  place: Place,
  { context, slots = 1, rows = 64, positions }: DecoderOptions = {},
): { decoder: WasmDecoder; weights: Uint8Array } {
  const { config, bits, corrected, bytes } = header;
  const inner = paddedInner(config);
  const longest = Math.min(context ?? config.max_position_embeddings, config.max_position_embeddings);
  const held = stretch(positions ?? slots * stretch(longest));
  const logitRows = Math.min(rows, slots);
  const cache = held * cacheBytes(config, bits);
  const needed = bytes + cache + workBytes(config, bits, rows, logitRows) + longest * positionBytes(config);
  // Past 4 GiB the module's addresses would wrap around.
  if (needed > 3.5 * 2 ** 30)
    throw new RangeError(
      `${slots} slots of ${longest} positions need ${Math.ceil(needed / 2 ** 20)} MiB; a decoder has 3,584`,
    );
  const former = place.instance;
  const wasm = former ?? (new WebAssembly.Instance(module).exports as unknown as Exports);
  place.instance = wasm;
  wasm.init(
    config.num_hidden_layers,
    config.hidden_size,
    config.num_attention_heads,
    config.num_key_value_heads,
    inner,
    config.vocab_size,
    longest,
    held,
    rows,
    logitRows,
    config.rms_norm_eps,
    config.tie_word_embeddings ? 1 : 0,
    bits,
    corrected ? 1 : 0,
    tensorsALayer(config),
    bytes,
  );
  const { buffer } = wasm.memory;
  const ints = (at: number, length: number) => new Int32Array(buffer, at, length);
  if (former) new Uint8Array(buffer, wasm.weightsAt()).fill(0); // as memory is at first
  const weights = new Uint8Array(buffer, wasm.weightsAt(), bytes);
  const { cos, sin } = ropeTables(config, longest);
  new Float32Array(buffer, wasm.cosinesAt(), cos.length).set(cos);
  new Float32Array(buffer, wasm.sinesAt(), sin.length).set(sin);
  ints(wasm.offsetsAt(), header.tensors.length).set(header.tensors.map((tensor) => tensor.offset));
  const tokenRow = ints(wasm.tokensAt(), rows); // (T)
  const positionRow = ints(wasm.positionsAt(), rows); // (T)
  const startRow = ints(wasm.startsAt(), rows); // (T)
  const wantedRow = ints(wasm.wantedAt(), rows); // (T)
  const V = config.vocab_size;
  const stride = Math.ceil(V / 8) * 8;
  const logits = Array.from(
    { length: logitRows },
    (_, i) => new Float32Array(buffer, wasm.logitsAt() + i * stride * 4, V),
  ); // (wanted, V)
  const shares = new Float32Array(buffer, wasm.sharesAt(), V);

  const decoder: WasmDecoder = {
    config,
    context: longest,
    slots,
    positions: held,
    rows,
    logitRows,
    memoryBytes: buffer.byteLength,
    forward(tokens, positions, starts, wanted) {
      const count = tokens.length;
      if (count < 1 || count > rows) throw new RangeError(`${count} rows, of at most ${rows}`);
      if (wanted.length > logitRows) throw new RangeError(`logits of ${wanted.length} rows, of at most ${logitRows}`);
      for (let i = 0; i < count; i++) {
        const token = tokens[i]!;
        const position = positions[i]!;
        const start = starts[i]!;
        // The kernels trust these: a wrong one would read or write another stream's memory.
        if (!(token >= 0 && token < V)) throw new RangeError(`token ${token} of ${V}`);
        if (!(position >= 0 && position < longest)) throw new RangeError(`position ${position} of ${longest}`);
        if (!(start >= 0 && start % 8 === 0 && start + position < held))
          throw new RangeError(`position ${position} of a stretch that begins at ${start} of ${held}`);
        tokenRow[i] = token;
        positionRow[i] = position;
        startRow[i] = start;
      }
      for (const [i, row] of wanted.entries()) {
        if (!(row >= 0 && row < count)) throw new RangeError(`row ${row} of ${count}`);
        if (row <= wanted[i - 1]!) throw new RangeError(`row ${row} after row ${wanted[i - 1]}: not in rising order`);
        wantedRow[i] = row;
      }
      wasm.forward(count, wanted.length);
    },
    logits: (i) => logits[i]!,
    weights(i, temperature) {
      wasm.weigh(i, temperature);
      return shares;
    },
    copy: (from, to, count) => wasm.copyPositions(from, to, count),
    load(next) {
      const read = readEdge(next);
      const { bos_token_id, eos_token_id, pad_token_id, max_position_embeddings, ...shape } = config;
      for (const [key, value] of Object.entries(shape))
        if (String(read.config[key as keyof typeof shape]) !== String(value))
          throw new Error(`an image with another ${key} cannot take this one's place`);
      if (read.bits !== bits) throw new Error(`an image of ${read.bits} bits cannot take the place of one of ${bits}`);
      if (read.corrected !== corrected)
        throw new Error('of two images one has corrections and the other has none: neither can take the other’s place');
      weights.set(read.data);
    },
  };
  return { decoder, weights };
}
