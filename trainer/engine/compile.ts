// compile(name, fn): plain tfjs code at XLA's speed.
//
// The first call with given shapes runs fn once, op by op, and writes down every op that reaches the binding. What was
// written is a TensorFlow graph; it is registered as a function and from then on each call of the compiled function is one
// call into TensorFlow, which XLA has turned into machine code.
//
//   plain code ──runs once──▶ list of ops ──GraphDef──▶ TensorFlow function ──XLA──▶ machine code
//
// So fn must be pure: tensors in, tensors out. JavaScript numbers it reads are frozen into the graph; anything that changes
// from call to call (step, learning rate, seeds) must come in as a tensor. Reading a traced tensor's value is an error.
// Without the patched binding (PLUMB_ENGINE=stock) fn simply runs.

import { type Binding, backend, messages, type OpAttribute, type Tensor, tf } from './tf.ts';

/** Tensors, nested in arrays and plain objects. */
export type Tree = Tensor | Tree[] | { [key: string]: Tree };

/** What was compiled in this process, with its shapes and the seconds that tracing and compiling took. */
export const compilations: { name: string; seconds: number }[] = [];

/** The version of op semantics that the graph claims to be written for: that of tfjs-node 4's day, which newer ones honour. */
const GRAPH_DEF_PRODUCER = 1087;
/** Constants up to this size are written into the graph; larger ones become inputs of the function. */
const CONSTANT_BYTES = 1024;

interface Node {
  name: string;
  op: string;
  inputs: string[];
  attributes: OpAttribute[];
}

interface Traced {
  name: string;
  captures: number[];
  outputs: number;
  rebuild: (tensors: Tensor[]) => Tree;
}

let serial = 0;

/** Returns a function with fn's arguments and result that runs as one compiled call per combination of shapes. */
export function compile<Arguments extends Tree[], Result extends Tree>(
  name: string,
  fn: (...args: Arguments) => Result,
): (...args: Arguments) => Result {
  const traces = new Map<string, Traced>();
  return (...args) => {
    if (!backend.binding.addGraphFunction) return tf.tidy(() => fn(...args) as never) as Result;
    const inputs = flatten(args);
    const key = inputs.map((tensor) => `${tensor.dtype}[${tensor.shape}]`).join();
    const known = traces.get(key);
    const started = performance.now();
    const traced = known ?? trace(name, fn, args, inputs);
    const results = backend.binding
      .executeOp(
        traced.name,
        [{ name: '_XlaMustCompile', type: backend.binding.TF_ATTR_BOOL!, value: true }],
        [...backend.getInputTensorIds(inputs), ...traced.captures],
        traced.outputs,
      )
      .map((output) => backend.createOutputTensor(output));
    if (!known) {
      traces.set(key, traced);
      compilations.push({ name, seconds: (performance.now() - started) / 1000 });
    }
    return traced.rebuild(results) as Result;
  };
}

function trace<Arguments extends Tree[]>(
  name: string,
  fn: (...args: Arguments) => Tree,
  args: Arguments,
  inputs: Tensor[],
): Traced {
  const real = backend.binding;
  const nodes: Node[] = [];
  const captures: { id: number; reference: string }[] = [];
  const referenceOf = new Map<number, string>(); // tensor id → "node:output"
  const typeOf = new Map<string, number>();
  const computed = new Set<number>(); // ids whose value depends on an input

  const add = (op: string, nodeInputs: string[], attributes: OpAttribute[]): string => {
    const node = `n${nodes.length}`;
    nodes.push({ name: node, op, inputs: nodeInputs, attributes });
    return node;
  };
  const placeholder = (id: number, dtype: number, shape: number[]): string => {
    const node = add(
      'Placeholder',
      [],
      [
        { name: 'dtype', type: real.TF_ATTR_TYPE!, value: dtype },
        { name: 'shape', type: real.TF_ATTR_SHAPE!, value: shape },
      ],
    );
    referenceOf.set(id, `${node}:0`);
    typeOf.set(`${node}:0`, dtype);
    return `${node}:0`;
  };
  // A tensor made before the trace (or a large constant) goes in as an input; the copied handle keeps it alive.
  const capture = (id: number): string => {
    const [kept] = real.executeOp('Identity', [], [id], 1);
    const reference = placeholder(id, kept!.dtype, kept!.shape);
    captures.push({ id: kept!.id, reference });
    return reference;
  };
  const reference = (id: number): string => referenceOf.get(id) ?? capture(id);

  const recorder = Object.create(real, {
    createTensor: {
      value: (shape: number[], dtype: number, values: ArrayBufferView | number) => {
        const id = real.createTensor(shape, dtype, values);
        if (ArrayBuffer.isView(values)) {
          const constant = constantProto(real, dtype, shape, values);
          if (constant) {
            const node = add(
              'Const',
              [],
              [
                { name: 'dtype', type: real.TF_ATTR_TYPE!, value: dtype },
                { name: 'value', type: TENSOR_ATTRIBUTE, value: constant },
              ],
            );
            referenceOf.set(id, `${node}:0`);
            typeOf.set(`${node}:0`, dtype);
          } else capture(id);
        }
        return id;
      },
    },
    executeOp: {
      value: (op: string, attributes: OpAttribute[], ids: number[], count: number) => {
        const results = real.executeOp(op, attributes, ids, count);
        const node = add(op, ids.map(reference), attributes);
        const depends = ids.some((id) => computed.has(id));
        results.forEach((result, index) => {
          referenceOf.set(result.id, `${node}:${index}`);
          typeOf.set(`${node}:${index}`, result.dtype);
          if (depends) computed.add(result.id);
        });
        return results;
      },
    },
    tensorDataSync: {
      value: (id: number) => {
        if (computed.has(id))
          throw new Error(
            `compile(${name}): the function reads the value of a tensor that depends on its inputs; that value would be frozen into the compiled code`,
          );
        return real.tensorDataSync(id);
      },
    },
  }) as Binding;

  // Handles of their own for the inputs: the same tensor may stand in two places of the arguments.
  const copies = inputs.map((tensor) =>
    backend.createOutputTensor(real.executeOp('Identity', [], backend.getInputTensorIds([tensor]), 1)[0]!),
  );
  const inputReferences = copies.map((tensor) => {
    const [id] = backend.getInputTensorIds([tensor]);
    computed.add(id!);
    return placeholder(id!, backend.getDTypeInteger(tensor.dtype), tensor.shape);
  });

  let outputs: string[];
  let rebuild: (tensors: Tensor[]) => Tree;
  tf.engine().startScope();
  backend.binding = recorder;
  try {
    const result = fn(...(unflatten(args, copies) as Arguments));
    rebuild = (tensors) => unflatten(result, tensors);
    // An Identity each: a function may not hand an input through, nor the same value twice.
    outputs = flatten(result).map((tensor) => {
      const from = reference(backend.getInputTensorIds([tensor])[0]!);
      return `${add('Identity', [from], [{ name: 'T', type: real.TF_ATTR_TYPE!, value: typeOf.get(from) }])}:0`;
    });
  } finally {
    backend.binding = real;
    tf.engine().endScope();
    tf.dispose(copies);
  }

  const functionName = `plumb_${name.replace(/\W/g, '_')}_${serial++}`;
  const functionInputs = [...inputReferences, ...captures.map((captured) => captured.reference)];
  const needed = reachable(nodes, [...outputs, ...functionInputs]);
  real.addGraphFunction!(functionName, graphDef(real, needed), functionInputs.join(), outputs.join());
  return { name: functionName, captures: captures.map((captured) => captured.id), outputs: outputs.length, rebuild };
}

