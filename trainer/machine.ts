// The machine that a save was made on, as far as a sum's last digits hang on it.

import { readFileSync } from 'node:fs';
import { z } from 'zod';
import type { ModelConfig } from '../schema/manifest.ts';
import { engineName } from './engine/tf.ts';
import { sha256 } from './manifest.ts';
import { precisionFor } from './model.ts';

export const Machine = z.object({
  engine: z.string(),
  /** TensorFlow's, for one operation: sums are divided among them. */
  threads: z.string(),
  cpu: z.string(),
  /** A hash of what the processor can do: by that XLA and oneDNN choose their instructions. */
  flags: z.string(),
  /** What products are computed in. */
  products: z.string(),
});
export type Machine = z.infer<typeof Machine>;

export function thisMachine(model: ModelConfig): Machine {
  const { cpu, flags } = processor();
  return {
    engine: engineName,
    threads: process.env.TF_NUM_INTRAOP_THREADS!,
    cpu,
    flags,
    products: precisionFor(model),
  };
}

function processor(): { cpu: string; flags: string } {
  if (process.platform !== 'linux') return { cpu: process.arch, flags: '' };
  const info = readFileSync('/proc/cpuinfo', 'utf8');
  const line = (name: string) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(info)?.[1] ?? '';
  return {
    cpu: line('model name'),
    flags: sha256(Buffer.from(line('flags').split(' ').sort().join(' '))).slice(0, 12),
  };
}

/** Whether products and sums are a GPU's, which adds in another order each time. */
export const onGpu = (): boolean =>
  engineName.startsWith('tensorflow==') && !['', '-1'].includes(process.env.CUDA_VISIBLE_DEVICES ?? 'all');

/** What sets the machine there apart from the one here, in words. */
export const apart = (there: Machine, here: Machine): string =>
  [
    there.engine !== here.engine && `${there.engine} there, ${here.engine} here`,
    there.threads !== here.threads && `${there.threads} threads there, ${here.threads} here`,
    there.cpu !== here.cpu && `a processor ${there.cpu} there, ${here.cpu} here`,
    there.cpu === here.cpu &&
      there.flags !== here.flags &&
      `a processor with other flags there (${there.flags}), ${here.flags} here`,
    there.products !== here.products && `products in ${there.products} there, ${here.products} here`,
  ]
    .filter(Boolean)
    .join('; ');

/** How to compute here as there: by variables where they can do it. */
export function alike(there: Machine, here: Machine): string {
  if (there.engine !== here.engine || there.cpu !== here.cpu || there.flags !== here.flags)
    return 'go on with it on a machine like that one';
  const variables = [
    there.threads !== here.threads && `TF_NUM_INTRAOP_THREADS=${there.threads}`,
    there.products !== here.products && `PLUMB_PRECISION=${there.products}`,
  ];
  return `set ${variables.filter(Boolean).join(' and ')}`;
}
