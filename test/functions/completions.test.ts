import { createExecutionContext, waitOnExecutionContext } from 'cloudflare:test';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { app } from '../../functions/app.ts';
import { forget } from '../../functions/store/keys.ts';
import { importPolicy, makeRelease } from '../../functions/store/policies.ts';
import { ask, env, keyOf, respond } from './support.ts';
import { tinyPolicy } from './tiny.ts';

let sk = '';
let pk = '';
let stable = '';
let vocabulary = 0;
beforeAll(async () => {
  sk = await keyOf('sk');
  pk = await keyOf('pk');
  const { manifest, files } = await tinyPolicy();
  stable = manifest.id;
  vocabulary = manifest.config.vocab_size;
  await importPolicy(env.DB, env.BUCKET, manifest, files, 'stable');
});

const messages = [{ role: 'user', content: 'the quick' }];
const chat = (body: object = {}, key = sk, headers = {}) =>
  ask('POST', '/v1/chat/completions', { key, headers, body: { model: 'stable', messages, max_tokens: 8, ...body } });
// biome-ignore lint/suspicious/noExplicitAny: events of every shape
const events = (text: string): any[] =>
  text
    .split('\n\n')
    .filter((line) => line.startsWith('data: {'))
    .map((line) => JSON.parse(line.slice(6)));
const stored = async (id: string) => (await ask('GET', `/v1/samples/${id}`, { key: sk })).json;

