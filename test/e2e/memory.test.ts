// A Worker's isolate has 128 MB. The decoder script with a real chat model in it, while it is loaded and while it answers eight at
// once: its heap as workerd's inspector tells it, garbage collected, and the memory of the decoder, which is not there before the
// process has grown by it.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadDecoder } from '../../functions/policy/node.ts';
import { HEAP, ISOLATE, roomInSlot } from '../../functions/policy/room.ts';
import { freePort } from '../../infra/home.ts';
import { readEdge } from '../../schema/edge.ts';
import { serveLarge } from '../support/large.ts';

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
  wasmBytes = loadDecoder(served.image, roomInSlot(readEdge(served.image))).memoryBytes;
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
  socket.onmessage = ({ data }) => {
    const { id, result, method, params } = JSON.parse(String(data));
    if (method === 'Runtime.executionContextCreated') context = params.context.uniqueId;
    asked.get(id)?.(result);
  };
  return (method: string, params = {}) =>
    new Promise((resolve) => {
      const id = asked.size + 1;
      asked.set(id, resolve);
      socket.send(JSON.stringify({ id, method, params }));
    });
}

/** What is alive of the heap. A snapshot collects garbage first; workerd leaves HeapProfiler.collectGarbage unanswered. */
async function heapBytes(): Promise<number> {
  await inspect('HeapProfiler.takeHeapSnapshot');
  const { usedSize, embedderHeapUsedSize, backingStorageSize } = await inspect('Runtime.getHeapUsage');
  return usedSize! + embedderHeapUsedSize! + backingStorageSize!;
}

/** Memories of instances that are alive. */
async function instances(): Promise<number> {
  const { result } = await inspect('Runtime.evaluate', {
    expression: 'WebAssembly.Memory.prototype',
    uniqueContextId: context,
  });
  const { objects } = await inspect('Runtime.queryObjects', { prototypeObjectId: result.objectId });
  const { result: count } = await inspect('Runtime.callFunctionOn', {
    objectId: objects.objectId,
    functionDeclaration: 'function () { return this.length; }',
    returnByValue: true,
  });
  return count.value;
}

test(
  'SmolLM2-135M is loaded and answers eight chats at once within 128 MB',
  async () => {
    const resident = residentBytes(); // before a snapshot, whose own memory the process gives back meanwhile
    await inspect('HeapProfiler.enable');
    await inspect('Runtime.enable');
    expect(await instances()).toBe(0);
    const before = await heapBytes();
    let answered = false;
    const answers = Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const response = await fetch(`${served.url}/v1/chat/completions`, {
          method: 'POST',
          headers: { authorization: `Bearer ${served.key}`, 'content-type': 'application/json' },
          body: JSON.stringify({
            model: 'stable',
            messages: [{ role: 'user', content: `${i}: tell me of the moon and of the sea` }],
            max_tokens: 48,
          }),
        });
        await response.json(); // the status comes before the answer is whole
        return response.status;
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
    expect(await answers).toEqual(Array(8).fill(200));
    await look();
    expect(await instances()).toBe(1);
    expect(heaps.length).toBeGreaterThan(3);
    expect(Math.max(...heaps)).toBeGreaterThan(before + 2e6); // the tokenizer is in it
    expect(Math.max(...totals)).toBeGreaterThan(110e6); // and the weights in this
    expect(Math.max(...totals)).toBeLessThan(ISOLATE);
    expect(heaps.at(-1)).toBeLessThan(HEAP);
    expect(wasmBytes + heaps.at(-1)!).toBeLessThan(ISOLATE); // with a cache that is full
  },
  5 * MINUTES,
);
