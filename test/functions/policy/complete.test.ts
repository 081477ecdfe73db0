// `Complete` on the wasm decoder: text as promised by schema/completion.ts, streams side by side, and what a client that
// leaves or asks too much gets.
import { setImmediate as turn } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { ContextOverflow, DecoderBusy } from '../../../functions/policy/choice.ts';
import { completer } from '../../../functions/policy/complete.ts';
import type { DecoderOptions } from '../../../functions/policy/decoder.ts';
import { loadDecoder } from '../../../functions/policy/node.ts';
import { logSumExp } from '../../../functions/policy/sample.ts';
import { decode, encode, streamDecoder } from '../../../schema/tokenizer.ts';
import {
  type Answer,
  alone,
  collect,
  config,
  image,
  never,
  promptOf,
  request,
  template,
  tokenizer,
} from './answers.ts';

function setUp(options: DecoderOptions = {}) {
  const decoder = loadDecoder(image, { slots: 4, ...options });
  return { decoder, complete: completer(decoder, tokenizer, template) };
}
const prompt = promptOf('where is my order 407 ?');

test('the text is what the trainer’s generate gives for the same seed, and the same again', async () => {
  const { complete } = setUp();
  for (const over of [{}, { temperature: 0 }]) {
    const { promptTokens, answers } = await collect(complete(request(over), never));
    const expected = alone(5, over);
    expect(promptTokens).toBe(prompt.length);
    expect(answers).toHaveLength(1);
    expect(answers[0]!.text).toBe(decode(tokenizer, expected.ids));
    expect(answers[0]!.completionTokens).toBe(expected.ids.length);
    expect(answers[0]!.finishReason).toBe(expected.finish);
    expect((await collect(complete(request(over), never))).answers).toEqual(answers);
  }
  const other = await collect(complete(request({ seed: 6 }), never));
  expect(other.answers[0]!.text).not.toBe(decode(tokenizer, alone(5).ids));
});

test('n choices share the prompt, differ, and do not depend on how many slots there are', async () => {
  const all = await collect(setUp({ slots: 12 }).complete(request({ n: 6 }), never));
  expect(new Set(all.answers.map((a) => a.text)).size).toBe(6);
  expect(all.answers[0]!.text).toBe(decode(tokenizer, alone(5).ids));
  const runs: number[] = [];
  for (const slots of [1, 2, 5]) {
    const { decoder, complete } = setUp({ slots });
    let rows = 0;
    const { forward } = decoder;
    decoder.forward = (...args) => {
      rows += args[0].length;
      forward(...args);
    };
    const texts = (await collect(complete(request({ n: 6 }), never))).answers.map(
      ({ text, finishReason, completionTokens }) => ({ text, finishReason, completionTokens }),
    );
    expect(texts).toEqual(
      all.answers.map(({ text, finishReason, completionTokens }) => ({ text, finishReason, completionTokens })),
    );
    runs.push(rows);
  }
  const tokens = all.answers.reduce((sum, a) => sum + a.completionTokens!, 0);
  expect(runs).toEqual(runs.map(() => prompt.length - 1 + tokens)); // the prompt once
});

test('no piece ends inside a character', async () => {
  const { complete } = setUp();
  // Bytes of several characters, one after another, by force of bias.
  const bytes = encode(tokenizer, '日🙂é');
  for (let seed = 0; seed < 12; seed++) {
    const { answers } = await collect(
      complete(request({ seed, logitBias: new Map(bytes.map((id) => [id, 30])) }), never),
    );
    const [answer] = answers;
    expect(answer!.pieces.join('')).toBe(answer!.text);
    for (const piece of answer!.pieces) expect(piece.isWellFormed()).toBe(true);
  }
});

const [kettle] = encode(tokenizer, 'kettle') as [number];