describe('completions', () => {
  test('a chat answers as OpenAI does, with sample_id and feedback_token, and is stored', async () => {
    const { status, json } = await chat({ n: 2, seed: 3, user: 'ann', metadata: { page: 'one' } });
    expect(status, JSON.stringify(json)).toBe(200);
    expect(json).toMatchObject({
      object: 'chat.completion',
      model: stable,
      feedback_token: expect.stringMatching(/^v1\.new\./),
    });
    expect(json.id).toMatch(/^chatcmpl-/);
    expect(json.created).toBeCloseTo(Date.now() / 1000, -2);
    expect(json.usage.total_tokens).toBe(json.usage.prompt_tokens + json.usage.completion_tokens);
    expect(json.choices.map((c: { index: number }) => c.index)).toEqual([0, 1]);
    for (const choice of json.choices) {
      const sample = await stored(choice.sample_id);
      expect(sample).toMatchObject({
        text: choice.message.content,
        policy: stable,
        messages,
        metadata: { page: 'one' },
        finish_reason: choice.finish_reason,
      });
      expect(sample.user).toBe(sample.session);
    }
    const ids: string[] = json.choices.map((c: { sample_id: string }) => c.sample_id);
    const listed = (await ask('GET', '/v1/samples?limit=1000', { key: sk })).json.data as { id: string }[];
    expect(listed.map(({ id }) => id).filter((id) => ids.includes(id))).toEqual(ids);
    const vote = await ask('POST', '/v1/feedback', {
      key: pk,
      body: {
        kind: 'choice',
        sample_ids: json.choices.map((c: { sample_id: string }) => c.sample_id),
        winner: 'tie',
        token: json.feedback_token,
      },
    });
    expect(vote.status).toBe(201);
  });

  test('the same seed gives the same text, streamed or not, and temperature 0 is greedy', async () => {
    const text = async (body: object) => (await chat(body)).json.choices[0].message.content;
    expect(await text({ seed: 5 })).toBe(await text({ seed: 5 }));
    expect(await text({ seed: 5 })).not.toBe(await text({ seed: 6 }));
    expect(await text({ temperature: 0, seed: 5 })).toBe(await text({ temperature: 0, seed: 6 }));
    const streamed = events((await chat({ seed: 5, stream: true })).text);
    expect(streamed.map((e) => e.choices[0].delta.content ?? '').join('')).toBe(await text({ seed: 5 }));
  });

  test('top_k and min_p cut what may be drawn, and are stored with the sample where they were asked for', async () => {
    const draw = async (body: object) => {
      const [choice] = (await chat(body)).json.choices;
      return { text: choice.message.content as string, params: (await stored(choice.sample_id)).params };
    };
    const greedy = await draw({ temperature: 0, seed: 7 });
    for (const cut of [{ top_k: 1 }, { min_p: 1 }]) {
      const { text, params } = await draw({ ...cut, seed: 7 });
      expect(text).toBe(greedy.text);
      expect(params).toEqual({ temperature: 1, top_p: 1, seed: 7, ...cut });
    }
    expect(greedy.params).toEqual({ temperature: 0, top_p: 1, seed: 7 });
    expect((await chat({ top_k: -1 })).status).toBe(400);
    expect((await chat({ min_p: 1.5 })).status).toBe(400);
  });

  test('a stream names its samples in the first chunk and again in the last', async () => {
    const answer = await chat({ n: 2, stream: true, stream_options: { include_usage: true } });
    expect(answer.headers.get('Content-Type')).toMatch(/^text\/event-stream/);
    expect(answer.text.endsWith('data: [DONE]\n\n')).toBe(true);
    const all = events(answer.text);
    const [first, second] = all;
    expect(first.choices[0]).toMatchObject({
      index: 0,
      delta: { role: 'assistant', content: '' },
      finish_reason: null,
    });
    expect(second.choices[0].index).toBe(1);
    expect(first.feedback_token).toMatch(/^v1\./);
    const usage = all.at(-1);
    expect(usage.choices).toEqual([]);
    expect(usage.usage.completion_tokens).toBeGreaterThan(0);
    expect(first.usage).toBeNull();
    const closing = all.filter((e) => e.choices[0]?.finish_reason);
    expect(closing.map((e) => e.choices[0].sample_id)).toEqual([
      first.choices[0].sample_id,
      second.choices[0].sample_id,
    ]);
    for (const e of closing) {
      const { index, sample_id } = e.choices[0];
      const text = all.filter((o) => o.choices[0]?.index === index).map((o) => o.choices[0].delta.content ?? '');
      expect((await stored(sample_id)).text).toBe(text.join(''));
    }
  });

  test('the samples are in the database before the answer ends', async () => {
    const response = await respond('POST', '/v1/chat/completions', {
      key: sk,
      body: { model: 'stable', messages, stream: true, max_tokens: 6 },
    });
    const reader = response.body!.getReader();
    const seen: { text: string; stored: boolean }[] = [];
    let id = '';
    let text = '';
    for (let step = await reader.read(); !step.done; step = await reader.read())
      for (const e of events(new TextDecoder().decode(step.value))) {
        id ||= e.choices[0].sample_id;
        text += e.choices[0].delta.content ?? '';
        const row = await env.DB.prepare('SELECT text FROM samples WHERE id = ?').bind(id).first();
        seen.push({ text, stored: row !== null });
      }
    expect(text.length).toBeGreaterThan(0);
    expect(seen.filter((moment) => moment.text === text && !moment.stored)).toEqual([]);
    expect(seen.some((moment) => !moment.stored)).toBe(true);
  });

  test('a client that leaves stops the decoding; what was sent is stored as abort', async () => {
    const body = { model: 'stable', messages, stream: true, max_tokens: 100, logit_bias: { 1: -100 } };
    const response = await respond('POST', '/v1/chat/completions', { key: sk, body });
    const other = chat({ max_tokens: 30, logit_bias: { 1: -100 } });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    let id = '';
    for (let i = 0; i < 5; i++) {
      const { value } = await reader.read();
      for (const e of events(value!)) {
        id ||= e.choices[0].sample_id;
        text += e.choices[0].delta.content ?? '';
      }
    }
    await reader.cancel();
    await expect.poll(async () => (await stored(id)).finish_reason).toBe('abort');
    const sample = await stored(id);
    expect(sample.text.startsWith(text)).toBe(true);
    expect(sample.completion_tokens).toBeLessThan(20);
    expect((await other).json.usage.completion_tokens).toBe(30);
    // every slot is free again
    expect((await chat({ n: 16, max_tokens: 2 })).status).toBe(200);
  });

  test('a choice that had ended when the client left was not sent whole: it is stored as abort too', async () => {
    const body = { n: 2, max_tokens: 100, temperature: 2 };
    const tokensOf = async (seed: number) => {
      const { choices } = (await chat({ ...body, seed })).json;
      const drawn = await Promise.all(choices.map((choice: { sample_id: string }) => stored(choice.sample_id)));
      return drawn.map(({ completion_tokens }) => completion_tokens as number);
    };
    let seed = 0;
    let lengths = await tokensOf(seed);
    while (Math.abs(lengths[0]! - lengths[1]!) < 30) lengths = await tokensOf(++seed);
    const response = await respond('POST', '/v1/chat/completions', {
      key: sk,
      body: { model: 'stable', messages, ...body, seed, stream: true },
    });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    const ids = new Set<string>();
    for (let pieces = 0; pieces < 2 * Math.min(...lengths) + 12; ) {
      for (const e of events((await reader.read()).value!)) {
        if (e.choices[0].sample_id) ids.add(e.choices[0].sample_id);
        pieces++;
      }
    }
    await reader.cancel();
    for (const id of ids) await expect.poll(async () => (await stored(id)).finish_reason).toBe('abort');
    expect(ids.size).toBe(2);
  });

  test('a client that leaves while its answer is being stored finds it there', async () => {
    const begun = Promise.withResolvers<void>();
    const held = Promise.withResolvers<void>();
    let decoding = false;
    const DB = new Proxy(env.DB, {
      get: (target, name) =>
        name === 'batch' && decoding
          ? async (statements: D1PreparedStatement[]) => {
              begun.resolve();
              await held.promise;
              return target.batch(statements);
            }
          : Reflect.get(target, name).bind(target),
    });
    const context = createExecutionContext();
    const request = new Request('http://plumb.test/v1/chat/completions', {
      method: 'POST',
      headers: { Authorization: `Bearer ${sk}`, 'Content-Type': 'application/json' },
      body: JSON.stringify({ model: 'stable', messages, stream: true, max_tokens: 3 }),
    });
    const response = await app.fetch(request, { ...env, DB }, context);
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    decoding = true;
    const id = events((await reader.read()).value!)[0].choices[0].sample_id;
    const rest = (async () => {
      while (!(await reader.read()).done);
    })();
    await begun.promise;
    await reader.cancel();
    await rest;
    setTimeout(held.resolve, 100);
    // the Worker lives on as long as this, and no longer
    await waitOnExecutionContext(context);
    expect((await stored(id)).finish_reason).toMatch(/stop|length/);
  });

  test('store: false stores nothing and gives neither id nor token', async () => {
    const count = async () => (await env.DB.prepare('SELECT count(*) AS n FROM samples').first<{ n: number }>())!.n;
    const was = await count();
    for (const stream of [false, true]) {
      const { text } = await chat({ store: false, stream });
      expect(text).not.toMatch(/sample_id|feedback_token/);
    }
    expect(await count()).toBe(was);
  });

  test('who leaves before a stream has begun keeps none of the places', async () => {
    const real = crypto.subtle.sign.bind(crypto.subtle);
    let signed = 0;
    let leave = { at: 0, controller: new AbortController() };
    const spy = vi.spyOn(crypto.subtle, 'sign').mockImplementation((...given) => {
      if (++signed === leave.at) leave.controller.abort();
      return real(...given);
    });
    try {
      const body = { model: stable, messages, max_tokens: 100, stream: true };
      const stream = (signal: AbortSignal) => respond('POST', '/v1/chat/completions', { key: sk, body, signal });
      let last = 0; // of the feedback's token: the decoder has begun, and nothing of the answer is out
      for (const _ of ['whatever is signed once alone', 'the others']) {
        signed = 0;
        const response = await stream(leave.controller.signal);
        last = signed;
        await response.text();
      }
      for (let i = 0; i < 20; i++) {
        signed = 0;
        leave = { at: last, controller: new AbortController() };
        await stream(leave.controller.signal).catch(() => {});
        expect(leave.controller.signal.aborted).toBe(true);
      }
    } finally {
      spy.mockRestore();
    }
    expect((await chat()).status).toBe(200);
  });

  test('plain completions, their log-probabilities and stop strings', async () => {
    const complete = (body: object) =>
      ask('POST', '/v1/completions', { key: sk, body: { model: stable, prompt: 'the lazy', max_tokens: 6, ...body } });
    const { status, json } = await complete({ logprobs: 2, seed: 1 });
    expect(status, JSON.stringify(json)).toBe(200);
    expect(json).toMatchObject({ object: 'text_completion', model: stable });
    const { tokens, token_logprobs, top_logprobs, text_offset } = json.choices[0].logprobs;
    expect(tokens.join('')).toBe(json.choices[0].text);
    expect(token_logprobs.every((value: number) => value <= 0)).toBe(true);
    for (const [i, token] of tokens.entries()) {
      expect(top_logprobs[i][token]).toBe(token_logprobs[i]); // the drawn one is always there
      const others = Object.keys(top_logprobs[i]).filter((one) => one !== token);
      expect([1, 2]).toContain(others.length);
    }
    expect(text_offset[0]).toBe(0);
    const { text } = await complete({ logprobs: 0, seed: 1, stream: true });
    const streamed = events(text).flatMap(({ choices }) => choices[0].logprobs?.text_offset ?? []);
    expect(streamed).toEqual(text_offset);
    const whole = json.choices[0].text as string;
    const stop = whole.slice(2, 4);
    const cut = await complete({ seed: 1, stop });
    const many = await complete({ stop: ['a', 'b', 'c', 'd', 'e'] });
    expect([many.status, many.json.error.message]).toEqual([
      400,
      'the body is malformed: stop: must be a string, or up to four',
    ]);
    expect(cut.json.choices[0]).toMatchObject({ text: whole.slice(0, whole.indexOf(stop)), finish_reason: 'stop' });
    const inChat = await chat({ logprobs: true, top_logprobs: 1 });
    expect(inChat.json.choices[0].logprobs.content[0].top_logprobs).toHaveLength(1);
  });
});

