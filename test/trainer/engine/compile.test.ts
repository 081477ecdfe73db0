import { generatePrimeSync, randomBytes } from 'node:crypto';
import { hrtime } from 'node:process';
import { describe, expect, test } from 'vitest';
import { compilations, compile, dispose, flatten, type Tree, unflatten } from '../../../trainer/engine/compile.ts';
import { gatherRows } from '../../../trainer/engine/ops.ts';
import { type Binding, backend, type Tensor, tf } from '../../../trainer/engine/tf.ts';
import { record } from '../../../trainer/engine/trace.ts';

const value = (tensor: Tensor) => Array.from(tensor.dataSync());

/** While `work` runs, what the binding is asked for: each call's name and arguments. */
function asked(work: () => void): [keyof Binding, ...unknown[]][] {
  const { binding } = backend;
  const calls: [keyof Binding, ...unknown[]][] = [];
  const listening = (name: keyof Binding) => ({
    value: (...args: unknown[]) => {
      calls.push([name, ...args]);
      return Reflect.apply(binding[name] as () => unknown, binding, args);
    },
  });
  const names = ['addGraphFunction', 'removeGraphFunction', 'deleteTensor', 'executeOp'] as const;
  backend.binding = Object.create(binding, Object.fromEntries(names.map((name) => [name, listening(name)])));
  try {
    work();
  } finally {
    backend.binding = binding;
  }
  return calls;
}

test('large constants of one value are that value wherever they are read, at the trace and in the compiled call', () => {
  const twice = compile('uniform', (x: Tensor) => {
    const [ones, wholes] = [tf.ones([40, 30]), tf.tensor(new Int32Array(1200).fill(3), [40, 30], 'int32')];
    const large = tf.tensor(new Int32Array(1200).fill(2 ** 30 + 1), [40, 30], 'int32'); // no float
    expect([large.dataSync()[7], tf.sub(large, tf.scalar(2 ** 30, 'int32')).dataSync()[7]]).toEqual([2 ** 30 + 1, 1]);
    const read = ones.dataSync()[1199]! + wholes.dataSync()[1199]!; // frozen: it depends on no input
    const both = tf.add(ones, tf.cast(wholes, 'float32')); // neither does this
    return tf.add(tf.mul(x, both), tf.mul(ones, read)) as Tensor;
  });
  for (const value of [1, 2]) {
    const [x, expected] = [tf.fill([40, 30], value), new Float32Array(1200).fill(4 * value + 4)];
    expect(twice(x as Tensor).dataSync()).toEqual(expected);
  }
});

test('a large constant of 0 and −0 keeps their signs', () => {
  const signs = Float32Array.from({ length: 300 }, (_, i) => (i === 1 ? -0 : 0));
  const inverse = compile('signs', (x: Tensor) => tf.div(1, tf.mul(x, tf.tensor1d(signs))) as Tensor);
  expect(value(inverse(tf.ones([300]))).slice(0, 3)).toEqual([Infinity, -Infinity, Infinity]);
});

test.each([
  [256, 0],
  [257, 1],
])('a constant of %i numbers: %i of them goes in as an input, not into the graph', (length, inputs) => {
  const numbers = Float32Array.from({ length }, (_, i) => i);
  const { captures } = record('constant', [{ dtype: 'float32', shape: [length], variable: false }], ([x], graph) =>
    graph.referenceOf(tf.add(x!, tf.tensor1d(numbers))),
  );
  expect(captures).toHaveLength(inputs);
  for (const { id } of captures) backend.binding.deleteTensor(id);
});

test('a compiled function gives what the plain one gives, call after call, for inputs that change', () => {
  const plain = (x: Tensor, w: Tensor) => tf.sum(tf.relu(tf.matMul(x, w)), -1) as Tensor;
  const fast = compile('relu', plain);
  for (let i = 0; i < 3; i++) {
    const x = tf.randomNormal([5, 4], 0, 1, 'float32', i);
    const w = tf.randomNormal([4, 3], 0, 1, 'float32', 10 + i);
    value(fast(x, w)).forEach((y, j) => {
      expect(y).toBeCloseTo(value(plain(x, w))[j]!, 5);
    });
  }
});