/** The nodes that the given outputs need, in their order. */
function reachable(nodes: Node[], outputs: string[]): Node[] {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const needed = new Set<string>();
  const stack = outputs.map((output) => output.split(':')[0]!);
  while (stack.length > 0) {
    const name = stack.pop()!;
    if (needed.has(name)) continue;
    needed.add(name);
    for (const input of byName.get(name)!.inputs) stack.push(input.split(':')[0]!);
  }
  return nodes.filter((node) => needed.has(node.name));
}

const TENSOR_ATTRIBUTE = -1; // an attribute that holds a TensorProto; the binding has no such type of its own

function graphDef(binding: Binding, nodes: Node[]): Uint8Array {
  const graph = new messages.GraphDef();
  for (const node of nodes) {
    const proto = new messages.NodeDef();
    proto.setName(node.name);
    proto.setOp(node.op);
    proto.setInputList(node.inputs);
    for (const attribute of node.attributes) proto.getAttrMap().set(attribute.name, attributeProto(binding, attribute));
    graph.addNode(proto);
  }
  const versions = new messages.VersionDef();
  versions.setProducer(GRAPH_DEF_PRODUCER);
  graph.setVersions(versions);
  return graph.serializeBinary();
}

function attributeProto(binding: Binding, { name, type, value }: OpAttribute): unknown {
  const proto = new messages.AttrValue();
  const list = Array.isArray(value) && type !== binding.TF_ATTR_SHAPE ? new messages.AttrValue.ListValue() : null;
  if (list) proto.setList(list);
  switch (type) {
    case binding.TF_ATTR_STRING:
      proto.setS(Buffer.from(String(value)));
      break;
    case binding.TF_ATTR_INT:
      list ? list.setIList(value) : proto.setI(value);
      break;
    case binding.TF_ATTR_FLOAT:
      list ? list.setFList(value) : proto.setF(value);
      break;
    case binding.TF_ATTR_BOOL:
      list ? list.setBList(value) : proto.setB(Boolean(value));
      break;
    case binding.TF_ATTR_TYPE:
      list ? list.setTypeList(value) : proto.setType(value);
      break;
    case binding.TF_ATTR_SHAPE:
      proto.setShape(shapeProto(value as number[]));
      break;
    case TENSOR_ATTRIBUTE:
      proto.setTensor(value);
      break;
    default:
      throw new Error(`compile: attribute ${name} has a type (${type}) that the graph writer does not know`);
  }
  return proto;
}

function shapeProto(shape: number[]): unknown {
  const proto = new messages.TensorShape();
  for (const size of shape) {
    const dim = new messages.TensorShape.Dim();
    dim.setSize(size);
    proto.addDim(dim);
  }
  return proto;
}

/** A TensorProto of a small constant, or of a large one whose elements are all equal; null for any other. */
function constantProto(binding: Binding, dtype: number, shape: number[], values: ArrayBufferView): unknown {
  const proto = new messages.Tensor();
  proto.setDtype(dtype);
  proto.setTensorShape(shapeProto(shape));
  if (values.byteLength <= CONSTANT_BYTES) {
    proto.setTensorContent(new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice());
    return proto;
  }
  const elements = values as unknown as ArrayLike<number>;
  for (let i = 1; i < elements.length; i++) if (elements[i] !== elements[0]) return null;
  // One value stands for all of them.
  if (dtype === binding.TF_FLOAT) proto.setFloatValList([elements[0]]);
  else if (dtype === binding.TF_INT32) proto.setIntValList([elements[0]]);
  else return null;
  return proto;
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
