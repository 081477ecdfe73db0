import { beforeAll, describe, expect, test } from 'vitest';
import { DATASETS, type DatasetKind } from '../../schema/dataset.ts';
import { newId } from '../../schema/ids.ts';
import { ask, env, keyOf, respond } from './support.ts';

let sk = '';
beforeAll(async () => {
  sk = await keyOf('sk');
});

let asked = 0;
async function draw(texts: string[], model: string, over: object = {}): Promise<string[]> {
  const body = { prompt: `question ${asked++}`, choices: texts.map((text) => ({ text })), model, ...over };
  const { json } = await ask('POST', '/v1/samples', { key: sk, body });
  return json.choices.map((choice: { sample_id: string }) => choice.sample_id);
}
const judge = async (body: object, id = 'ann') =>
  (await ask('POST', '/v1/feedback', { key: sk, body: { ...body, rater: { id } } })).json;
// biome-ignore lint/suspicious/noExplicitAny: rows of five shapes
async function rows(kind: DatasetKind, query: string): Promise<any[]> {
  const { status, text, headers } = await ask('GET', `/v1/datasets/${kind}?${query}`, { key: sk });
  expect(status, text).toBe(200);
  expect(headers.get('Content-Type')).toBe('application/x-ndjson');
  const lines = text.split('\n').slice(0, -1);
  for (const line of lines) expect(line).toMatch(/"weight":\d+\.\d+/);
  return lines.map((line) => DATASETS[kind].parse(JSON.parse(line)));
}

