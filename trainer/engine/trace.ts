// One run of a function, written down as a graph. tfjs code calls ops through the binding; here a recorder stands in the binding's
// place. What depends on the function's inputs is not kept: each such op runs on zeros, for the shape of its result alone, and the
// result is let go at once, so that tracing a step takes hardly any memory.
//
// What a graph cannot hold is refused, with the line of the code that did it: the value of a traced tensor, randomness of
// the host, a variable. Then the function runs once more, without computing, two weeks later by the clock: what goes by that, or by what the
// function keeps from one call to the next, does something else there. What will only do so at a later call no second run can see.

import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { isDeepStrictEqual } from 'node:util';
import { CONSTANT_BYTES, constantProto, type Node, shapeAttribute, TENSOR_ATTRIBUTE, typeAttribute } from './graph.ts';
import { type Binding, backend, type OpAttribute, type OutputTensor, type Tensor, tf } from './tf.ts';

/** What goes into a traced function. */
interface Input {
  dtype: string;
  shape: number[];
  /** It comes in a resource variable, from which it is read. */
  variable: boolean;
}

/** The graph as it grows, to those who add to it while the function's tensors live. */
interface Graph {
  add(op: string, from: string[], attributes: OpAttribute[]): string;
  /** "node:output" of a tensor. */
  referenceOf(tensor: Tensor): string;
  typeOf(reference: string): number;
  /** Says that the second run is not as the first was. */
  changed(): never;
  /** "node:output" of each input: of a variable, its handle. */
  inputs: string[];
  refuse(what: string): never;
}

interface Recording<Result> {
  nodes: Node[];
  /** Large constants: inputs, too, that are the same at every call. */
  captures: { id: number; reference: string }[];
  /** What each op of `nodes` gives, where it was computed. */
  made: { dtype: number; shape: number[] }[][];
  result: Result;
}

const RESOURCE = 20; // DT_RESOURCE, which the binding does not name

/** A stack, which is read only if it is asked for: that takes long. */
function here(): Error {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 50;
  const error = new Error();
  Error.stackTraceLimit = stackTraceLimit;
  return error;
}

/** Where the code is that is to blame: the innermost line outside of this folder and of packages. */
export function callersLine({ stack = '' } = here()): string {
  const foreign = (line: string) =>
    /node_modules|node:|engine-(cpu|gpu)-/.test(line) || line.includes(import.meta.dirname);
  const frame = stack.split('\n').find((line) => /:\d+:\d+\)?$/.test(line) && !foreign(line));
  return /([^/\s(]+:\d+):\d+\)?$/.exec(frame ?? '')?.[1] ?? 'an unknown line';
}

/** Ops whose result's shape depends on values. */
const OF_SHAPES_UNKNOWN = /^(Unique|Where|NonMaxSuppression|SparseFillEmptyRows)/;
/** Ops that refuse a whole number 0 below the line, which stands for what is not there yet. */
const DIVIDING = /(Div|Mod)$/;
/** Ops of tfjs that draw numbers on the host, or in an op with a seed that would be frozen. */
const RANDOM = /^(random|truncatedNormal|multinomial|dropout|rand(__op)?$)/;

/** What of the host draws. */
const DRAWN: [object, string[]][] = [
  [Math, ['random']],
  [crypto.webcrypto, ['getRandomValues', 'randomUUID']],
  [
    crypto,
    [
      ...['randomBytes', 'pseudoRandomBytes', 'prng', 'rng', 'randomFill', 'randomFillSync', 'randomInt', 'randomUUID'],
      ...[
        'generateKey',
        'generateKeySync',
        'generateKeyPair',
        'generateKeyPairSync',
        'generatePrime',
        'generatePrimeSync',
      ],
    ],
  ],
];
/** Says no while a function is traced. */
let draws: (() => never) | null = null;
// For good, so that who takes it now and calls it later is heard too.
for (const [of, names] of DRAWN)
  for (const own of names) {
    const real = Reflect.get(of, own) as ((...args: unknown[]) => unknown) | undefined;
    const drawn = function (this: unknown, ...args: unknown[]) {
      return draws ? draws() : Reflect.apply(real!, this, args);
    };
    if (real) Object.defineProperty(of, own, { value: drawn, writable: true, configurable: true });
  }
/**
 * What the clock is ahead by while a function runs a second time, more than float32 tells from 1970: 400 days, 9 h, 13 min and 37.109 s, so that
 * year, month, day, weekday, hour, minute and second are others.
 */
