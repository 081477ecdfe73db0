// The wasm decoder in Node, where modules are files: for the trainer's rollouts, the tests and the benchmarks.
import { readFileSync } from 'node:fs';
import type { DecoderOptions } from './decoder.ts';
import { type WasmDecoder, wasmDecoder } from './load.ts';

// The types are workerd's, where a module cannot be made from bytes. There every module of a script is compiled as it starts, so none can be chosen
// for its engine: the Worker's has relaxed SIMD.
type Engine = { Module: new (bytes: Uint8Array) => WebAssembly.Module; validate(bytes: Uint8Array): boolean };
const engine = WebAssembly as unknown as Engine;
const modules = new Map<string, WebAssembly.Module>();
let fastest: 'relaxed' | 'plain' | undefined;
const bytesOf = (build: 'relaxed' | 'plain') => readFileSync(`${import.meta.dirname}/decoder.${build}.wasm`);

/** Compiled once a thread. Without a build, the one for this engine: with relaxed SIMD, where it has that. */
export function decoderModule(build?: 'relaxed' | 'plain'): WebAssembly.Module {
  fastest ??= engine.validate(bytesOf('relaxed')) ? 'relaxed' : 'plain';
  const chosen = build ?? fastest;
  let module = modules.get(chosen);
  if (!module) {
    module = new engine.Module(bytesOf(chosen));
    modules.set(chosen, module);
  }
  return module;
}

export const loadDecoder = (
  image: Uint8Array,
  options?: DecoderOptions & { build?: 'relaxed' | 'plain' },
): WasmDecoder => wasmDecoder(decoderModule(options?.build), image, options);
