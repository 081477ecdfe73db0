// The wasm decoder in Node, where modules are files: for the trainer's rollouts, the tests and the benchmarks.
import { readFileSync } from 'node:fs';
import type { DecoderOptions } from './decoder.ts';
import { type WasmDecoder, wasmDecoder } from './load.ts';

// The types are workerd's, where a module cannot be made from bytes.
const Module = WebAssembly.Module as unknown as new (bytes: Uint8Array) => WebAssembly.Module;
const modules = new Map<string, WebAssembly.Module>();

/** Compiled once a thread. */
export function decoderModule(build: 'relaxed' | 'plain'): WebAssembly.Module {
  let module = modules.get(build);
  if (!module) {
    module = new Module(readFileSync(`${import.meta.dirname}/decoder.${build}.wasm`));
    modules.set(build, module);
  }
  return module;
}

export const loadDecoder = (
  image: Uint8Array,
  options?: DecoderOptions & { build?: 'relaxed' | 'plain' },
): WasmDecoder => wasmDecoder(decoderModule(options?.build ?? 'relaxed'), image, options);