test('a stop string is found across tokens, and neither it nor any part of it comes out', async () => {
  const { complete } = setUp();
  const { ids } = alone(5);
  const whole = decode(tokenizer, ids);
  const next = streamDecoder(tokenizer);
  let length = 0;
  const begins = ids.map((id) => {
    const begin = length;
    length += next(id).length;
    return begin;
  });
  for (let from = 1; from + 4 < whole.length; from += 3) {
    const stop = whole.slice(from, from + 4);
    const at = whole.indexOf(stop);
    const { answers } = await collect(complete(request({ stop: ['\u0007never', stop], topLogprobs: 0 }), never));
    expect(answers[0]).toMatchObject({ text: whole.slice(0, at), finishReason: 'stop' });
    // of its tokens those are told of that begin before it
    expect(answers[0]!.logprobs).toHaveLength(begins.filter((start) => start < at).length);
  }
  // Of two that one token brings, the earlier counts, in whatever order they were named.
  const wide = decode(tokenizer, [kettle]);
  const both = request({ stop: [wide.slice(3, 5), wide.slice(1, 3)], logitBias: new Map([[kettle, 100]]) });
  expect((await collect(complete(both, never))).answers[0]!.text).toBe(wide.slice(0, 1));
  // What only looked like the beginning of one is given back.
  const near = `${whole.slice(3, 6)}\u0007`;
  expect((await collect(complete(request({ stop: [near] }), never))).answers[0]!.text).toBe(whole);
});

const bias = new Map([
  [kettle, 4],
  [config.eos_token_id, -100],
]);
test.each([
  ['', undefined],
  [', whatever the bias', bias],
])('log-probabilities are the model’s own, for each token, with the likeliest beside them%s', async (_, logitBias) => {
  const { complete, decoder } = setUp();
  const asked = request({ topLogprobs: 3, temperature: 0.7, topP: 0.9, ...(logitBias && { logitBias }) });
  const { answers } = await collect(complete(asked, never));
  const [{ logprobs, text, completionTokens, finishReason }] = answers as [Answer];
  expect(logprobs.length).toBe(completionTokens! - (finishReason === 'stop' ? 1 : 0));
  expect(new TextDecoder().decode(Uint8Array.from(logprobs.flatMap((l) => l.bytes)))).toBe(text);
  const ids = [...prompt];
  for (const { bytes, logprob, top } of logprobs) {
    decoder.forward(
      ids,
      [...ids.keys()],
      ids.map(() => 0),
      [ids.length - 1],
    );
    const logits = decoder.logits(0);
    const id = [...Array(tokenizer.size).keys()].findIndex(
      (i) => Buffer.compare(tokenizer.bytesOf(i) ?? new Uint8Array(), Uint8Array.from(bytes)) === 0,
    );
    expect(logprob).toBeCloseTo(logits[id]! - logSumExp(logits), 6);
    expect(top).toHaveLength(3);
    expect(top[0]!.logprob).toBeCloseTo(Math.max(...logits) - logSumExp(logits), 6);
    expect(top[0]!.logprob).toBeGreaterThanOrEqual(top[1]!.logprob);
    ids.push(id);
  }
  expect((await collect(complete(request({ topLogprobs: 0 }), never))).answers[0]!.logprobs[0]!.top).toEqual([]);
});

test('a token’s log-probability comes with its text, though part of that was held back', async () => {
  const { complete } = setUp();
  const either = new Map([...'ex'].map((letter) => [tokenizer.byteIds[letter.charCodeAt(0)]!, 1000]));
  const asked = request({ logitBias: either, topLogprobs: 0, maxTokens: 60, stop: ['e\u0007'] });
  let text = '';
  const told: number[] = [];
  await collect(complete(asked, never), (chunk) => {
    if (chunk.type !== 'text') return;
    text += chunk.text;
    told.push(...chunk.logprobs!.flatMap(({ bytes }) => bytes));
    expect(new TextDecoder().decode(Uint8Array.from(told))).toBe(text);
  });
  expect(text).toMatch(/^(?=.*ex)(?=.*xe)[ex]{60}$/);
});

test('tokens that write nothing have their log-probabilities at the end', async () => {
  const silent = tokenizer.added.get('<|user|>')!.id;
  const asked = request({ topLogprobs: 0, maxTokens: 2, logitBias: new Map([[silent, 1000]]) });
  const [{ text, logprobs }] = (await collect(setUp().complete(asked, never))).answers as [Answer];
  expect([text, logprobs.length]).toEqual(['', 2]);
});