describe('response_format json_object', () => {
  const response_format = { type: 'json_object' };
  test('gives one JSON object, whole or streamed, and the sample says so', async () => {
    const { json } = await chat({ response_format, max_tokens: 20, n: 3 });
    for (const { message, finish_reason, sample_id } of json.choices) {
      expect(JSON.parse(message.content)).toBeInstanceOf(Object);
      expect(finish_reason).toBe('stop');
      const { params } = (await ask('GET', `/v1/samples/${sample_id}`, { key: sk })).json;
      expect(params.response_format).toEqual(response_format);
    }
    const { text } = await chat({ response_format, max_tokens: 20, stream: true });
    const pieces = text
      .split('\n\n')
      .filter((event) => event.startsWith('data: {'))
      .map((event) => JSON.parse(event.slice(6)).choices[0]?.delta.content ?? '');
    expect(JSON.parse(pieces.join(''))).toBeInstanceOf(Object);
    expect((await chat({ response_format: { type: 'text' } })).status).toBe(200);
  });

  test('wants room for an object', async () => {
    const { status, json } = await chat({ response_format, max_tokens: 1 });
    expect([status, json.error.param]).toEqual([400, 'max_tokens']);
    expect(json.error.message).toBe('max_tokens must be 2 at least: an object takes as many');
    const { json: newer } = await chat({ response_format, max_completion_tokens: 1 });
    expect(newer.error.param).toBe('max_completion_tokens');
  });
});

