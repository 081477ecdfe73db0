// Requests that share a decoder: each gets what it would get alone, in its turn, and what prompts have in common runs once.
import { expect, test, vi } from 'vitest';
import { batcher } from '../../../functions/policy/batch.ts';
import { ContextOverflow, DecoderBusy } from '../../../functions/policy/choice.ts';
import type { DecoderOptions } from '../../../functions/policy/decoder.ts';
import { loadDecoder } from '../../../functions/policy/node.ts';
import type { CompletionRequest } from '../../../schema/completion.ts';
import { decode } from '../../../schema/tokenizer.ts';
import { random } from '../../../trainer/random.ts';
import { alone, collect, config, image, never, promptOf, request, template, tokenizer } from './answers.ts';

function setUp(options: DecoderOptions = {}) {
  const decoder = loadDecoder(image, { slots: 8, rows: 16, ...options });
  const steps: { rows: number; wanted: number }[] = [];
  const { forward } = decoder;
  decoder.forward = (...args) => {
    steps.push({ rows: args[0].length, wanted: args[3].length });
    forward(...args);
  };
  return { decoder, complete: batcher(decoder, tokenizer, template), steps };
}
const rowsOf = (steps: { rows: number }[]) => steps.reduce((sum, { rows }) => sum + rows, 0);
const about = (content: string, over: Partial<CompletionRequest> = {}) =>
  request({ input: { messages: [{ role: 'user', content }] }, ...over });
const textOf = (seed: number, content?: string, over = {}) =>
  decode(tokenizer, alone(seed, over, content === undefined ? undefined : promptOf(content)).ids);
const endless = { logitBias: new Map([[config.eos_token_id, -100]]) };

test('many at once come out as each would alone, in few steps', async () => {
  const { complete, steps } = setUp();
  const contents = Array.from({ length: 8 }, (_, i) => `${'please '.repeat(i)}where is my order 4${i}7 ?`);
  const done = await Promise.all(contents.map((content, i) => collect(complete(about(content, { seed: i }), never))));
  for (const [i, { answers, promptTokens }] of done.entries()) {
    expect(promptTokens).toBe(promptOf(contents[i]!).length);
    expect(answers[0]!.text).toBe(textOf(i, contents[i]));
  }
  const tokens = done.map(({ answers }) => answers[0]!.completionTokens!);
  expect(steps.length).toBeLessThan(Math.max(...tokens) + 40);
  expect(Math.max(...steps.map(({ wanted }) => wanted))).toBeGreaterThan(4);
});

test('one that comes later joins at the next token, and its prompt holds nobody up', async () => {
  const { complete, steps } = setUp({ rows: 6 });
  const order: string[] = [];
  const first = collect(complete(request({ ...endless, maxTokens: 60 }), never), () => order.push('first'));
  while (order.length < 5) await new Promise((resolve) => setImmediate(resolve));
  const before = steps.length;
  const long = Array.from({ length: 18 }, (_, i) => `order ${i}`).join(' ');
  const second = collect(complete(about(long, { maxTokens: 4, seed: 2 }), never), () => order.push('second'));
  const { answers } = await second;
  expect(answers[0]!.text).toBe(textOf(2, long, { maxTokens: 4 }));
  const during = steps.slice(before);
  expect(during.length).toBeGreaterThan(10); // six rows at a time
  expect(during.every(({ rows, wanted }) => rows <= 6 && wanted >= 1)).toBe(true); // the first went on in each
  expect((await first).answers[0]!.completionTokens).toBe(60);
});

test('prompts that run at the same time have equal parts of a call', async () => {
  const { decoder, complete } = setUp({ rows: 16 });
  const calls: Map<number, number>[] = [];
  const { forward } = decoder;
  decoder.forward = (...args) => {
    const perStretch = new Map<number, number>();
    for (const start of args[2]) perStretch.set(start, (perStretch.get(start) ?? 0) + 1);
    calls.push(perStretch);
    forward(...args);
  };
  const words = (first: number, count: number) =>
    Array.from({ length: count }, (_, i) => `order ${first + i}`).join(' ');
  const asked = [words(100, 6), words(300, 12)];
  await Promise.all(asked.map((content, i) => collect(complete(about(content, { seed: i, maxTokens: 4 }), never))));
  const both = calls.filter((parts) => parts.size === 2 && [...parts.values()].every((rows) => rows > 1));
  expect(both.length).toBeGreaterThan(1);
  for (const parts of both.slice(0, -1)) expect([...parts.values()]).toEqual([8, 8]);
});

