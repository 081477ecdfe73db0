// compile(name, fn): plain tfjs code at XLA's speed.
//
// The first call with given shapes runs fn (twice, to see that it does the same) and writes down every op that reaches the binding
// (trace.ts). What was written is a TensorFlow graph (graph.ts); it is registered as a function, and from then on each call of the
// compiled function is one call into TensorFlow, which XLA has turned into machine code.
//
//   plain code ──runs──▶ list of ops ──GraphDef──▶ TensorFlow function ──XLA──▶ machine code
//
// So fn must be pure: tensors in, tensors out. JavaScript numbers it reads are frozen into the graph; anything that changes
// from call to call (step, learning rate, seeds) must come in as a tensor. What would be frozen by mistake is an error that names the line.
// What XLA itself does not look at: an index out of range takes the last row, or adds to none, a whole number divided by an argument of 0 is −1, and
// one to a negative power some number, where op by op each is an error; a NaN or infinity that becomes a whole number is another one; and of a maximum
// that has a NaN beside it, the number, while topk puts NaN first.
// Without the patched binding (PLUMB_ENGINE=stock) fn simply runs.
//
// State, such as weights and moments, is the first argument of a function compiled with `state`, and comes back changed as `state`.
// While a call runs it lies in resource variables that nobody else holds, and XLA writes the new values over the old: there is no second copy.

import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { inBfloat16 } from './bf16.ts';
import { boolAttribute, graphDef, nodeOf, reachable, shapeAttribute, stringAttribute, typeAttribute } from './graph.ts';
import { backend, type OutputTensor, type Tensor, tf } from './tf.ts';
import { callersLine, isRecording, record } from './trace.ts';

/** Tensors, nested in arrays and plain objects. */
export type Tree = Tensor | Tree[] | { [key: string]: Tree };

/** What products are computed in; the rest is float32 in any case. */
export type Precision = 'float32' | 'bfloat16';

/** What was compiled in this process, with the seconds that tracing and compiling took. */
export const compilations: { name: string; precision: Precision; seconds: number }[] = [];

interface Variable {
  id: number;
  dtype: number;
}
interface Traced {
  /** Of TensorFlow's function. */
  name: string;
  variables: Variable[];
  captures: number[];
  outputs: number;
  rebuild(outputs: Tensor[], state: Tensor[]): Tree;
  forget(): void;
}

/** Traces in the order of their last use; beyond so many, the one that was not used for longest is freed. */
const MOST_TRACES = 64;
const used = new Set<Traced>();
let serial = 0;

/**
 * Returns a function with fn's arguments and result that runs as one compiled call per combination of shapes; without `xla` op by op, which
 * is for what takes longer to compile than it ever runs.
 */
export function compile<Arguments extends Tree[], Result extends Tree>(
  name: string,
  fn: (...args: Arguments) => Result,
  { state = false, precision = 'float32' as Precision, xla = true } = {},
): (...args: Arguments) => Result {
  const traces = new Map<string, Traced>();
  return (...args) => {
    if (isRecording()) return fn(...args); // within another compiled function it is a part of that one
    if (!xla || !backend.binding.addGraphFunction) {
      const result = tf.tidy(() => fn(...args) as never) as Result;
      const stays = new Set(flatten(result));
      if (state) tf.dispose(flatten(args[0]!).filter((tensor) => !stays.has(tensor)));
      return result;
    }
    if (tf.engine().state.gradientDepth > 0)
      throw new Error(
        `compile(${name}): ${callersLine()} calls it within a gradient, which sees nothing of what it does: compile what takes the gradient`,
      );
    const inputs = tensorsIn(name, 'gives it', args);
    const kept = state ? flatten(args[0]!).length : 0; // so many of the inputs are state
    const key = args.map(formOf).join();
    const own = new Set(inputs.slice(0, kept));
    if (own.size < kept || inputs.slice(kept).some((tensor) => own.has(tensor)))
      throw new Error(`compile(${name}): ${callersLine()} gives a tensor of the state a second time`);
    const known = traces.get(key);
    const started = performance.now();
    const traced = known ?? tidied(() => trace(name, fn, args, inputs, kept, precision));
    used.delete(traced);
    used.add(traced);

    const ids = backend.getInputTensorIds(inputs);
    if (kept > 0) {
      for (const [i, variable] of traced.variables.entries()) put(variable, ids[i]!);
      tf.dispose([...own]); // now the variables alone hold them
    }
    let results: OutputTensor[];
    try {
      results = backend.binding.executeOp(
        traced.name,
        precision === 'float32' ? [boolAttribute('_XlaMustCompile', true)] : [],
        [...traced.variables.map(({ id }) => id), ...ids.slice(kept), ...traced.captures],
        traced.outputs,
      );
    } catch (error) {
      if (!known) {
        for (const { id } of traced.variables.map(take)) backend.binding.deleteTensor(id);
        free(traced);
      }
      (error as Error).message = `compile(${name}): ${callersLine()} ${(error as Error).message}`;
      throw error;
    }
    const tensors = (outputs: OutputTensor[]) => outputs.map((output) => backend.createOutputTensor(output));
    if (!known) {
      traces.set(key, traced);
      traced.forget = () => traces.delete(key);
      compilations.push({ name, precision, seconds: (performance.now() - started) / 1000 });
      if (used.size > MOST_TRACES) free(used.values().next().value!);
    }
    return traced.rebuild(tensors(results), tensors(traced.variables.map(take))) as Result;
  };
}