describe('what is refused, in OpenAI’s words', () => {
  test('unsupported fields by their param, impossible values, and unknown models', async () => {
    for (const [param, body] of Object.entries({
      tools: { tools: [{}] },
      response_format: { response_format: { type: 'json_schema', json_schema: {} } },
      audio: { audio: {} },
      'messages[0].content': {
        messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }],
      },
      presence_penalty: { presence_penalty: 1 },
    })) {
      const { status, json } = await chat(body);
      expect([status, json.error.code, json.error.param], param).toEqual([400, 'unsupported_parameter', param]);
    }
    const text = (body: object) =>
      ask('POST', '/v1/completions', { key: sk, body: { model: 'stable', prompt: 'a', ...body } });
    expect((await text({ echo: true })).json.error.param).toBe('echo');
    expect((await text({ suffix: 'x' })).json.error.param).toBe('suffix');
    for (const prompt of [
      ['a', 'b'],
      [1, 2],
    ])
      expect((await text({ prompt })).json.error).toMatchObject({
        param: 'prompt',
        code: 'unsupported_parameter',
        message: 'prompt is one string here: several, or token ids, are not supported',
      });
    expect((await chat({ top_logprobs: 2 })).json.error.message).toMatch(/: top_logprobs: needs logprobs$/);
    for (const body of [
      { n: 17 },
      { stop: ['a', 'b', 'c', 'd', 'e'] },
      { temperature: 3 },
      { top_logprobs: 2 },
      { max_tokens: 0 },
      { messages: [] },
      { logit_bias: { 9999: 1 } },
    ])
      expect((await chat(body)).status, JSON.stringify(body)).toBe(400);
    const said = async (content: unknown) => (await chat({ messages: [{ role: 'user', content }] })).json.error;
    expect(await said(5)).toMatchObject({
      param: 'messages[0].content',
      message: expect.stringContaining('expected string, received number, or expected array'),
    });
    expect((await said('half a pair: \ud800')).message).toContain('surrogate');
    expect((await said([{ type: 'text', text: 5 }])).param).toBe('messages[0].content[0].text');
    expect((await chat({ logit_bias: { [vocabulary - 1]: 1 } })).status).toBe(200);
    expect((await chat({ logit_bias: { [vocabulary]: 1 } })).status).toBe(400);
    const room = 128 - (await chat()).json.usage.prompt_tokens;
    expect((await chat({ max_tokens: room })).status).toBe(200);
    expect((await chat({ max_tokens: room + 1 })).status).toBe(400);
    const long = await chat({ max_tokens: 129 });
    expect([long.status, long.json.error]).toMatchObject([
      400,
      { param: 'max_tokens', code: 'context_length_exceeded' },
    ]);
    const prompt = await chat({ messages: [{ role: 'user', content: 'x'.repeat(500) }] });
    expect([prompt.status, prompt.json.error]).toMatchObject([
      400,
      {
        param: 'messages',
        code: 'context_length_exceeded',
        message: expect.stringMatching(/^the prompt has \d+ tokens;/),
      },
    ]);
    for (const model of ['nobody', 'pol_01ARZ3NDEKTSV4RRFFQ69G5FAV', 'canary']) {
      const { status, json } = await chat({ model });
      expect([status, json.error.code, json.error.param]).toEqual([404, 'model_not_found', 'model']);
      expect(json.error.message).toBe(`model "${model}" is not a policy or channel here`);
    }
    const keyless = await ask('POST', '/v1/chat/completions', { body: {} });
    expect([keyless.status, keyless.json.error.code]).toEqual([401, 'invalid_api_key']);
  });

  test('unknown fields and nulls count as absent', async () => {
    const { status } = await chat({
      mood: 'good',
      temperature: null,
      stop: null,
      messages: [{ role: 'user', content: 'hi', name: null }],
    });
    expect(status).toBe(200);
  });

  test('pages get less', async () => {
    for (const body of [
      { messages: [{ role: 'system', content: 'be' }, ...messages] },
      { logprobs: true },
      { n: 5 },
      { model: stable },
    ])
      expect((await chat(body, pk)).status, JSON.stringify(body)).toBe(403);
    expect((await chat({ n: 4 }, pk)).json.choices).toHaveLength(4);
    // of tokens 1024: what is asked beyond is not counted
    for (const limit of ['max_tokens', 'max_completion_tokens'])
      for (const [key, counted] of [
        [sk, 5000],
        [pk, 1024],
      ] as const)
        expect((await chat({ [limit]: 5000 }, key)).json.error.message).toMatch(`${counted} and a prompt of`);
  });
});