test('of a character that max_tokens cut in two there is U+FFFD, and its token’s log-probability', async () => {
  const half = tokenizer.byteIds[0xc3]!;
  const asked = request({ topLogprobs: 0, maxTokens: 2, logitBias: new Map([[half, 1000]]) });
  const [{ text, logprobs, finishReason }] = (await collect(setUp().complete(asked, never))).answers as [Answer];
  expect([text, finishReason]).toEqual(['\uFFFD\uFFFD', 'length']);
  expect(logprobs.map(({ bytes }) => bytes)).toEqual([[0xc3], [0xc3]]);
});

test('a bias forbids and commands', async () => {
  const { complete } = setUp();
  const [wanted] = encode(tokenizer, 'kettle');
  const forced = await collect(complete(request({ logitBias: new Map([[wanted!, 100]]), maxTokens: 5 }), never));
  expect(forced.answers[0]!.text).toBe(decode(tokenizer, [wanted!, wanted!, wanted!, wanted!, wanted!]));
  const first = alone(5).ids[0]!;
  const forbidden = await collect(
    complete(
      request({
        logitBias: new Map([
          [first, -100],
          [99_999, 5],
        ]),
        maxTokens: 1,
      }),
      never,
    ),
  );
  expect(forbidden.answers[0]!.text).not.toBe(decode(tokenizer, [first]));
});

test('two streams at once: one is cancelled and stops within a token, the other finishes as if alone', async () => {
  const { complete, decoder } = setUp({ slots: 2 });
  const leaving = new AbortController();
  const order: string[] = [];
  const first = collect(
    complete(request({ logitBias: new Map([[config.eos_token_id, -100]]) }), leaving.signal),
    (chunk) => {
      order.push('a');
      if (chunk.type === 'text' && order.length > 6) leaving.abort(new Error('the client left'));
    },
  );
  const second = collect(complete(request({ seed: 9 }), never), () => order.push('b'));
  await expect(first).rejects.toThrow('the client left');
  const after = order.filter((who) => who === 'a').length;
  const { answers } = await second;
  expect(answers[0]!.text).toBe(decode(tokenizer, alone(9).ids));
  expect(order.filter((who) => who === 'a').length).toBe(after);
  expect(order.slice(0, 6)).toContain('b'); // they took turns
  expect(order.slice(0, 6)).toContain('a');
  // Both slots are free again: each of two requests has one while the other still holds its own.
  expect(decoder.slots).toBe(2);
  const both = [1, 2].map((seed) => complete(request({ seed }), never)[Symbol.asyncIterator]());
  for (const held of both) expect((await held.next()).value).toMatchObject({ type: 'prompt' });
  for (const held of both) await held.return!();
});

test('a consumer that stops reading frees its slot; one that comes too many waits its turn', async () => {
  const { complete } = setUp({ slots: 1 });
  for await (const chunk of complete(request(), never)) if (chunk.type === 'text') break;
  const three = await Promise.all([1, 2, 3].map((seed) => collect(complete(request({ seed }), never))));
  expect(three.map(({ answers: [a] }) => a!.text)).toEqual([1, 2, 3].map((seed) => decode(tokenizer, alone(seed).ids)));
});

test('when no slot comes free the request is refused as busy, and a waiting one can be cancelled', async () => {
  const { complete } = setUp({ slots: 1 });
  const holder = complete(request(), never)[Symbol.asyncIterator]();
  await holder.next();
  const waiting = new AbortController();
  const cancelled = collect(complete(request(), waiting.signal));
  const refused = collect(complete(request(), never));
  setTimeout(() => waiting.abort(new Error('gone')), 30);
  await expect(cancelled).rejects.toThrow('gone');
  await expect(refused).rejects.toBeInstanceOf(DecoderBusy);
  await holder.return!();
  expect((await collect(complete(request(), never))).answers).toHaveLength(1);
});