function trace<Arguments extends Tree[]>(
  name: string,
  fn: (...args: Arguments) => Tree,
  args: Arguments,
  inputs: Tensor[],
  kept: number,
  precision: Precision,
): Traced {
  let form: string | undefined; // of what it returns
  const { nodes, captures, result } = record(
    name,
    inputs.map(({ dtype, shape }, i) => ({ dtype, shape, variable: i < kept })),
    (given, { add, inputs: handles, referenceOf, typeOf, refuse, changed: differs }) => {
      const own = unflatten(args, given) as Arguments;
      const returned = fn(...own);
      if (own.map(formOf).join() !== args.map(formOf).join() || flatten(own).some((tensor, i) => tensor !== given[i]))
        refuse('changes its arguments: return what is new');
      tensorsIn(name, 'has it return', returned);
      form ??= formOf(returned);
      if (form !== formOf(returned)) differs();
      const { state: changed = [], ...rest } = (kept > 0 ? returned : {}) as { [key: string]: Tree };
      const others = kept > 0 ? rest : returned;
      const state = kept > 0 ? ordered(args[0]!, changed) : changed;
      if (kept > 0 && formOf(state) !== formOf(args[0]!))
        refuse('is given a state of other tensors than it was: the changed state must be returned as `state`');
      const after = flatten(state);
      // An Identity each: a function may not hand an input through, nor the same value twice.
      const outputs = flatten(others).map((tensor) => {
        const from = referenceOf(tensor);
        return `${add('Identity', [from], [typeAttribute('T', typeOf(from))])}:0`;
      });
      // Each variable takes its new value once the old one was read.
      const writes = after.map((tensor, i) =>
        add(
          'AssignVariableOp',
          [handles[i]!, referenceOf(tensor), `^${nodeOf(referenceOf(given[i]!))}`],
          [typeAttribute('dtype', typeOf(referenceOf(tensor))), boolAttribute('validate_shape', false)],
        ),
      );
      return { outputs, writes, rebuild: rebuilder(others, state, kept > 0), handles };
    },
  );
  const { outputs, writes, rebuild, handles } = result;
  const traced: Traced = {
    name: `plumb_${name.replace(/\W/g, '_')}_${serial++}`,
    variables: inputs.slice(0, kept).map(({ dtype, shape }) => variableFor(backend.getDTypeInteger(dtype), shape)),
    captures: captures.map(({ id }) => id),
    outputs: outputs.length,
    rebuild,
    forget: () => {},
  };
  const from = [...handles, ...captures.map(({ reference }) => reference)];
  const needed = reachable(nodes, [...outputs, ...from, ...writes]);
  backend.binding.addGraphFunction!(
    traced.name,
    graphDef(precision === 'bfloat16' ? inBfloat16(needed) : needed),
    from.join(),
    outputs.join(),
  );
  return traced;
}

/** The tensors of what somebody else made, if it is a tree of tensors that are still there. */
function tensorsIn(name: string, verb: string, tree: Tree): Tensor[] {
  const wrong = (what: string): never => {
    throw new Error(`compile(${name}): ${callersLine()} ${verb} ${what}`);
  };
  const refuseOthers = (branch: unknown): void => {
    if (branch instanceof tf.Tensor) {
      if (branch.isDisposed) wrong('a tensor that is disposed of');
    } else if (!Array.isArray(branch) && Object.getPrototypeOf(branch ?? 0) !== Object.prototype)
      wrong(
        `${branch instanceof Object ? `a ${branch.constructor.name}` : branch} where a tensor, or an array or plain object of tensors, must be`,
      );
    else if (Array.isArray(branch) && Object.keys(branch).length !== branch.length)
      wrong('an array with gaps, or with keys of its own');
    else Object.values(branch as object).forEach(refuseOthers);
  };
  refuseOthers(tree);
  return flatten(tree);
}

