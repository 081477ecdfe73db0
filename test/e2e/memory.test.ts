// A Worker's isolate has 128 MB. The decoder script with a real chat model in it, while it is loaded and while it answers eight at
// once: its heap as workerd's inspector tells it, garbage collected, and the memory of the decoder, which is not there before the
// process has grown by it.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadDecoder } from '../../functions/policy/node.ts';
import { heapOf, ISOLATE, roomInSlot } from '../../functions/policy/room.ts';
import { importPolicy } from '../../functions/store/policies.ts';
import { freePort } from '../../infra/home.ts';
import { withStore } from '../../infra/local.ts';
import { readEdge } from '../../schema/edge.ts';
import { newId } from '../../schema/ids.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { sha256 } from '../../trainer/manifest.ts';
import { serveLarge } from '../support/large.ts';
import { SEED_FOLDER } from '../support/seed.ts';

const MINUTES = 60_000;
const home = mkdtempSync(join(tmpdir(), 'plumb-memory-'));
let served: Awaited<ReturnType<typeof serveLarge>>;
// biome-ignore lint/suspicious/noExplicitAny: what the inspector answers depends on what it is asked
let inspect: (method: string, params?: object) => Promise<any>;
let context = '';
let wasmBytes = 0;
let workerd = '';

/** A process's status as Linux tells it; nothing of one that has ended. */
function statusOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return '';
  }
}
const ours = () =>
  readdirSync('/proc').filter((pid) => {
    const status = statusOf(pid);
    return status.startsWith('Name:\tworkerd') && status.includes(`PPid:\t${process.pid}\n`);
  });
const residentBytes = () => 1024 * Number(/VmRSS:\s+(\d+)/.exec(statusOf(workerd))![1]);

beforeAll(async () => {
  const inspector = { hostname: '127.0.0.1', port: await freePort() };
  served = await serveLarge(home, { inspector });
  const image = served.files.get('edge.bin')!;
  wasmBytes = loadDecoder(image, roomInSlot(readEdge(image))).memoryBytes;
  [workerd] = ours().sort((a, b) => Number(a) - Number(b)) as [string]; // the decoder's is started first
  inspect = await inspected(`ws://127.0.0.1:${inspector.port}/ws`);
}, 5 * MINUTES);
afterAll(async () => {
  await served?.close();
  rmSync(home, { recursive: true, force: true });
}, MINUTES);

/** Asks workerd's inspector. */
async function inspected(url: string) {
  // Wrangler lets pages of known origins alone ask.
  const Socket = WebSocket as unknown as new (
    url: string,
    options: object,
  ) => { onopen: unknown; onerror: unknown; onmessage: (event: { data: unknown }) => void; send(text: string): void };
  const socket = new Socket(url, { headers: { Origin: 'http://localhost' } });
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = reject;
  });
  const asked = new Map<number, (result: unknown) => void>();
  let snapshot = '';
  socket.onmessage = ({ data }) => {
    const { id, result, method, params } = JSON.parse(String(data));
    if (method === 'Runtime.executionContextCreated') context = params.context.uniqueId;
    if (method === 'HeapProfiler.addHeapSnapshotChunk') {
      snapshot += params.chunk;
      if (!/\]\s*\}\s*$/.test(params.chunk)) return;
      asked.get(asked.size)?.(snapshot); // workerd does not answer when it is whole
      snapshot = '';
    } else if (result) asked.get(id)?.(result);
  };
  return (method: string, params = {}) =>
    new Promise((resolve) => {
      const id = asked.size + 1;
      asked.set(id, resolve);
      socket.send(JSON.stringify({ id, method, params }));
    });
}

/** What is alive of the heap, with what lies in arrays outside of it, but for the decoder's memory. By a snapshot: what is used has garbage in it. */
async function heapBytes(): Promise<number> {
  const { snapshot, nodes } = JSON.parse(await inspect('HeapProfiler.takeHeapSnapshot')) as {
    snapshot: { meta: { node_fields: string[] } };
    nodes: number[];
  };
  const { node_fields: fields } = snapshot.meta;
  let all = 0;
  for (let at = fields.indexOf('self_size'); at < nodes.length; at += fields.length)
    if (nodes[at] !== wasmBytes) all += nodes[at]!;
  return all;
}