const AHEAD = 34_593_217_109; // ms
let ahead = 0;
/** In Date's place for as long. */
const LaterDate = new Proxy(Date, {
  construct: (of, args, made) => Reflect.construct(of, args.length > 0 ? args : [of.now()], made),
  apply: (of) => new of(of.now()).toString(),
});
{
  const { now } = Date;
  const since = performance.now.bind(performance);
  const { hrtime, uptime } = process;
  const bigint = hrtime.bigint.bind(hrtime);
  Date.now = () => now() + ahead;
  Object.defineProperty(performance, 'now', { value: () => since() + ahead, writable: true, configurable: true });
  const nanoseconds = () => bigint() + BigInt(ahead) * 1_000_000n;
  process.hrtime = Object.assign(
    ([seconds, rest] = [0, 0] as [number, number]): [number, number] => {
      const passed = nanoseconds() - BigInt(seconds) * 1_000_000_000n - BigInt(rest);
      return [Number(passed / 1_000_000_000n), Number(passed % 1_000_000_000n)];
    },
    { bigint: nanoseconds },
  );
  process.uptime = () => uptime() + ahead / 1000;
}
syncBuiltinESMExports(); // for those who import any of them by name

/** Below 0 and never twice, so that what one trace has left is nothing to another. */
let lastId = 0;
let recording = false;
export const isRecording = (): boolean => recording;

type Recorded<Result> = (inputs: Tensor[], graph: Graph) => Result;

export function record<Result>(name: string, inputs: Input[], fn: Recorded<Result>): Recording<Result> {
  const recorded = recordOnce(name, inputs, fn);
  const letGo = ({ captures }: Recording<Result>) => {
    for (const { id } of captures) backend.binding.deleteTensor(id);
  };
  try {
    letGo(recordOnce(name, inputs, fn, recorded));
  } catch (error) {
    letGo(recorded);
    throw error;
  }
  return recorded;
}

