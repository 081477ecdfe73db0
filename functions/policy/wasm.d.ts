// In the Worker a .wasm file is a module import.
declare module '*.wasm' {
  const module: WebAssembly.Module;
  export default module;
}