test('n choices run their prompt once, and so do requests that ask the same at the same time', async () => {
  const { complete, steps } = setUp();
  const { answers } = await collect(complete(request({ n: 6 }), never));
  expect(answers[0]!.text).toBe(textOf(5));
  expect(new Set(answers.map(({ text }) => text)).size).toBe(6);
  const tokens = answers.reduce((sum, { completionTokens }) => sum + completionTokens!, 0);
  const prompt = promptOf('where is my order 407 ?').length;
  expect(rowsOf(steps)).toBe(prompt - 1 + tokens);

  const fresh = setUp();
  const long = 'what does the invoice of the second of May say about the order that never came ?';
  const both = await Promise.all([1, 2].map((seed) => collect(fresh.complete(about(long, { seed }), never))));
  const ran = both.reduce((sum, { answers: [a] }) => sum + a!.completionTokens!, 0);
  expect(rowsOf(fresh.steps)).toBe(promptOf(long).length - 1 + ran);
});

test('the next turn of a chat runs what is new', async () => {
  const { complete, steps } = setUp();
  const chat = [{ role: 'user' as const, content: 'where is my order 407 ?' }];
  const { answers, promptTokens } = await collect(complete(request({ seed: 1 }), never));
  const before = rowsOf(steps);
  const next = [...chat, { role: 'assistant' as const, content: answers[0]!.text }, { ...chat[0]!, content: 'why ?' }];
  const second = await collect(complete(request({ input: { messages: next }, maxTokens: 1 }), never));
  expect(second.promptTokens).toBeGreaterThan(promptTokens);
  expect(rowsOf(steps) - before).toBeLessThanOrEqual(second.promptTokens - promptTokens + 1);
  const fresh = setUp();
  expect(await collect(fresh.complete(request({ input: { messages: next }, maxTokens: 1 }), never))).toEqual(second);
});

test('of two that want more choices than there is room for, both are under way', async () => {
  const { complete } = setUp({ slots: 4 });
  const order: number[] = [];
  const ask = (who: number) =>
    collect(complete(request({ ...endless, n: 8, seed: who, maxTokens: 20 }), never), (chunk) => {
      if (chunk.type === 'end') order.push(who);
    });
  const [first, second] = await Promise.all([ask(1), ask(2)]);
  expect(first.answers).toHaveLength(8);
  expect(second.answers).toHaveLength(8);
  expect(order.slice(0, 8).filter((who) => who === 2).length).toBeGreaterThanOrEqual(3);
});

/** Who has begun to answer, in that order. */
function askers(complete: ReturnType<typeof batcher>) {
  const began: string[] = [];
  const ask = (who: string, asked: CompletionRequest) =>
    collect(complete(asked, never), ({ type }) => {
      if (type === 'text' && !began.includes(who)) began.push(who);
    });
  const until = async (isSo: () => boolean) => {
    while (!isSo()) await new Promise((resolve) => setImmediate(resolve));
  };
  return { began, ask, until };
}
/** For one that fills the context, or some more that do not. */
const room = { context: 256, positions: 264 };