describe('sessions', () => {
  test('a page keeps its session by the token it was given', async () => {
    const first = await chat({}, pk);
    expect(first.json.session_token).toMatch(/^v1\./);
    const headers = { 'Plumb-Session': first.json.session_token };
    const second = await chat({ user: 'ignored' }, pk, headers);
    expect(second.json.session_token).toBeUndefined();
    const [a, b] = [await stored(first.json.choices[0].sample_id), await stored(second.json.choices[0].sample_id)];
    expect([b.session, b.user]).toEqual([a.session, null]);
    const made = await ask('POST', '/v1/sessions', { key: pk });
    expect(made.status).toBe(201);
    expect((await chat({}, pk, { 'Plumb-Session': made.json.session_token })).status).toBe(200);
    expect((await chat({}, pk, { 'Plumb-Session': first.json.feedback_token })).status).toBe(401);
  });
});

describe('Idempotency-Key', () => {
  test('draws once, streamed too', async () => {
    for (const stream of [false, true]) {
      const headers = { 'Idempotency-Key': `draw ${stream}` };
      const first = await chat({ stream }, sk, headers);
      const again = await chat({ stream }, sk, headers);
      expect(again.text).toBe(first.text);
      expect(again.headers.get('Idempotent-Replayed')).toBe('true');
      expect(again.headers.get('Content-Type')).toBe(first.headers.get('Content-Type'));
    }
    expect((await chat({ n: 99 }, sk, { 'Idempotency-Key': 'bad' })).status).toBe(400);
    expect((await chat({ model: 'nobody' }, sk, { 'Idempotency-Key': 'bad' })).status).toBe(404);
    expect((await chat({}, sk, { 'Idempotency-Key': 'bad' })).status).toBe(200);
    expect((await chat({}, 'sk_unknown', { 'Idempotency-Key': 'nobody' })).status).toBe(401);
    expect((await chat({}, await keyOf('sk', ['read']), { 'Idempotency-Key': 'nobody' })).status).toBe(403);
    const { results } = await env.DB.prepare('SELECT status FROM requests').all();
    expect(results.map((row) => row.status)).toEqual([200, 200, 200]);
  });
});