test('training steps agree with eager ones within 1e-5 over five steps', () => {
  const step = (w: Tensor, x: Tensor, rate: Tensor) => {
    const { value: loss, grads } = tf.valueAndGrads(
      (v: Tensor) => tf.mean(tf.square(tf.sub(tf.sigmoid(tf.matMul(x, v)), 0.3))) as never,
    )([w] as never);
    return { loss: loss as Tensor, w: tf.sub(w, tf.mul(grads[0]!, rate)) as Tensor };
  };
  const fast = compile('descend', step);
  const x = tf.randomNormal([6, 4], 0, 1, 'float32', 1);
  const rate = tf.scalar(0.5);
  let a: Tensor = tf.randomNormal([4, 2], 0, 1, 'float32', 2);
  let b: Tensor = a;
  for (let i = 0; i < 5; i++) {
    const eager = step(a, x, rate);
    const compiled = fast(b, x, rate);
    const difference = Math.abs(value(eager.loss)[0]! - value(compiled.loss)[0]!) / value(eager.loss)[0]!;
    expect(difference).toBeLessThan(1e-5);
    a = eager.w;
    b = compiled.w;
  }
});

test('the same tensor may be two arguments, and a large constant is as at the trace', () => {
  const counting = Array.from({ length: 1000 }, (_, i) => i);
  const fast = compile('twice', (x: Tensor, y: Tensor) => tf.add(tf.mul(x, y), tf.tensor1d(counting)) as Tensor);
  const x = tf.fill([1000], 3) as Tensor;
  expect(value(fast(x, x)).slice(0, 3)).toEqual([9, 10, 11]);
});