test('chats that may fill the context share it while they are short', async () => {
  const { complete } = setUp(room);
  const { began, ask, until } = askers(complete);
  const long = { ...endless, maxTokens: 200 };
  const first = ask('first', request(long));
  await until(() => began.length === 1);
  const second = ask('second', about('why ?', { maxTokens: 100, stop: ['e'], seed: 3 }));
  expect((await second).answers[0]!.finishReason).toBe('stop'); // long before it is as long as it may be
  let over = false;
  first.then(() => {
    over = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(over).toBe(false);
  const { answers } = await first;
  expect(answers[0]!.completionTokens).toBe(200);
  expect(answers[0]!.text).toBe((await collect(setUp().complete(request(long), never))).answers[0]!.text);
});

test('where the cache is full who began last pauses, and goes on where it was', async () => {
  const { complete, steps } = setUp(room);
  const asks = ['why ?', 'where is it ?', 'who has it ?'].map((content, seed) =>
    about(content, { ...endless, maxTokens: 200, seed }),
  );
  const ends: number[] = [];
  const together = await Promise.all(
    asks.map((asked, i) => collect(complete(asked, never), ({ type }) => type === 'end' && ends.push(i))),
  );
  expect(ends).toEqual([0, 1, 2]);
  for (const [i, asked] of asks.entries()) expect(together[i]).toEqual(await collect(setUp().complete(asked, never)));
  // They went on side by side as far as there was room, and what one that paused had run was run again once at most.
  expect(steps.length).toBeLessThan(2.5 * 200);
  const prompts = together.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
  expect(rowsOf(steps)).toBeLessThan(prompts + 3 * 200 + 2 * 100);
});

test('one that pauses can leave, and holds nobody up', async () => {
  const { complete, steps } = setUp(room);
  const leaving = new AbortController();
  let seen = 0;
  const first = collect(complete(about('why ?', { ...endless, maxTokens: 200 }), never));
  const second = collect(
    complete(about('who has it ?', { ...endless, maxTokens: 200 }), leaving.signal),
    ({ type }) => {
      if (type === 'text') seen++;
    },
  );
  const settled = Promise.allSettled([first, second]);
  let before = -1;
  while (before < seen) {
    before = seen; // while it gets on
    for (let k = 0; k < 5; k++) await new Promise((resolve) => setImmediate(resolve));
  }
  expect(seen).toBeGreaterThan(50);
  leaving.abort(new Error('gone'));
  const third = await collect(complete(request({ seed: 1, maxTokens: 3 }), never));
  expect(third.answers[0]!.completionTokens).toBeGreaterThan(0);
  const [one, other] = await settled;
  const count = steps.length;
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(steps.length).toBe(count); // nobody decodes for nobody
  expect(one).toMatchObject({ status: 'fulfilled', value: { answers: [{ completionTokens: 200 }] } });
  expect(other).toMatchObject({ status: 'rejected', reason: { message: 'gone' } });
});

test('one that needs much room gets its turn, however many small ones come after it', async () => {
  const { complete } = setUp(room);
  const { began, ask, until } = askers(complete);
  const first = ask('first', request({ ...endless, maxTokens: 60 }));
  await until(() => began.length === 1);
  const all: Promise<unknown>[] = [];
  all.push(ask('large', about('order '.repeat(180), { maxTokens: 60 })));
  for (let i = 0; i < 4; i++) all.push(ask(`small ${i}`, about('why ?', { maxTokens: 4, seed: i })));
  await first;
  expect(began).toEqual(['first']); // though there was room for the small ones
  await Promise.all(all);
  expect(began).toContain('large');
});

test('the next turn of a chat takes its place over where there is no room for both', async () => {
  const { complete, steps } = setUp({ context: 256, positions: 256 });
  const content = 'order '.repeat(110);
  const { answers, promptTokens } = await collect(complete(about(content, { ...endless, maxTokens: 20 }), never));
  const before = rowsOf(steps);
  const messages = [
    { role: 'user' as const, content },
    { role: 'assistant' as const, content: answers[0]!.text },
    { role: 'user' as const, content: 'why ?' },
  ];
  const next = request({ input: { messages }, maxTokens: 1 });
  const second = await collect(complete(next, never));
  expect(promptTokens + second.promptTokens).toBeGreaterThan(256);
  expect(rowsOf(steps) - before).toBeLessThanOrEqual(second.promptTokens - promptTokens + 1);
  expect(await collect(setUp().complete(next, never))).toEqual(second);
});

/** How many rows each of these runs, one after another. */
async function rowsOfEach({ complete, steps }: ReturnType<typeof setUp>, asks: CompletionRequest[]): Promise<number[]> {
  const ran: number[] = [];
  for (const asked of asks) {
    const before = rowsOf(steps);
    await collect(complete(asked, never));
    ran.push(rowsOf(steps) - before);
  }
  return ran;
}
const briefly = { maxTokens: 1 };
/** Of some four tokens more. */
const filling = (name: string, tokens = 85) => about(`${name} ${'order '.repeat(tokens)}`, briefly);

test('of what is idle the oldest is given up, and no more of it than there is need for', async () => {
  const [a, b, c, d] = ['why', 'where', 'who', 'who now'].map((name) => filling(name, 60)); // d begins like c
  const [, second, , , again, first] = await rowsOfEach(setUp(room), [a!, b!, c!, d!, b!, a!]);
  expect(second).toBeGreaterThan(50);
  expect(again).toBe(1); // it is there still
  expect(first).toBeGreaterThan(50);
});

test('the oldest of what is idle is that whose answer ended first, wherever it lies', async () => {
  const under = setUp(room);
  const longer = about(`why ${'order '.repeat(40)}`, { ...endless, maxTokens: 30 });
  const [brief, third] = [filling('where', 40), filling('who', 40)];
  const like = filling('who now', 80); // begins like the third, which is kept for it, and needs one of the others' room
  const running = collect(under.complete(longer, never));
  expect((await rowsOfEach(under, [brief, third])).length).toBe(2); // they lie behind the longer one, and end before it
  await running;
  const [, kept, gone] = await rowsOfEach(under, [like, { ...longer, maxTokens: 1 }, brief]);
  expect(kept).toBe(1);
  expect(gone).toBeGreaterThan(30);
});

test('who waits for what another is just running holds nobody up', async () => {
  const { complete } = setUp({ rows: 4 });
  const { began, ask } = askers(complete);
  const long = 'order '.repeat(60);
  const asks = { first: long, alike: long, other: 'why ?' };
  await Promise.all(Object.entries(asks).map(([who, content]) => ask(who, about(content, { maxTokens: 4 }))));
  expect(began[0]).toBe('other');
});

test('an answer that grows leaves what is idle where there is room beside it', async () => {
  const idle = filling('why');
  const growing = about('who ?', { ...endless, maxTokens: 130 });
  const [, , again] = await rowsOfEach(setUp(room), [idle, growing, idle]);
  expect(again).toBe(1);
});

test('what an answer that ended early did not need is free', async () => {
  const early = about('who ?', { maxTokens: 60, stop: ['e', 'a', 'o', 'i', ' '] });
  const large = { ...filling('where'), ...endless, maxTokens: 40 };
  const asks = [early, filling('why'), large, about('who ?', briefly), filling('why')];
  expect((await rowsOfEach(setUp(room), asks)).slice(3)).toEqual([1, 1]); // all of them have room
});

test('who waits for long is refused, and the others go on', async () => {
  const { complete } = setUp({ slots: 1 });
  const { began, ask, until } = askers(complete);
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const first = ask('first', request({ ...endless, maxTokens: 200 }));
  await until(() => began.length === 1);
  const second = Promise.allSettled([ask('second', about('why ?'))]);
  await vi.advanceTimersByTimeAsync(20_000);
  vi.useRealTimers();
  expect(((await second)[0] as PromiseRejectedResult).reason).toBeInstanceOf(DecoderBusy);
  expect((await first).answers[0]!.completionTokens).toBe(200);
});

test('one is cancelled: it stops within a token, the others go on, and its room is free again', async () => {
  const { complete, steps } = setUp({ slots: 2 });
  const leaving = new AbortController();
  const first = collect(complete(request({ ...endless, maxTokens: 90 }), leaving.signal), (chunk) => {
    if (chunk.type === 'text') leaving.abort(new Error('the client left'));
  });
  const second = collect(complete(request({ seed: 9 }), never));
  const third = collect(complete(request({ seed: 10 }), never));
  await expect(first).rejects.toThrow('the client left');
  for (const [seed, under] of [
    [9, second],
    [10, third],
  ] as const)
    expect((await under).answers[0]!.text).toBe(textOf(seed));
  expect(steps.length).toBeLessThan(80);
  for await (const chunk of complete(request(endless), never)) if (chunk.type === 'text') break;
  const count = steps.length;
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(steps.length).toBeLessThanOrEqual(count + 1); // nobody decodes for nobody
});

test('a queue that is full refuses, a prompt that is too long too, and what waits can leave', async () => {
  const { complete, steps } = setUp({ slots: 1 });
  const leaving = new AbortController();
  const many = Array.from({ length: 33 }, (_, i) =>
    collect(complete(request({ seed: i, maxTokens: 2 }), i === 20 ? leaving.signal : never)),
  );
  const settled = Promise.allSettled(many);
  leaving.abort(new Error('gone'));
  const results = await settled;
  expect(results.map(({ status }) => status).filter((status) => status === 'rejected')).toHaveLength(2);
  expect((results[20] as PromiseRejectedResult).reason.message).toBe('gone');
  const asked = rowsOf(steps);
  const others = setUp({ slots: 1 });
  const stayed = Array.from({ length: 32 }, (_, i) => i).filter((i) => i !== 20);
  await Promise.all(stayed.map((seed) => collect(others.complete(request({ seed, maxTokens: 2 }), never))));
  expect(asked).toBe(rowsOf(others.steps)); // nobody decoded for who left
  expect((results[32] as PromiseRejectedResult).reason).toBeInstanceOf(DecoderBusy);
  await expect(collect(complete(about('order '.repeat(600)), never))).rejects.toBeInstanceOf(ContextOverflow);
});

test('one that wants more choices than there is room for has begun: it takes no place in the queue', async () => {
  const { complete } = setUp({ slots: 1 });
  const ask = (_: unknown, seed: number) => collect(complete(request({ seed, maxTokens: 1 }), never));
  let others: Promise<PromiseSettledResult<unknown>[]> | undefined;
  const first = collect(complete(request({ ...endless, n: 2, maxTokens: 30 }), never), () => {
    others ??= Promise.allSettled(Array.from({ length: 33 }, ask));
  });
  expect((await first).answers).toHaveLength(2);
  const results = (await others)!;
  expect(results.map(({ status }) => status)).toEqual([...Array(32).fill('fulfilled'), 'rejected']);
});

test('a decoder that fails fails those under way, and serves who comes next', async () => {
  const { complete, decoder } = setUp();
  const { forward } = decoder;
  decoder.forward = () => {
    throw new RangeError('out of bounds');
  };
  const both = await Promise.allSettled([1, 2].map((seed) => collect(complete(request({ seed }), never))));
  expect(both.map((result) => (result as PromiseRejectedResult).reason.message)).toEqual([
    'out of bounds',
    'out of bounds',
  ]);
  decoder.forward = forward;
  expect((await collect(complete(request(), never))).answers[0]!.text).toBe(textOf(5));
});

test('one that pauses is failed with the others', async () => {
  const { complete, decoder, steps } = setUp(room);
  const { forward } = decoder;
  decoder.forward = (...args) => {
    if (steps.length > 180) throw new RangeError('out of bounds'); // one of them alone is under way by then
    forward(...args);
  };
  const asks = ['why ?', 'where ?'].map((content) => about(content, { ...endless, maxTokens: 220 }));
  const both = await Promise.allSettled(asks.map((asked) => collect(complete(asked, never))));
  expect(steps.at(-1)!.wanted).toBe(1);
  expect(both.map((result) => (result as PromiseRejectedResult).reason.message)).toEqual([
    'out of bounds',
    'out of bounds',
  ]);
});

test.each([1, 2, 3])('whoever comes and goes, in whatever order, gets what it would get alone (%i)', async (draw) => {
  // Room for about three answers, so that stretches of all lengths come and go, what is idle is given up and some pause.
  const { complete, decoder } = setUp({ slots: 6, context: 256, positions: 264 });
  const uniform = random(draw, 'batch');
  const below = (n: number) => Math.floor(uniform() * n);
  const starts = ['', 'about the order 407 that I asked you for on the third of May : '];
  const asks = Array.from({ length: 50 }, async (_, i) => {
    for (let k = below(2500); k > 0; k--) await new Promise((resolve) => setImmediate(resolve));
    const content = `${starts[below(2)]}${['where is it ?', 'why ?', 'who has it now, and who had it before ?'][below(3)]}`;
    const n = 1 + below(3);
    const maxTokens = 1 + below([40, 180][below(2)]!);
    const leaving = new AbortController();
    const leavesAfter = below(4) === 0 ? below(20) : -1;
    let seen = 0;
    const stream = complete(about(content, { n, seed: i, maxTokens }), leaving.signal);
    const under = collect(stream, () => {
      if (seen++ === leavesAfter) leaving.abort(new Error('left'));
    });
    try {
      const { answers } = await under;
      expect(answers).toHaveLength(n);
      expect(answers[0]!.text).toBe(textOf(i, content, { maxTokens }));
      return true;
    } catch (error) {
      if ((error as Error).message !== 'left') throw error;
      return false;
    }
  });
  const finished = (await Promise.all(asks)).filter(Boolean).length;
  expect(finished).toBeGreaterThan(30);
  expect(decoder.positions).toBe(264);
});