describe('a key that is in use', () => {
  test('is 409 while the first is under way, and free again once that was broken off', async () => {
    const headers = { 'Idempotency-Key': 'under way' };
    const body = { model: 'stable', messages, stream: true, max_tokens: 60, logit_bias: { 1: -100 } };
    const first = await respond('POST', '/v1/chat/completions', { key: sk, body, headers });
    const reader = first.body!.getReader();
    await reader.read();
    // a request that is refused with the same key frees nothing that is not its own
    expect((await chat({ n: 99 }, sk, headers)).status).toBe(400);
    const second = await ask('POST', '/v1/chat/completions', { key: sk, body, headers });
    expect([second.status, second.headers.get('Retry-After')]).toEqual([409, '1']);
    await reader.cancel();
    const status = async () => (await ask('POST', '/v1/chat/completions', { key: sk, body, headers })).status;
    await expect.poll(status).toBe(200);
  });

  test('is free again five minutes after its Worker died', async () => {
    const headers = { 'Idempotency-Key': 'died' };
    await chat({}, sk, headers);
    const claimed = (secondsAgo: number) =>
      env.DB.prepare('UPDATE requests SET status = NULL, type = NULL, response = NULL, created_at = ?')
        .bind(new Date(Date.now() - secondsAgo * 1000).toISOString())
        .run();
    await claimed(270);
    expect((await chat({}, sk, headers)).status).toBe(409);
    await claimed(301);
    const next = await chat({}, sk, headers);
    expect([next.status, next.headers.get('Idempotent-Replayed')]).toEqual([200, null]);
  });

  test('gives its answer again for 24 hours, and is free after them', async () => {
    const headers = { 'Idempotency-Key': 'a day' };
    const first = await chat({}, sk, headers);
    const answered = (secondsAgo: number) =>
      env.DB.prepare('UPDATE requests SET created_at = ?')
        .bind(new Date(Date.now() - secondsAgo * 1000).toISOString())
        .run();
    await answered(24 * 3600 - 60);
    const again = await chat({}, sk, headers);
    expect([again.headers.get('Idempotent-Replayed'), again.json]).toEqual(['true', first.json]);
    await answered(24 * 3600 + 1);
    const next = await chat({}, sk, headers);
    expect([next.headers.get('Idempotent-Replayed'), next.json.id === first.json.id]).toEqual([null, false]);
  });
});