/** @param first what it did before, where it is to do the same again */
function recordOnce<Result>(
  name: string,
  inputs: Input[],
  fn: Recorded<Result>,
  first?: Recording<Result>,
): Recording<Result> {
  const real = backend.binding;
  const engine = tf.engine() as unknown as {
    startScope(name?: string): void;
    addTapeNode(kernel: string, ...rest: unknown[]): void;
    state: { gradientDepth: number };
    keep(tensor: Tensor): Tensor;
    makeVariable(): Tensor;
    registeredVariables: Record<string, Tensor>;
  };
  let refused: Error | undefined; // though the function catches it
  const refuse = (what: string, line = callersLine()): never => {
    refused ??= new Error(`compile(${name}): ${line} ${what}`);
    throw refused;
  };

  const nodes: Node[] = [];
  const captures: Recording<Result>['captures'] = [];
  const made: Recording<Result>['made'] = [];
  const references = new Map<number, string>(); // tensor id → "node:output"
  const types = new Map<string, number>();
  /** What depends on an input: its id is below 0 and stands for no tensor of TensorFlow's. */
  const traced = new Map<number, { dtype: number; shape: number[] }>();

  /** Large constants of one value, which backward passes make a lot of: each is filled anew for the op that reads it. */
  const uniform = new Map<number, { dtype: number; shape: number[]; one: ArrayBufferView }>();

  const changed = (line?: string) =>
    refuse(
      'does something else each time that it is called, by the clock or by what is kept between calls: give that as an argument',
      line,
    );
  const variables = new Map(
    Object.entries(engine.registeredVariables).map(([own, tensor]) => [backend.getInputTensorIds([tensor])[0]!, own]),
  );
  const add = (op: string, from: string[], attributes: OpAttribute[]): string => {
    const node = { name: `n${nodes.length}`, op, inputs: from, attributes };
    if (first && !isDeepStrictEqual(node, first.nodes[nodes.length])) changed();
    nodes.push(node);
    return node.name;
  };
  const named = (id: number, reference: string, dtype: number): string => {
    references.set(id, reference);
    types.set(reference, dtype);
    return reference;
  };
  const placeholder = (dtype: number, shape: number[]): string =>
    `${add('Placeholder', [], [typeAttribute('dtype', dtype), shapeAttribute('shape', shape)])}:0`;
  const stranger = (dtype: number, shape: number[]): number => {
    const id = --lastId;
    traced.set(id, { dtype, shape });
    return id;
  };
  // A large constant goes in as an input; the copied handle keeps it alive.
  const capture = (id: number): string => {
    const [kept] = real.executeOp('Identity', [], [id], 1);
    const reference = named(id, placeholder(kept!.dtype, kept!.shape), kept!.dtype);
    const before = first?.captures[captures.length]?.id;
    captures.push({ id: kept!.id, reference });
    if (before !== undefined && !isDeepStrictEqual(real.tensorDataSync(before), real.tensorDataSync(kept!.id)))
      changed();
    return reference;
  };
  const outside = (id?: number): never => {
    const what =
      id !== undefined && variables.has(id)
        ? `the variable ${variables.get(id)}`
        : 'a tensor that was made outside of it';
    return refuse(`reads ${what}, which would be frozen as it is now: give it as an argument`);
  };
  const gone = () => refuse('reads a tensor that is gone: disposed of, or left by an earlier call');
  const reference = (id: number): string => references.get(id) ?? outside(id);

  const zeroOf = (dtype: number): number => {
    const zero = real.createTensor([], real.TF_INT32!, new Int32Array(1));
    const types = [typeAttribute('SrcT', real.TF_INT32!), typeAttribute('DstT', dtype)];
    const [cast] = real.executeOp('Cast', types, [zero], 1);
    real.deleteTensor(zero);
    return cast!.id;
  };

  /** Numbers that are all the same (zeros, where it is not said which) in the place of a tensor, for one op. */
  const filled = ({ dtype, shape, one }: { dtype: number; shape: number[]; one?: ArrayBufferView }): number => {
    const dims = real.createTensor([shape.length], real.TF_INT32!, Int32Array.from(shape));
    const scalar = one ? real.createTensor([], dtype, one) : zeroOf(dtype);
    const [all] = real.executeOp(
      'Fill',
      [typeAttribute('T', dtype), typeAttribute('index_type', real.TF_INT32!)],
      [dims, scalar],
      1,
    );
    for (const id of [dims, scalar]) real.deleteTensor(id);
    return all!.id;
  };

  const recorder = Object.create(real, {
    createTensor: {
      value: (shape: number[], dtype: number, values: ArrayBufferView | number) => {
        const constant = ArrayBuffer.isView(values) ? constantProto(dtype, shape, values) : null;
        const large = constant && (values as ArrayBufferView).byteLength > CONSTANT_BYTES;
        const id = large ? --lastId : real.createTensor(shape, dtype, values);
        if (large) uniform.set(id, { dtype, shape, one: (values as Float32Array | Int32Array).slice(0, 1) });
        if (constant) {
          const value = { name: 'value', type: TENSOR_ATTRIBUTE, value: constant };
          named(id, `${add('Const', [], [typeAttribute('dtype', dtype), value])}:0`, dtype);
        } else if (ArrayBuffer.isView(values)) capture(id);
        return id;
      },
    },
    executeOp: {
      value: (op: string, attributes: OpAttribute[], ids: number[], count: number) => {
        const depends = ids.some((id) => traced.has(id));
        if (depends && OF_SHAPES_UNKNOWN.test(op))
          refuse(`calls ${op}, whose result's shape depends on values: compiled code has fixed shapes`);
        const node = add(op, ids.map(reference), attributes);
        const given = (id: number, dtype: number, shape: number[], index: number): OutputTensor => {
          named(id, `${node}:${index}`, dtype);
          return { id, dtype, shape };
        };
        const known = depends ? first?.made[nodes.length - 1] : undefined;
        if (known) return known.map(({ dtype, shape }, index) => given(stranger(dtype, shape), dtype, shape, index));
        const stand = ids.map((id, i) => {
          const absent = traced.get(id) ?? uniform.get(id);
          if (!absent) return id;
          // an argument's stand-in is of zeros, which whole numbers are not divided by; a constant's is its value
          const divides = i === 1 && traced.has(id) && absent.dtype === real.TF_INT32 && DIVIDING.test(op);
          return filled(divides ? { ...absent, one: Int32Array.of(1) } : absent);
        });
        const results = real.executeOp(op, attributes, stand, count);
        stand.forEach((id, i) => {
          if (id !== ids[i]) real.deleteTensor(id);
        });
        made[nodes.length - 1] = results;
        return results.map(({ id, dtype, shape }, index) => {
          if (depends) real.deleteTensor(id);
          return given(depends ? stranger(dtype, shape) : id, dtype, shape, index);
        });
      },
    },
    tensorDataSync: {
      value: (id: number) => {
        if (traced.has(id))
          refuse('reads the value of a tensor that depends on the inputs: it would be frozen into the compiled code');
        const same = uniform.get(id);
        if (!same) return real.tensorDataSync(id);
        const stand = filled(same);
        const values = real.tensorDataSync(stand);
        real.deleteTensor(stand);
        return values;
      },
    },
  }) as Binding;

  const returned = new Set<Tensor>();
  const handles: string[] = [];
  const given = inputs.map(({ dtype, shape, variable }) => {
    const type = backend.getDTypeInteger(dtype);
    const handle = variable ? placeholder(RESOURCE, []) : placeholder(type, shape);
    handles.push(handle);
    const id = stranger(type, shape);
    named(id, variable ? `${add('ReadVariableOp', [handle], [typeAttribute('dtype', type)])}:0` : handle, type);
    return backend.createOutputTensor({ id, dtype: type, shape });
  });
  const graph: Graph = {
    add,
    inputs: handles,
    referenceOf: (tensor) => {
      returned.add(tensor);
      return reference(backend.getInputTensorIds([tensor])[0]!);
    },
    typeOf: (of) => types.get(of)!,
    refuse: (what) => refuse(what),
    changed: () => changed(),
  };

  // What cannot be seen at the binding is caught in tfjs itself, as long as the function runs.
  const { assign } = tf.Variable.prototype;
  const withoutGradient = new Map<string, string>(); // kernel → line
  draws = () => refuse('draws a random number: it would be the same at every call; give it as an argument');
  tf.Variable.prototype.assign = function (this: { name: string }) {
    return refuse(`changes the variable ${this.name}: give state as the first argument and return it as \`state\``);
  };
  // Values wait in tfjs until an op reads them, so that a tensor made outside may seem to be a constant made here.
  const madeHere = new WeakSet<object>();
  backend.move = (dataId, ...rest) => {
    madeHere.add(dataId);
    Object.getPrototypeOf(backend).move.call(backend, dataId, ...rest);
  };
  backend.getInputTensorIds = (tensors) => {
    for (const { dataId } of tensors) {
      if (dataId && !backend.tensorMap.has(dataId)) gone();
      if (dataId && backend.tensorMap.get(dataId)?.values && !madeHere.has(dataId)) outside();
    }
    return Object.getPrototypeOf(backend).getInputTensorIds.call(backend, tensors);
  };
  backend.readSync = (dataId) => {
    const { id, values } = backend.tensorMap.get(dataId);
    if (values ? !madeHere.has(dataId) : !references.has(id)) outside(values ? undefined : id);
    return Object.getPrototypeOf(backend).readSync.call(backend, dataId);
  };
  // What is kept would be there at the next call, but that call does not run fn. Backward passes keep what they read, and let it go; a
  // loss may keep what else it computes, for it to be a result.
  const kept = new Map<Tensor, { where: Error; inGradient: boolean }>();
  engine.keep = (tensor) => {
    kept.set(tensor, { where: here(), inGradient: engine.state.gradientDepth > 0 });
    return Object.getPrototypeOf(engine).keep.call(engine, tensor);
  };
  engine.makeVariable = () => refuse('makes a variable, at its first call alone: give state as the first argument');
  engine.startScope = (scope?: string) => {
    if (scope && RANDOM.test(scope))
      refuse(
        `calls ${scope.replace('__op', '')}: it would draw the same at every call; give what it draws as an argument`,
      );
    Object.getPrototypeOf(engine).startScope.call(engine, scope);
  };
  engine.addTapeNode = (kernel, ...rest) => {
    if (rest[2] === undefined && !tf.getGradient(kernel)) withoutGradient.set(kernel, callersLine());
    Object.getPrototypeOf(engine).addTapeNode.call(engine, kernel, ...rest);
  };
  engine.startScope('trace');
  backend.binding = recorder;
  recording = true;
  const { Date: date } = globalThis;
  if (first) {
    ahead = AHEAD;
    globalThis.Date = LaterDate;
  }
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 50; // for the line, should it throw
  try {
    const result = fn(given, graph);
    if (refused) throw refused;
    for (const [tensor, { where, inGradient }] of kept)
      if (!tensor.isDisposed && !(inGradient && returned.has(tensor)))
        refuse(
          'keeps a tensor beyond the call, as it was at the first: give state as the first argument and return it as `state`',
          callersLine(where),
        );
    if (first && nodes.length < first.nodes.length) changed();
    return { nodes, captures, made, result };
  } catch (error) {
    for (const { id } of captures) real.deleteTensor(id);
    const kernel = /gradient function not found for (\w+)/.exec((error as Error).message)?.[1];
    if (kernel) refuse(`uses ${kernel}, of which there is no gradient`, withoutGradient.get(kernel));
    if (first && !refused) changed(callersLine(error as Error));
    throw refused ?? error;
  } finally {
    backend.binding = real;
    recording = false;
    ahead = 0;
    globalThis.Date = date;
    Error.stackTraceLimit = stackTraceLimit;
    draws = null;
    tf.Variable.prototype.assign = assign;
    for (const own of ['move', 'getInputTensorIds', 'readSync']) Reflect.deleteProperty(backend, own);
    Reflect.deleteProperty(engine, 'startScope');
    for (const own of ['keep', 'makeVariable', 'addTapeNode']) Reflect.deleteProperty(engine, own);
    tf.engine().endScope();
    tf.dispose(given);
  }
}