describe('datasets', () => {
  test('preference: every pair of unequal rank, weights of one vote summing to 1', async () => {
    const ids = await draw(['a', 'b', 'c', 'd'], 'pref');
    const [a, b, c, d] = ids as [string, string, string, string];
    const ranking = await judge({ kind: 'ranking', sample_ids: ids, order: [[a], [b, c]] });
    const choice = await judge({ kind: 'choice', sample_ids: ids, winner: d });
    await judge({ kind: 'choice', sample_ids: [a, b], winner: 'tie' });
    await judge({ kind: 'choice', sample_ids: [a, c], winner: 'both_bad' });
    const found = await rows('preference', 'policy=pref');
    expect(found.map((row) => [row.id, row.chosen[0].content, row.rejected[0].content])).toEqual([
      [`${ranking.id}:${a}:${b}`, 'a', 'b'],
      [`${ranking.id}:${a}:${c}`, 'a', 'c'],
      [`${choice.id}:${d}:${a}`, 'd', 'a'],
      [`${choice.id}:${d}:${b}`, 'd', 'b'],
      [`${choice.id}:${d}:${c}`, 'd', 'c'],
    ]);
    expect(found.slice(0, 2).reduce((sum, row) => sum + row.weight, 0)).toBeCloseTo(1);
    expect(found.slice(2).reduce((sum, row) => sum + row.weight, 0)).toBeCloseTo(1);
    expect(found[0]).toMatchObject({ prompt: [{ role: 'user' }], cohorts: '{}', policy: 'pref' });
    // resumed after a row in the midst of a vote, and after the last
    expect((await rows('preference', `policy=pref&after=${found[2].id}`)).map((row) => row.id)).toEqual(
      found.slice(3).map((row) => row.id),
    );
    expect(await rows('preference', `policy=pref&after=${found[4].id}`)).toEqual([]);
  });

  test('ranking: competition ranks of the judged alone', async () => {
    const ids = await draw(['a', 'b', 'c', 'd', 'e'], 'rank');
    const [a, b, c, d] = ids as [string, string, string, string];
    await judge({ kind: 'ranking', sample_ids: ids, order: [[c], [a, b], [d]] });
    const [row] = await rows('ranking', 'policy=rank&shape=standard');
    expect(row).toMatchObject({ completions: ['c', 'a', 'b', 'd'], ranks: [1, 2, 2, 4] });
    // where all but one rank was broken off, nothing is above anything
    await env.DB.prepare("UPDATE samples SET finish_reason = 'abort' WHERE id IN (?, ?)").bind(c, d).run();
    expect(await rows('ranking', 'policy=rank')).toEqual([]);
  });

  test('unpaired: thumbs, and both_bad as a false for each', async () => {
    const [a, b] = await draw(['a', 'b'], 'un');
    const up = await judge({ kind: 'thumb', sample_id: a, value: 1 });
    const bad = await judge({ kind: 'choice', sample_ids: [a, b], winner: 'both_bad' });
    const found = await rows('unpaired', 'policy=un');
    expect(found.map((row) => [row.id, row.label, row.weight])).toEqual([
      [up.id, true, 1],
      [`${bad.id}:${a}`, false, 0.5],
      [`${bad.id}:${b}`, false, 0.5],
    ]);
  });

  test('correction and rating; strings where they are asked for', async () => {
    const messages = [
      { role: 'system', content: 'be kind' },
      { role: 'user', content: 'hello' },
    ];
    const [a] = await draw(['a'], 'cor', { messages, prompt: undefined });
    await judge({ kind: 'correction', sample_id: a, text: 'better' });
    await judge({ kind: 'rating', sample_id: a, aspect: 'ethics', value: 2 });
    expect((await rows('correction', 'policy=cor'))[0]).toMatchObject({
      prompt: messages,
      chosen: [{ role: 'assistant', content: 'better' }],
      rejected: [{ content: 'a' }],
    });
    expect((await rows('correction', 'policy=cor&shape=standard'))[0]).toMatchObject({
      prompt: 'system: be kind\n\nuser: hello',
      chosen: 'better',
      rejected: 'a',
    });
    expect((await rows('rating', 'policy=cor'))[0]).toMatchObject({ aspect: 'ethics', value: 2 });
  });

  test('undone votes, aborted samples and pairs of equal text are left out', async () => {
    const [a, b, c] = await draw(['same', 'same', 'other'], 'out');
    await judge({ kind: 'ranking', sample_ids: [a, b, c], order: [[a], [b], [c]] });
    const left = await rows('preference', 'policy=out');
    expect(left.map((row) => row.weight)).toEqual([0.5, 0.5]); // of what is left they sum to 1
    await env.DB.prepare("UPDATE samples SET finish_reason = 'abort' WHERE id = ?").bind(c!).run();
    expect(await rows('preference', 'policy=out')).toEqual([]);
    const thumb = await judge({ kind: 'thumb', sample_id: a, value: 1 });
    expect(await rows('unpaired', 'policy=out')).toHaveLength(1);
    await ask('DELETE', `/v1/feedback/${thumb.id}`, { key: sk });
    expect(await rows('unpaired', 'policy=out')).toEqual([]);
  });

  test('come in pages, and what was just acknowledged is there', async () => {
    const [a] = await draw(['a'], 'many');
    for (let i = 0; i < 230; i++) await judge({ kind: 'thumb', sample_id: a, value: 1 }, `rater ${i}`);
    const response = await respond('GET', '/v1/datasets/unpaired?policy=many', { key: sk });
    let chunks = 0;
    for await (const chunk of response.body!) if (chunk.length > 0) chunks++;
    expect(chunks).toBeGreaterThanOrEqual(3);
    const found = await rows('unpaired', 'policy=many');
    expect(new Set(found.map((row) => row.id)).size).toBe(230);
    expect(await rows('unpaired', 'policy=many&since=2100-01-01T00:00:00Z')).toEqual([]);
  });

  test('from since on, up to until and without it', async () => {
    const [a] = await draw(['a'], 'timed');
    for (const rater of ['x', 'y', 'z']) await judge({ kind: 'thumb', sample_id: a, value: 1 }, rater);
    const days = ['2026-01-01', '2026-01-02', '2026-01-03'].map((day) => `${day}T00:00:00.000Z`);
    const votes = await rows('unpaired', 'policy=timed');
    for (const [i, { id }] of votes.entries())
      await env.DB.prepare('UPDATE feedback SET created_at = ? WHERE id = ?').bind(days[i], id).run();
    const between = (since: number, until: number) =>
      rows('unpaired', `policy=timed&since=${days[since]}&until=${days[until]}`).then((found) =>
        found.map(({ id }) => id),
      );
    expect(await between(0, 2)).toEqual([votes[0].id, votes[1].id]);
    expect(await between(1, 2)).toEqual([votes[1].id]);
    expect(await between(1, 1)).toEqual([]);
  });

  test('hold a vote once that was changed while they were read', async () => {
    const [a] = await draw(['a'], 'moving');
    const thumb = (value: number, rater: number) => judge({ kind: 'thumb', sample_id: a, value }, `rater ${rater}`);
    const votes = [];
    for (let i = 0; i < 220; i++) votes.push((await thumb(1, i)).id);
    const response = await respond('GET', '/v1/datasets/unpaired?policy=moving', { key: sk });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = (await reader.read()).value!;
    for (const i of [0, 150, 219]) await thumb(-1, i);
    for (let step = await reader.read(); !step.done; step = await reader.read()) text += step.value;
    const ids = text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).id);
    expect(ids).toEqual(votes);
  });

  test('go on after a row that its vote has no more, and give that vote no second time', async () => {
    const [a, b] = (await draw(['a', 'b'], 'changed')) as [string, string];
    const choose = (winner: string, by: string) => judge({ kind: 'choice', sample_ids: [a, b], winner }, by);
    const [first, second] = [await choose(a, 'x'), await choose(a, 'y')];
    const [read] = await rows('preference', 'policy=changed');
    expect(read.id).toBe(`${first.id}:${a}:${b}`);
    await choose(b, 'x');
    expect((await rows('preference', `policy=changed&after=${read.id}`)).map((row) => row.id)).toEqual([
      `${second.id}:${a}:${b}`,
    ]);
  });

  test('go on after a row whose vote is gone, and give none twice', async () => {
    const [a] = await draw(['a'], 'left');
    const votes = [];
    for (const rater of ['x', 'y', 'z']) votes.push((await judge({ kind: 'thumb', sample_id: a, value: 1 }, rater)).id);
    const [, gone, last] = votes;
    await env.DB.prepare('DELETE FROM feedback WHERE id = ?').bind(gone).run();
    expect((await rows('unpaired', `policy=left&after=${gone}`)).map((row) => row.id)).toEqual([last]);
  });

  test('of a snapshot: what had been judged when it was frozen', async () => {
    const [a] = await draw(['a'], 'frozen');
    const before = await judge({ kind: 'thumb', sample_id: a, value: 1 }, 'early');
    const { seq } = (await env.DB.prepare('SELECT max(created_seq) AS seq FROM feedback').first<{ seq: number }>())!;
    const id = newId('snapshot');
    await env.DB.prepare(
      "INSERT INTO snapshots (id, to_seq, votes_cursor, prompts_cursor, parts, prompts, created_at) VALUES (?, ?, 0, 0, '[]', '[]', '')",
    )
      .bind(id, seq)
      .run();
    await judge({ kind: 'thumb', sample_id: a, value: 1 }, 'late');
    expect((await rows('unpaired', `policy=frozen&snapshot=${id}`)).map((row) => row.id)).toEqual([before.id]);
    expect(await rows('unpaired', 'policy=frozen')).toHaveLength(2);
  });

  test('need the scope; unknown filters and cursors are 400', async () => {
    expect((await ask('GET', '/v1/datasets/rating', { key: await keyOf('sk', ['read']) })).status).toBe(403);
    for (const query of ['limit=3', 'after=fb_1', 'shape=odd', 'since=now'])
      expect((await ask('GET', `/v1/datasets/rating?${query}`, { key: sk })).status).toBe(400);
    expect((await ask('GET', '/v1/datasets/opinions', { key: sk })).status).toBe(404);
    const nowhere = await ask('GET', '/v1/datasets/rating?snapshot=snp_01ARZ3NDEKTSV4RRFFQ69G5FAV', { key: sk });
    expect([nowhere.status, nowhere.json.detail]).toEqual([422, expect.stringContaining('is not known')]);
  });
});