describe('models and releases', () => {
  test('default is the released mix: raising the canary’s share keeps everyone in', async () => {
    const canary = await tinyPolicy(9);
    await importPolicy(env.DB, env.BUCKET, canary.manifest, canary.files);
    const users = Array.from({ length: 12 }, (_, i) => `user ${i}`);
    const inCanary = async (share: number) => {
      await makeRelease(env.DB, 'test', { channel: 'canary', policy: canary.manifest.id, share }, () => []);
      forget(env.DB);
      const models: string[] = [];
      for (const user of users) models.push((await chat({ model: 'default', user, max_tokens: 1 })).json.model);
      return users.filter((_, i) => models[i] === canary.manifest.id);
    };
    expect(await inCanary(0)).toEqual([]);
    const some = await inCanary(0.5);
    expect(some.length).toBeGreaterThan(0);
    expect(some.length).toBeLessThan(12);
    expect(await inCanary(0.8)).toEqual(expect.arrayContaining(some));
    expect(await inCanary(1)).toEqual(users);
    await env.DB.prepare("DELETE FROM releases WHERE channel = 'canary'").run();
    await env.DB.prepare('DELETE FROM policies WHERE id = ?').bind(canary.manifest.id).run();
    forget(env.DB);
  });

  test('are listed; to pages only the channels', async () => {
    const all = await ask('GET', '/v1/models', { key: sk });
    expect(all.json.data.map((m: { id: string }) => m.id)).toEqual(['stable', 'default', stable]);
    const few = await ask('GET', '/v1/models', { key: pk });
    expect(few.json.data.map((m: { id: string }) => m.id)).toEqual(['stable', 'default']);
    expect((await ask('GET', `/v1/models/${stable}`, { key: sk })).json).toMatchObject({ object: 'model', id: stable });
    const none = await ask('GET', '/v1/models/nobody', { key: sk });
    expect([none.status, none.json.error]).toMatchObject([
      404,
      { code: 'model_not_found', message: 'model "nobody" is not a policy or channel here' },
    ]);
  });

  test('a release is served within two seconds; one that cannot be loaded leaves the last good one', async () => {
    const next = await tinyPolicy(2);
    await importPolicy(env.DB, env.BUCKET, next.manifest, next.files, 'stable');
    await expect.poll(async () => (await chat()).json.model, { timeout: 2000 }).toBe(next.manifest.id);

    const broken = await tinyPolicy(3);
    await importPolicy(env.DB, env.BUCKET, broken.manifest, broken.files);
    const edge = broken.manifest.files.find(({ name }) => name === 'edge.bin')!;
    // one bit of a weight, which any decoder would take
    const damaged = new Uint8Array(broken.files['edge.bin']!);
    damaged[damaged.length - 1]! ^= 1;
    await env.BUCKET.put(`blobs/sha256/${edge.sha256}`, damaged);
    await makeRelease(env.DB, 'test', { channel: 'stable', policy: broken.manifest.id }, () => []);
    await new Promise((resolve) => setTimeout(resolve, 1200));
    const { status, json } = await chat();
    expect([status, json.model]).toEqual([200, next.manifest.id]);
  });
});
