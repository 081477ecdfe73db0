// One start of a Worker that serves SmolLM2 or the seed policy, in a process of its own: node test/bench/cold.ts near|far|seed. Prints how long the first token
// of the first answer took, and of those after it.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serveLarge } from '../support/large.ts';
import { SEED_FOLDER } from '../support/seed.ts';
import { ask } from './chats.ts';

const far = { entrypoint: join(import.meta.dirname, 'slow-bucket.ts') };
const home = mkdtempSync(join(tmpdir(), 'plumb-cold-'));
const [, , which] = process.argv;
const { url, key, close } = await serveLarge(
  home,
  which === 'far' ? far : {},
  which === 'seed' ? SEED_FOLDER : undefined,
);
await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key}` } }); // the api and its database have started; the policy is not there yet
const firsts: number[] = [];
for (const thing of ['the moon', 'rain', 'a bridge', 'bread'])
  firsts.push((await ask(url, key, `What is ${thing}? Answer in one sentence.`)).first);
const [cold, , ...warm] = firsts as [number, number, ...number[]];
console.log(JSON.stringify({ cold, warm: warm.reduce((sum, ms) => sum + ms / warm.length, 0) }));
await close();
rmSync(home, { recursive: true });
process.exit();
