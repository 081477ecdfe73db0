// A TensorFlow graph as bytes. A GraphDef is a list of nodes, and no more:
//
//   node { name: "n7"  op: "MatMul"  input: "n3:0"  input: "n6:0"  attr { T: float  transpose_a: false … } }
//
// A node is an op of TensorFlow's (its registry says what goes in and out), a name, and where its inputs come from: "n3:0" is the
// first output of n3, "^n3" only says that n3 runs before. Nodes of op Placeholder are what goes in, Const holds its value, and there
// is nothing else: no variables' scopes, no control flow of its own, no order but that of the inputs. Attributes are what the op needs to
// know beforehand: types, shapes, flags. The wire format is protobuf's; the messages are those that tfjs-node ships.

import { type Binding, backend, messages, type OpAttribute } from './tf.ts';

export interface Node {
  name: string;
  op: string;
  /** "node:output", or "^node" for one that must have run. */
  inputs: string[];
  attributes: OpAttribute[];
}

/** The version of op semantics that the graph claims to be written for: that of tfjs-node 4's day, which newer ones honour. */
const PRODUCER = 1087;
/** Constants up to this size are written into the graph; larger ones become inputs of the function. */
export const CONSTANT_BYTES = 1024;
/** An attribute that holds a TensorProto; the binding has no such type of its own. */
export const TENSOR_ATTRIBUTE = -1;

export const nodeOf = (reference: string): string => reference.replace('^', '').split(':')[0]!;

export const typeAttribute = (name: string, value: number): OpAttribute => ({
  name,
  type: backend.binding.TF_ATTR_TYPE!,
  value,
});
export const shapeAttribute = (name: string, value: number[]): OpAttribute => ({
  name,
  type: backend.binding.TF_ATTR_SHAPE!,
  value,
});
export const boolAttribute = (name: string, value: boolean): OpAttribute => ({
  name,
  type: backend.binding.TF_ATTR_BOOL!,
  value,
});
export const stringAttribute = (name: string, value: string): OpAttribute => ({
  name,
  type: backend.binding.TF_ATTR_STRING!,
  value,
});

/** The nodes that the given outputs need, in their order. */
export function reachable(nodes: Node[], outputs: string[]): Node[] {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const needed = new Set<string>();
  const stack = outputs.map(nodeOf);
  while (stack.length > 0) {
    const name = stack.pop()!;
    if (needed.has(name)) continue;
    needed.add(name);
    stack.push(...byName.get(name)!.inputs.map(nodeOf));
  }
  return nodes.filter((node) => needed.has(node.name));
}

export function graphDef(nodes: Node[]): Uint8Array {
  const graph = new messages.GraphDef();
  for (const node of nodes) {
    const proto = new messages.NodeDef();
    proto.setName(node.name);
    proto.setOp(node.op);
    proto.setInputList(node.inputs);
    for (const attribute of node.attributes) proto.getAttrMap().set(attribute.name, attributeProto(attribute));
    graph.addNode(proto);
  }
  const versions = new messages.VersionDef();
  versions.setProducer(PRODUCER);
  graph.setVersions(versions);
  return graph.serializeBinary();
}

function attributeProto({ name, type, value }: OpAttribute): unknown {
  const { binding } = backend;
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
export function constantProto(dtype: number, shape: number[], values: ArrayBufferView): unknown {
  const { TF_FLOAT, TF_INT32 } = backend.binding as Binding;
  const proto = new messages.Tensor();
  proto.setDtype(dtype);
  proto.setTensorShape(shapeProto(shape));
  if (values.byteLength <= CONSTANT_BYTES) {
    proto.setTensorContent(new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice());
    return proto;
  }
  const elements = values as unknown as ArrayLike<number>;
  for (let i = 1; i < elements.length; i++) if (!Object.is(elements[i], elements[0])) return null; // 0 and −0 are two
  // One value stands for all of them.
  if (dtype === TF_FLOAT) proto.setFloatValList([elements[0]]);
  else if (dtype === TF_INT32) proto.setIntValList([elements[0]]);
  else return null;
  return proto;
}
