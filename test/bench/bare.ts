// The least a Worker can do to keep a vote: one insert into D1, with no key, no check and no answer. What edge.ts measures
// Plumb beside.
export default {
  async fetch(request: Request, { DB }: { DB: D1Database }): Promise<Response> {
    const { pathname } = new URL(request.url);
    if (pathname === '/start')
      await DB.exec('CREATE TABLE IF NOT EXISTS votes (id TEXT PRIMARY KEY, vote TEXT NOT NULL)');
    if (pathname === '/vote') {
      await DB.prepare('INSERT INTO votes VALUES (?, ?)')
        .bind(crypto.randomUUID(), await request.text())
        .run();
    }
    return new Response(null, { status: 204 });
  },
};