test('one request takes half of the slots at most: of two that want them all, both are under way', async () => {
  const { complete } = setUp({ slots: 4 });
  const wanting = request({ n: 4 });
  const first = complete(wanting, never)[Symbol.asyncIterator]();
  await first.next();
  const second = complete(wanting, never)[Symbol.asyncIterator]();
  expect((await second.next()).value).toMatchObject({ type: 'prompt' });
  await Promise.all([first.return!(), second.return!()]);
});

test('what stood still for a minute loses its slot, and does not free it for a third by ending', async () => {
  const { complete } = setUp({ slots: 1 });
  const started = async () => {
    const chunks = complete(request(), never)[Symbol.asyncIterator]();
    await chunks.next();
    return chunks;
  };
  vi.useFakeTimers({ toFake: ['Date'] });
  try {
    const former = await started();
    vi.setSystemTime(Date.now() + 61_000);
    const owner = await started();
    await expect(former.next()).rejects.toThrow('lost its slot');
    const third = started();
    vi.setSystemTime(Date.now() + 6000);
    await expect(third).rejects.toBeInstanceOf(DecoderBusy);
    await owner.return!();
    await (await started()).return!();
  } finally {
    vi.useRealTimers();
  }
});

test('what goes on keeps its slot, however long it takes', async () => {
  const { complete } = setUp({ slots: 1 });
  vi.useFakeTimers({ toFake: ['Date'] });
  try {
    const long = complete(request({ logitBias: new Map([[config.eos_token_id, -100]]) }), never)[
      Symbol.asyncIterator
    ]();
    await long.next();
    for (let i = 0; i < 3; i++) {
      vi.setSystemTime(Date.now() + 40_000);
      expect((await long.next()).value).toMatchObject({ type: 'text' });
    }
    const other = complete(request(), never)[Symbol.asyncIterator]().next();
    await turn();
    expect((await long.next()).value).toMatchObject({ type: 'text' });
    vi.setSystemTime(Date.now() + 6000);
    await expect(other).rejects.toBeInstanceOf(DecoderBusy);
    await long.return!();
  } finally {
    vi.useRealTimers();
  }
});

test('a prompt that fills the context is refused; where it leaves a token, that is the answer', async () => {
  const full = setUp({ context: prompt.length }).complete(request(), never);
  await expect(collect(full)).rejects.toBeInstanceOf(ContextOverflow);
  const { answers } = await collect(setUp({ context: prompt.length + 1 }).complete(request(), never));
  expect(answers[0]!.completionTokens).toBe(1);
});

test('an aborted signal starts nothing; a prompt beyond the context is a typed error; the context ends an answer', async () => {
  const { complete } = setUp({ context: 40 });
  await expect(collect(complete(request(), AbortSignal.abort(new Error('before'))))).rejects.toThrow('before');
  const long = request({ input: { prompt: 'where is my order 407 ? '.repeat(20) } });
  await expect(collect(complete(long, never))).rejects.toSatisfy(
    (error) => error instanceof ContextOverflow && error.context === 40 && error.promptTokens > 40,
  );
  const { answers, promptTokens } = await collect(
    complete(request({ maxTokens: 500, logitBias: new Map([[config.eos_token_id, -100]]) }), never),
  );
  expect(answers[0]).toMatchObject({ finishReason: 'length', completionTokens: 40 - promptTokens });
});

test('a bare prompt is text and nothing else, and may be empty', async () => {
  const { complete } = setUp();
  const { promptTokens } = await collect(complete(request({ input: { prompt: '<|user|>hi<|end|>' } }), never));
  expect(promptTokens).toBe(encode(tokenizer, '<|user|>hi<|end|>').length);
  expect((await collect(complete(request({ input: { prompt: '' } }), never))).promptTokens).toBe(1);
});

test('the event loop runs between tokens', async () => {
  const { complete } = setUp();
  let ticks = 0;
  let running = true;
  const beat = (async () => {
    while (running) {
      await turn();
      ticks++;
    }
  })();
  await collect(complete(request({ maxTokens: 60, logitBias: new Map([[config.eos_token_id, -100]]) }), never));
  running = false;
  await beat;
  expect(ticks).toBeGreaterThan(30);
});
