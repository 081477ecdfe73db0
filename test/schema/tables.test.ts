import { describe, expect, test } from 'vitest';
import { env } from '../functions/support.ts';

const run = (id: string, status: string) =>
  env.DB.prepare(
    `INSERT INTO runs (id, seq, status, config, reason, snapshot, base_policy, fence, created_at)
     VALUES (?1, ?2, ?3, '{}', '', 'snp', 'pol', 1, '2026-01-01T00:00:00Z')`,
  )
    .bind(id, Number(id), status)
    .run();

describe('tables', () => {
  test('one run is active at a time, and any number have ended', async () => {
    await run('1', 'failed');
    await run('2', 'published');
    await run('3', 'queued');
    await expect(run('4', 'running')).rejects.toThrow(/UNIQUE/);
    await run('5', 'cancelled');
    await env.DB.prepare("UPDATE runs SET status = 'failed' WHERE id = '3'").run();
    await run('6', 'running');
  });

  test('a vote is one row', async () => {
    const vote = (id: string, seq: number) =>
      env.DB.prepare(
        `INSERT INTO feedback (id, seq, created_seq, rater, rater_kind, kind, facet, target, body, policy, session, revision, created_at, updated_at)
         VALUES (?1, ?2, ?2, 'r', 'asserted', 'thumb', '', 't', '{}', 'p', '', 1, '', '')`,
      )
        .bind(id, seq)
        .run();
    await vote('a', 1);
    await expect(vote('b', 2)).rejects.toThrow(/UNIQUE/);
  });
});
