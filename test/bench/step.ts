// The training step of torch.ts in a process of its own, so that its memory counts by itself. One side of memory.ts.
//
// Reads the number of steps from each line of its input, and answers with the tokens a second.
// usage: step.ts float32|bfloat16 ROWS COLUMNS
import { createInterface } from 'node:readline';
import type { Precision } from '../../trainer/engine/compile.ts';
import { setUpEngine } from '../../trainer/engine/setup.ts';
import { ours } from './torch.ts';

await setUpEngine();
const [precision, rows, columns] = process.argv.slice(2);
const step = ours(precision as Precision, Number(rows), Number(columns));
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) console.log(step(Number(line)));
process.exit(0);