/** Apart from where a trace is made, so that it does not keep all of that in memory. */
function rebuilder(others: Tree, state: Tree, stateful: boolean): Traced['rebuild'] {
  return (own, changed) => {
    const tree = unflatten(others, own);
    return stateful ? { ...(tree as { [key: string]: Tree }), state: unflatten(state, changed) } : tree;
  };
}

/** Where tracing has made the heap grow by more, what it left is handed back at once (LOG.md). */
const LITTER = 32e6;
let collect: ((how: { type: 'major'; execution: 'sync'; flavor: 'last-resort' }) => void) | undefined;

/** V8 would keep a large trace's litter for minutes: while TensorFlow trains, JavaScript makes little that would have it collected. */
function tidied(made: () => Traced): Traced {
  const before = getHeapStatistics().total_heap_size;
  const traced = made();
  if (getHeapStatistics().total_heap_size < before + LITTER) return traced;
  if (!collect) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as NonNullable<typeof collect>;
  }
  collect({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  return traced;
}

function free(traced: Traced): void {
  used.delete(traced);
  traced.forget();
  backend.binding.removeGraphFunction!(traced.name);
  for (const id of [...traced.captures, ...traced.variables.map((variable) => variable.id)])
    backend.binding.deleteTensor(id);
}

/** A resource variable for a tensor of the state to lie in. */
function variableFor(dtype: number, shape: number[]): Variable {
  const attributes = [
    typeAttribute('dtype', dtype),
    shapeAttribute('shape', shape),
    stringAttribute('shared_name', `plumb_state_${serial++}`),
    stringAttribute('container', ''),
  ];
  return { id: backend.binding.executeOp('VarHandleOp', attributes, [], 1)[0]!.id, dtype };
}

function put({ id, dtype }: Variable, tensor: number): void {
  const attributes = [typeAttribute('dtype', dtype), boolAttribute('validate_shape', false)];
  backend.binding.executeOp('AssignVariableOp', attributes, [id, tensor], 0);
}

/** What the variable holds, which it lets go. */
function take({ id, dtype }: Variable): OutputTensor {
  const [held] = backend.binding.executeOp('ReadVariableOp', [typeAttribute('dtype', dtype)], [id], 1);
  backend.binding.executeOp('DestroyResourceOp', [boolAttribute('ignore_lookup_error', false)], [id], 0);
  return held!;
}

/** What tells a tree from others for which other code is compiled: its keys in their order, and of its tensors type and shape. */
function formOf(tree: Tree): string {
  if (tree instanceof tf.Tensor) return `${tree.dtype}[${tree.shape}]`;
  if (Array.isArray(tree)) return `[${tree.map(formOf)}]`;
  return `{${Object.entries(tree).map(([key, branch]) => `${JSON.stringify(key)}:${formOf(branch)}`)}}`;
}

/** The same tree with its keys in the order of another's, where it has them. */
function ordered(like: Tree, tree: Tree): Tree {
  if (tree instanceof tf.Tensor || like instanceof tf.Tensor) return tree;
  if (Array.isArray(tree)) return Array.isArray(like) ? tree.map((branch, i) => ordered(like[i] ?? [], branch)) : tree;
  const keys = new Set([...Object.keys(like).filter((key) => key in tree), ...Object.keys(tree)]);
  return Object.fromEntries([...keys].map((key) => [key, ordered((like as typeof tree)[key] ?? [], tree[key]!)]));
}

/** The tensors of a tree, in the order of its keys. */
export function flatten(tree: Tree): Tensor[] {
  if (tree instanceof tf.Tensor) return [tree];
  return Object.values(tree).flatMap((branch) => flatten(branch as Tree));
}

/** A tree of the given one's form with other tensors in it. */
export function unflatten(form: Tree, tensors: Tensor[]): Tree {
  let next = 0;
  const build = (tree: Tree): Tree => {
    if (tree instanceof tf.Tensor) return tensors[next++]!;
    if (Array.isArray(tree)) return tree.map(build);
    return Object.fromEntries(Object.entries(tree).map(([key, value]) => [key, build(value as Tree)]));
  };
  return build(form);
}

/** A tree with another tensor in each one's place. */
export const mapTree = <T extends Tree>(tree: T, change: (tensor: Tensor) => Tensor): T =>
  unflatten(tree, flatten(tree).map(change)) as T;

/** Frees every tensor of the given trees. */
export const dispose = (...trees: Tree[]): void => tf.dispose(trees.flatMap(flatten));
