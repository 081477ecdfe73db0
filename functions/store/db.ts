// D1 through drizzle, the database's sequence, and lists that go by it.
import { and, asc, desc, gt, lt, type SQL, sql } from 'drizzle-orm';
import type { BatchItem } from 'drizzle-orm/batch';
import { type DrizzleD1Database, drizzle } from 'drizzle-orm/d1';
import type { SQLiteColumn, SQLiteTable } from 'drizzle-orm/sqlite-core';
import * as tables from '../../schema/tables.ts';
import { patient } from './patient.ts';

export type Database = DrizzleD1Database<typeof tables> & { $client: D1Database };
export type Statement = BatchItem<'sqlite'>;

export const database = (d1: D1Database): Database => drizzle(patient(d1), { schema: tables });

/** Plain SQL for a batch: drizzle's D1 batch runs the statement that a query has prepared, and its raw ones prepare none. */
export function raw<T = unknown>(db: Database, query: SQL) {
  const statement = db.all<T>(query);
  return Object.assign(statement, { stmt: db.$client.prepare(statement.getQuery().sql) });
}

/** Takes the next `n` numbers; first statement of every batch that writes what is listed. */
export const takeSeq = (db: Database, n = 1) =>
  db
    .insert(tables.sequence)
    .values({ name: 'all', value: n })
    .onConflictDoUpdate({ target: tables.sequence.name, set: { value: sql`value + ${n}` } });
/** The last number taken, less `back`. */
export const seq = (back = 0) => sql<number>`((SELECT value FROM sequence WHERE name = 'all') - ${back})`;

/** The database's clock: what leases go by. */
export const dbNow = sql<string>`strftime('%Y-%m-%dT%H:%M:%fZ', 'now')`;
export const dbIn = (seconds: number) => sql<string>`strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ${`${seconds} seconds`})`;

export const now = () => new Date().toISOString();

interface Listed {
  id: SQLiteColumn;
  seq: SQLiteColumn;
}
export interface Paging {
  after?: string | undefined;
  limit: number;
  order?: 'asc' | 'desc';
}

/** Where a list goes on. A cursor whose row is gone goes on after the row that was made just before it. */
function place(table: SQLiteTable, { id, seq: column }: Listed, after: string, order: 'asc' | 'desc') {
  const neighbour =
    order === 'asc' ? sql`${id} < ${after} ORDER BY ${id} DESC` : sql`${id} > ${after} ORDER BY ${id} ASC`;
  return sql`coalesce((SELECT ${column} FROM ${table} WHERE ${id} = ${after}), (SELECT ${column} FROM ${table} WHERE ${neighbour} LIMIT 1), ${order === 'asc' ? 0 : Number.MAX_SAFE_INTEGER})`;
}

/** One page's condition, order and limit; one row more than asked says whether there is more. */
export function page(table: SQLiteTable, columns: Listed, { after, limit, order = 'asc' }: Paging, where?: SQL) {
  const from = after ? place(table, columns, after, order) : sql`${order === 'asc' ? 0 : Number.MAX_SAFE_INTEGER}`;
  return {
    where: and(order === 'asc' ? gt(columns.seq, from) : lt(columns.seq, from), where),
    orderBy: order === 'asc' ? asc(columns.seq) : desc(columns.seq),
    limit: limit + 1,
  };
}

export function listing<T extends { id: string | number }>(rows: T[], limit: number) {
  const data = rows.slice(0, limit);
  return {
    object: 'list' as const,
    data,
    first_id: data[0] ? String(data[0].id) : null,
    last_id: data.length > 0 ? String(data.at(-1)!.id) : null,
    has_more: rows.length > limit,
  };
}
