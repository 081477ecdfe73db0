// How often somebody asks, counted in the database: a limit holds for all isolates together.
import { lt, sql } from 'drizzle-orm';
import { rates } from '../../schema/tables.ts';
import { database, raw, type Statement } from './db.ts';

const minuteNow = () => Math.floor(Date.now() / 60_000);

/** Counts a request of a key's, if there is such a key; its answer is how many there were in this minute. */
export const counting = (d1: D1Database, keyHash: string, visitor: string): Statement =>
  raw<{ count: number }>(
    database(d1),
    sql`INSERT INTO rates (minute, caller, count)
        SELECT ${minuteNow()}, ${`${keyHash} ${visitor}`}, 1 WHERE EXISTS (SELECT 1 FROM keys WHERE hash = ${keyHash})
        ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count`,
  );

/** For the cron: minutes that are over count no more. */
export const forgetOldRates = (d1: D1Database) =>
  database(d1)
    .delete(rates)
    .where(lt(rates.minute, minuteNow() - 1));