describe('what would be frozen by mistake is an error that names the line', () => {
  const counter = tf.variable(tf.scalar(1), false, 'counter');
  const outside = tf.add(tf.scalar(1), 1) as Tensor;
  const waiting = tf.scalar(1); // no op has read it yet
  let total: Tensor | null = null;
  let seen: Tensor | null = null;
  let calls = 0;
  const { random } = Math; // as a library takes it, long before it is called
  const withoutGradient = (x: Tensor) => tf.sum(tf.round(tf.cumprod(x))) as Tensor;
  test.each<[string, (x: Tensor) => Tensor, RegExp]>([
    ['a read', (x) => tf.mul(x, x.dataSync()[0]!), /reads the value of a tensor that depends on the inputs/],
    ['a read of what an op made of it', (x) => tf.mul(x, tf.add(x, 1).dataSync()[0]!), /reads the value/],
    ['a random number', (x) => tf.mul(x, Math.random()), /draws a random number/],
    ['random tensors', (x) => tf.add(x, tf.randomNormal([2])), /calls randomNormal/],
    ['random tensors with a seed', (x) => tf.add(x, tf.randomUniform([2], 0, 1, 'float32', 7)), /calls randomUniform/],
    ['dropout', (x) => tf.dropout(x, 0.5), /calls dropout/],
    [
      'a variable that is changed',
      (x) => {
        counter.assign(tf.scalar(2));
        return x;
      },
      /changes the variable counter/,
    ],
    ['a variable that is read', (x) => tf.mul(x, counter), /reads the variable counter/],
    ['a tensor made outside', (x) => tf.mul(x, outside), /reads a tensor that was made outside of it/],
    ['random bytes', (x) => tf.mul(x, crypto.getRandomValues(new Uint32Array(1))[0]!), /draws a random number/],
    ["random bytes of Node's", (x) => tf.mul(x, randomBytes(1)[0]!), /draws a random number/],
    ['a random number by another name', (x) => tf.mul(x, random()), /draws a random number/],
    ['a random prime', (x) => tf.mul(x, generatePrimeSync(16).byteLength), /draws a random number/],
    ['a value of a variable', (x) => tf.mul(x, counter.dataSync()[0]!), /reads the variable counter/],
    ['a value from outside', (x) => tf.mul(x, outside.arraySync()), /reads a tensor that was made outside of it/],
    ['a value that waits outside', (x) => tf.mul(x, waiting.dataSync()[0]!), /reads a tensor that was made outside/],
    ['the clock', (x) => tf.mul(x, performance.now()), /does something else each time/],
    ['the seconds since 1970', (x) => tf.mul(x, Date.now() / 1000), /does something else each time/],
    ['the second of the minute', (x) => tf.mul(x, new Date().getSeconds()), /does something else each time/],
    ['the day, as a text', (x) => tf.mul(x, Number(Date().slice(8, 10))), /does something else each time/],
    ['the day of the week', (x) => tf.mul(x, new Date().getDay()), /does something else each time/],
    ['the month', (x) => tf.mul(x, new Date().getMonth()), /does something else each time/],
    ['the year', (x) => tf.mul(x, new Date().getFullYear()), /does something else each time/],
    ['the hour', (x) => tf.mul(x, new Date().getHours()), /does something else each time/],
    ['how long the process runs', (x) => tf.mul(x, Math.floor(process.uptime())), /does something else each time/],
    ['the time by another name', (x) => tf.mul(x, hrtime()[0]), /does something else each time/],
    ['the time of the process', (x) => tf.mul(x, process.hrtime()[0]), /does something else each time/],
    ['nanoseconds', (x) => tf.mul(x, Number(process.hrtime.bigint() / 10n ** 9n)), /does something else each time/],
    ['a count of its calls', (x) => tf.mul(x, ++calls), /does something else each time/],
    [
      'a large constant that counts',
      (x) => tf.mul(x, tf.sum(tf.range(0, 999, ++calls))),
      /does something else each time/,
    ],
    [
      'a large constant of other numbers each time',
      (x) => tf.mul(x, tf.sum(tf.tensor1d(Float32Array.from({ length: 500 }, (_, i) => i + ++calls)))),
      /does something else each time/,
    ],
    [
      'work at its first call alone',
      (x) => (calls++ % 2 === 0 ? tf.mul(tf.mul(x, 2), 2) : tf.mul(x, 2)),
      /something else/,
    ],
    [
      'what a gradient kept at the call before',
      (x) => {
        const before = seen;
        const loss = (y: Tensor) => {
          seen = tf.keep(tf.square(y)) as Tensor;
          return tf.sum(before ? tf.add(seen, before) : seen);
        };
        tf.grad(loss as never)(x as never);
        return seen!;
      },
      /reads a tensor that was made outside of it/,
    ],
    [
      'a tensor that its first call leaves to the next',
      (x) => {
        seen ??= tf.scalar(2);
        return tf.mul(x, seen);
      },
      /reads a tensor that is gone: disposed of, or left by an earlier call/,
    ],
    [
      'a read that it catches',
      (x) => {
        let n = 1;
        try {
          n = x.dataSync()[0]!;
        } catch {}
        return tf.mul(x, n);
      },
      /reads the value of a tensor that depends on the inputs/,
    ],
    [
      'a read, in the place of whose refusal it throws another error',
      (x) => {
        try {
          return tf.mul(x, x.dataSync()[0]!);
        } catch {
          throw new Error('no number');
        }
      },
      /reads the value of a tensor that depends on the inputs/,
    ],
    [
      'a random number, whose refusal it returns over',
      (x) => {
        let n = 1;
        try {
          n = Math.random();
        } finally {
          // biome-ignore lint/correctness/noUnsafeFinally: that is what is tried
          return tf.mul(x, n);
        }
      },
      /draws a random number/,
    ],
    [
      'an error at its second run alone',
      (x) => {
        if (calls++ % 2 === 1) throw new RangeError('no more');
        return tf.mul(x, 2);
      },
      /does something else each time/,
    ],
    ['a promise of what it returns', (async (x: Tensor) => x) as never, /has it return a Promise where a tensor/],
    [
      'a tensor that is kept for the next call',
      (x) => {
        total = tf.keep(total ? tf.add(total, x) : tf.mul(x, 1));
        return tf.mul(total, 1);
      },
      /keeps a tensor beyond the call/,
    ],
    ['a variable that is made', (x) => tf.mul(x, tf.variable(tf.scalar(2), true, 'own')), /makes a variable/],
    ['a shape that depends on values', (x) => tf.unique(x as never).values, /calls UniqueV2, whose result's shape/],
    ['nothing returned', () => undefined as unknown as Tensor, /has it return undefined where a tensor/],
    [
      'an op without a gradient',
      (x) => tf.grad(withoutGradient as never)(x as never),
      /uses Cumprod, of which there is no gradient/,
    ],
  ])('%s', (name, fn, message) => {
    const bad = compile(name, fn);
    calls = 0;
    seen = null;
    const thrown = () => bad(tf.tensor1d([2, 3]));
    expect(thrown).toThrow(message);
    expect(thrown).toThrow(/compile\(.+\): compile\.test\.ts:\d+ /);
    // and the engine works on
    expect(value(tf.mul(tf.scalar(2), 3))).toEqual([6]);
    expect(tf.randomNormal([2]).shape).toEqual([2]);
    expect(crypto.randomUUID()).toHaveLength(36);
    expect(randomBytes(4)).toHaveLength(4);
    counter.assign(tf.scalar(1));
  });

  test('a tensor that is state and argument, a state that comes back as another', () => {
    const add = compile('add', (state: Tensor, x: Tensor) => ({ state: tf.add(state, x) as Tensor }), { state: true });
    const x = tf.scalar(1);
    expect(() => add(x, x)).toThrow(/compile\(add\): compile\.test\.ts:\d+ gives a tensor of the state a second time/);
    const grows = compile('grows', (state: Tensor) => ({ state: tf.concat([state, state] as never[]) as Tensor }), {
      state: true,
    });
    expect(() => grows(tf.tensor1d([1]))).toThrow(/must be returned as `state`/);
    const floats = compile('floats', (state: Tensor) => ({ state: tf.cast(state, 'float32') as Tensor }), {
      state: true,
    });
    expect(() => floats(tf.tensor1d([1], 'int32'))).toThrow(/compile\.test\.ts:\d+ is given a state of other tensors/);
  });

  test('names of what it returns that change from call to call', () => {
    const of = (make: (x: Tensor) => Tree) => () => compile('names', make)(tf.scalar(1));
    let n = 0;
    const message = /compile\(names\): compile\.test\.ts:\d+ does something else each time/;
    expect(of((x) => ({ [`loss${n++}`]: tf.mul(x, 2) }))).toThrow(message);
    expect(of((x) => (n++ % 2 === 0 ? { a: x, b: tf.mul(x, 2) } : { b: x, a: tf.mul(x, 2) }))).toThrow(message);
    expect(of((x) => (n++ % 2 === 0 ? [x] : { 0: x }))).toThrow(message);
  });

  test('a call within a gradient, at the first call and later', () => {
    const square = compile('square', (x: Tensor) => tf.square(x) as Tensor);
    const x = tf.tensor1d([2, 3]);
    const gradient = () => tf.grad((y) => tf.sum(tf.add(y, square(y as never))))(x as never);
    const message = /compile\(square\): compile\.test\.ts:\d+ calls it within a gradient/;
    expect(gradient).toThrow(message);
    expect(value(square(x))).toEqual([4, 9]);
    expect(gradient).toThrow(message);
    const whole = compile(
      'whole',
      (y: Tensor) => tf.grad((z) => tf.sum(tf.add(z, square(z as never))))(y as never) as Tensor,
    );
    expect(value(whole(x))).toEqual([5, 7]);
  });

  test('what one function has kept is nothing to another', () => {
    let kept = tf.scalar(0) as Tensor;
    const keeps = compile('keeps', (x: Tensor) => {
      kept = tf.keep(tf.mul(x, 2));
      return x;
    });
    expect(() => keeps(tf.scalar(1))).toThrow(/keeps a tensor beyond the call/);
    const takes = compile('takes', (x: Tensor) => tf.mul(tf.mul(x, 3), kept) as Tensor);
    expect(() => takes(tf.scalar(1))).toThrow(/reads a tensor that was made outside of it/);
  });

  test('an argument that is changed, a list with a key of its own', () => {
    const grows = compile('in place', (p: { w: Tensor }) => {
      p.w = tf.add(p.w, 1);
      return p.w;
    });
    expect(() => grows({ w: tf.scalar(1) })).toThrow(/compile\.test\.ts:\d+ changes its arguments/);
    const list = Object.assign([tf.scalar(1)], { extra: tf.scalar(5) });
    const sum = compile('list', (all: Tensor[]) => all[0]!);
    expect(() => sum(list)).toThrow(/compile\.test\.ts:\d+ gives it an array with gaps, or with keys of its own/);
  });

  test('an op that XLA does not know; neither what is refused nor this leaves a function behind', () => {
    const calls = asked(() => {
      const crop = compile(
        'crop',
        (x: Tensor) => tf.image.cropAndResize(x as never, [[0, 0, 1, 1]], [0], [2, 2]) as Tensor,
      );
      expect(() => crop(tf.ones([1, 4, 4, 1]))).toThrow(/^compile\(crop\): compile\.test\.ts:\d+ .*CropAndResize/s);
      const both = compile('both', (state: Tensor, x: Tensor) => ({ state: tf.add(state, x) as Tensor }), {
        state: true,
      });
      const x = tf.ones([3]);
      expect(() => both(x, x)).toThrow(/a second time/);
    });
    const count = (name: keyof Binding) => calls.filter(([own]) => own === name).length;
    expect([count('addGraphFunction'), count('removeGraphFunction')]).toEqual([1, 1]);
  });

  test('an argument that is no tensor, or none any more', () => {
    const twice = compile('twice', (x: Tensor) => tf.mul(x, 2) as Tensor);
    expect(() => twice(3 as unknown as Tensor)).toThrow(/compile\(twice\): compile\.test\.ts:\d+ gives it 3 where/);
    const gone = tf.scalar(1);
    gone.dispose();
    expect(() => twice(gone)).toThrow(/compile\.test\.ts:\d+ gives it a tensor that is disposed of/);
  });
});

test('tensors are told apart by their names, in whatever order these come, and by the list that they are in', () => {
  const [x, y] = [tf.scalar(3), tf.scalar(1)];
  const less = compile('less', ({ a, b }: { [key: string]: Tensor }) => (b ? tf.sub(a!, b) : tf.neg(a!)) as Tensor);
  expect([{ a: x, b: y }, { b: y, a: x }, { a: x }].map((named) => value(less(named))[0])).toEqual([2, 2, -3]);
  const lists = compile('lists', (p: Tensor[], q: Tensor[]) => tf.mul(tf.addN(p as never), q.length) as Tensor);
  expect([value(lists([x, y], [x])), value(lists([x], [y, x]))]).toEqual([[4], [6]]);
  const step = compile(
    'turned',
    ({ w, m }: { w: Tensor; m: Tensor }) => ({ state: { m: tf.add(m, 1) as Tensor, w: tf.sub(w, m) as Tensor } }),
    { state: true },
  );
  let state = { w: tf.scalar(10) as Tensor, m: tf.scalar(1) as Tensor };
  for (let i = 0; i < 3; i++) ({ state } = step(state));
  expect([value(state.w), value(state.m)]).toEqual([[10 - 1 - 2 - 3], [4]]);
});

test('whole numbers are divided by whole numbers that come as arguments', () => {
  const x = tf.tensor1d([7, -7, 9], 'int32');
  const y = tf.tensor1d([2, 2, -4], 'int32');
  const compiled = compile('whole numbers', (a: Tensor, b: Tensor) => ({
    floor: tf.floorDiv(a, b) as Tensor,
    rest: tf.mod(a, b) as Tensor,
  }));
  const { floor, rest } = compiled(x, y);
  expect([value(floor), value(rest)]).toEqual([value(tf.floorDiv(x, y)), value(tf.mod(x, y))]);
  expect(value(floor)).toEqual([3, -4, -3]);
  // a constant stays what it is, also where its values may be read
  const halved = compile('halves of constants', (a: Tensor) => {
    const [sixes, twos] = [6, 2].map((n) => tf.tensor1d(new Int32Array(300).fill(n)));
    const [quotient, rest] = [
      tf.floorDiv(sixes!, twos!).dataSync()[0]!,
      tf.mod(sixes!, tf.add(twos!, 2)).dataSync()[0]!,
    ];
    return tf.add(tf.mul(a, quotient), rest) as Tensor;
  });
  expect(value(halved(tf.tensor1d([2, 3])))).toEqual([2 * 3 + 2, 3 * 3 + 2]);
});

test('a compiled function within another is a part of it', () => {
  const twice = compile('twice', (x: Tensor) => tf.mul(x, 2) as Tensor);
  const add = compile('add', (state: Tensor, x: Tensor) => ({ state: tf.add(state, x) as Tensor }), { state: true });
  const both = compile('both', (x: Tensor) => tf.add(twice(x), add(x, x).state) as Tensor);
  expect(value(both(tf.scalar(3)))).toEqual([12]);
  expect(value(both(tf.scalar(4)))).toEqual([16]);
});

test('in bfloat16 what is multiplied is rounded, and nothing else', () => {
  const fn = (x: Tensor, w: Tensor) => tf.add(tf.matMul(x, w), 2 ** -12) as Tensor;
  const fast = compile('rounded', fn, { precision: 'bfloat16' });
  const x = tf.tensor2d([[1 + 2 ** -6, 1 + 2 ** -12]]); // 8 bits of mantissa hold the first, and make 1 of the second
  expect(value(fast(x, tf.tensor2d([[1], [0]])))).toEqual([1 + 2 ** -6 + 2 ** -12]);
  expect(value(fast(x, tf.tensor2d([[0], [1]])))).toEqual([1 + 2 ** -12]);
  expect(value(fn(x, tf.tensor2d([[0], [1]])))).toEqual([1 + 2 ** -11]);
});

test('state comes back changed, in the memory that it was in, and what was given is gone', () => {
  const step = compile(
    'state',
    ({ a, b }: { a: Tensor; b: Tensor }, x: Tensor) => ({
      state: { a: tf.add(a, x) as Tensor, b: tf.mul(b, a) as Tensor },
      before: tf.sum(a) as Tensor,
    }),
    { state: true },
  );
  let state: { a: Tensor; b: Tensor } = { a: tf.tensor1d([1, 2]), b: tf.tensor1d([3, 4]) };
  const given = state.a;
  const others = tf.memory().numTensors - 2;
  for (let i = 0; i < 3; i++) {
    const x = tf.scalar(10);
    const result = step(state, x);
    expect(value(result.before)).toEqual([3 + 20 * i]);
    state = result.state;
    dispose(x, result.before);
  }
  expect(value(state.a)).toEqual([31, 32]);
  expect(value(state.b)).toEqual([3 * 1 * 11 * 21, 4 * 2 * 12 * 22]);
  expect(given.isDisposed).toBe(true);
  expect(tf.memory().numTensors).toBe(others + 2);
});

test.each(['float32', 'bfloat16'] as const)('in %s two states change places, call after call', (precision) => {
  const swap = compile('swap', (state: { a: Tensor; b: Tensor }) => ({ state: { a: state.b, b: state.a } }), {
    state: true,
    precision,
  });
  let state = { a: tf.fill([1000], 1) as Tensor, b: tf.fill([1000], 2) as Tensor };
  for (let i = 0; i < 3; i++) state = swap(state).state;
  expect([value(state.a)[0], value(state.b)[999]]).toEqual([2, 1]);
});

test('op by op what of the state is handed on stays, and the rest is gone', () => {
  const add = compile(
    'plain',
    ({ a, fixed }: { a: Tensor; fixed: Tensor }) => ({ state: { a: tf.add(a, 1) as Tensor, fixed } }),
    {
      state: true,
      xla: false,
    },
  );
  const given = { a: tf.scalar(1) as Tensor, fixed: tf.scalar(5) as Tensor };
  const { state } = add(add(given).state);
  expect([value(state.a), value(state.fixed), given.a.isDisposed]).toEqual([[3], [5], true]);
});

test('a tensor that somebody else holds is not written over', () => {
  const add = compile('shared', (state: Tensor) => ({ state: tf.add(state, 1) as Tensor }), { state: true });
  const parent = tf.ones([5000]) as Tensor;
  let state = tf.clone(parent) as Tensor;
  for (let i = 0; i < 3; i++) state = add(state).state;
  expect(value(state)[0]).toBe(4);
  expect(value(parent)[0]).toBe(1);
});

test('functions of more shapes than are kept are freed, and traced anew when they come again', () => {
  const fast = compile('many', (x: Tensor) => tf.square(x) as Tensor);
  for (let n = 1; n <= 70; n++) dispose(fast(tf.ones([n])));
  expect(value(fast(tf.fill([1], 3) as Tensor))).toEqual([9]);
  expect(compilations.filter(({ name }) => name === 'many')).toHaveLength(71);
});

test('with the function goes what it held: its constants and its variables; who was called of late stays', () => {
  const constant = Float32Array.from({ length: 300 }, (_, i) => i);
  const old = compile('old', (state: Tensor) => ({ state: tf.add(state, tf.tensor1d(constant)) as Tensor }), {
    state: true,
  });
  const [hot, cold] = ['hot', 'cold'].map((name) => compile(name, (x: Tensor) => tf.square(x) as Tensor)) as [
    (x: Tensor) => Tensor,
    (x: Tensor) => Tensor,
  ];
  const calls = asked(() => {
    hot(tf.ones([2]));
    dispose(old(tf.zeros([300])));
    for (let n = 1; n <= 70; n++) dispose(cold(tf.ones([n])), hot(tf.ones([2])));
  });
  const of = (name: keyof Binding) => calls.filter(([own]) => own === name);
  const held = of('executeOp').find(([, op]) => `${op}`.startsWith('plumb_old'))![3] as number[];
  expect(held).toHaveLength(2); // variable and constant
  const deleted = new Set(of('deleteTensor').map(([, id]) => id));
  expect(held.filter((id) => !deleted.has(id))).toEqual([]);
  const removed = of('removeGraphFunction').map(([, name]) => `${name}`);
  expect(removed.filter((name) => /plumb_(old|hot)/.test(name))).toEqual([expect.stringContaining('plumb_old')]);
  expect(compilations.filter(({ name }) => name === 'hot')).toHaveLength(1);
});

test('each combination of shapes is compiled once, and listed with its seconds', () => {
  const fast = compile('shapes', (x: Tensor) => tf.square(x) as Tensor);
  for (const n of [2, 3, 2, 3]) fast(tf.ones([n]));
  const own = compilations.filter(({ name }) => name === 'shapes');
  expect(own).toHaveLength(2);
  expect(own[0]!.seconds).toBeGreaterThan(0);
});

test('numbers of another type are another function', () => {
  const fast = compile('types', (x: Tensor) => tf.add(x, x) as Tensor);
  expect(value(fast(tf.tensor1d([0.5, 1])))).toEqual([1, 2]);
  const whole = fast(tf.tensor1d([3, 4], 'int32'));
  expect([whole.dtype, value(whole)]).toEqual(['int32', [6, 8]]);
});

test('gathered rows and their gradient equal tf.gather’s', () => {
  const table = tf.tensor2d([
    [1, 2],
    [3, 4],
    [5, 6],
  ]);
  const indices = tf.tensor1d([2, 0, 2], 'int32');
  expect(value(gatherRows(table, indices))).toEqual([5, 6, 1, 2, 5, 6]);
  const gradient = compile(
    'gather',
    (t: Tensor, i: Tensor) =>
      tf.grad((x) => tf.sum(tf.square(gatherRows(x as Tensor, i))) as never)(t as never) as Tensor,
  );
  expect(value(gradient(table, indices))).toEqual([2, 4, 0, 0, 20, 24]);
});

test('trees come apart and together in one order, and no call leaves tensors behind', () => {
  const tree = { a: tf.scalar(1) as Tensor, b: [tf.scalar(2) as Tensor, { c: tf.scalar(3) as Tensor }] };
  expect(flatten(tree).map((t) => value(t)[0])).toEqual([1, 2, 3]);
  expect(value((unflatten(tree, flatten(tree)) as typeof tree).b[0] as Tensor)).toEqual([2]);
  const fast = compile('tree', (t: typeof tree) => ({ sum: tf.addN(flatten(t) as never) as Tensor }));
  dispose(fast(tree));
  const before = tf.memory().numTensors;
  for (let i = 0; i < 10; i++) dispose(fast(tree));
  expect(tf.memory().numTensors).toBe(before);
});