/** What is to be known of the list of the memories that are alive, one an instance. */
async function ofMemories(expression: string): Promise<unknown> {
  const { result } = await inspect('Runtime.evaluate', {
    expression: 'WebAssembly.Memory.prototype',
    uniqueContextId: context,
  });
  const { objects } = await inspect('Runtime.queryObjects', { prototypeObjectId: result.objectId });
  const { result: told } = await inspect('Runtime.callFunctionOn', {
    objectId: objects.objectId,
    functionDeclaration: `function () { return ${expression}; }`,
    returnByValue: true,
  });
  return told.value;
}

/** The same weights with another file of the same tokenizer become stable, in the slot that this policy has: another has been stable meanwhile. */
async function releaseAnother(): Promise<string> {
  const { manifest, files } = served;
  const json = new TextDecoder().decode(files.get('tokenizer.json'));
  const tokenizer = new TextEncoder().encode(JSON.stringify(JSON.parse(json)));
  const told = { name: 'tokenizer.json' as const, sha256: sha256(tokenizer), bytes: tokenizer.length };
  expect(manifest.files.map(({ sha256 }) => sha256)).not.toContain(told.sha256);
  const others = manifest.files.filter(({ name }) => name !== told.name);
  const next = { ...manifest, id: newId('policy'), files: [...others, told] };
  const seed = importFrom(SEED_FOLDER, 'between');
  await withStore(home, async ({ DB, BUCKET }) => {
    await importPolicy(DB, BUCKET, seed.manifest, Object.fromEntries(seed.files), 'stable');
    await importPolicy(DB, BUCKET, next, { ...Object.fromEntries(files), [told.name]: tokenizer }, 'stable');
  });
  return next.id;
}

/** Asks eight at once, and looks at the heap, and at all memory, until they have their answers. */
async function eightAnswers(resident: number, maxTokens: number) {
  let answered = false;
  const answers = Promise.all(
    Array.from({ length: 8 }, async (_, i) => {
      const response = await fetch(`${served.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${served.key}`, 'content-type': 'application/json' },
        body: JSON.stringify({
          model: 'stable',
          messages: [{ role: 'user', content: `${i}: tell me of the moon and of the sea` }],
          max_tokens: maxTokens,
        }),
      });
      const { model } = (await response.json()) as { model: string }; // the status comes before the answer is whole
      return { status: response.status, model };
    }),
  ).finally(() => {
    answered = true;
  });
  const heaps: number[] = [];
  const totals: number[] = [];
  const look = async () => {
    heaps.push(await heapBytes());
    totals.push(heaps.at(-1)! + Math.min(wasmBytes, residentBytes() - resident));
  };
  while (!answered) await look();
  await look();
  return { answers: await answers, heaps, totals };
}

test(
  'SmolLM2-135M is loaded and answers eight chats at once within 128 MB, and so does one with another tokenizer in its place',
  async () => {
    const resident = residentBytes(); // before a snapshot, whose own memory the process gives back meanwhile
    await inspect('HeapProfiler.enable');
    await inspect('Runtime.enable');
    expect(await ofMemories('this.length')).toBe(0);
    const before = await heapBytes();
    const heap = heapOf(served.manifest.config);
    const first = await eightAnswers(resident, 48);
    expect(first.answers).toEqual(Array(8).fill({ status: 200, model: served.manifest.id }));
    expect(await ofMemories('this.length')).toBe(1);
    expect(await ofMemories('(this[0].isTheFirst = true)')).toBe(true);
    expect(first.heaps.length).toBeGreaterThan(3);
    expect(Math.max(...first.heaps)).toBeGreaterThan(before + 2e6); // the tokenizer is in it
    expect(Math.max(...first.totals)).toBeGreaterThan(110e6); // and the weights in this
    expect(Math.max(...first.totals)).toBeLessThan(ISOLATE);
    expect(Math.max(...first.heaps)).toBeLessThan(heap);

    const next = await releaseAnother();
    let second: Awaited<ReturnType<typeof eightAnswers>>;
    do second = await eightAnswers(resident, 16);
    while (second.answers.some(({ model }) => model !== next));
    expect(second.answers.every(({ status }) => status === 200)).toBe(true);
    expect(await ofMemories('this.length')).toBe(1);
    expect(await ofMemories('this[0].isTheFirst')).toBe(true); // not another, beside which it would wait to be collected
    expect(Math.max(...second.heaps)).toBeLessThan(heap);
    expect(wasmBytes + heap).toBeLessThan(ISOLATE);
  },
  5 * MINUTES,
);
