import { backend } from '../../trainer/engine/tf.ts';

/** Runs the work with a binding that cannot take graphs, as the stock one, so that compile() lets its function run op by op. */
export async function eagerly<T>(work: () => T | Promise<T>): Promise<T> {
  const real = backend.binding;
  backend.binding = Object.create(real, { addGraphFunction: { value: undefined } });
  try {
    return await work();
  } finally {
    backend.binding = real;
  }
}
