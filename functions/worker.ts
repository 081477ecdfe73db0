// Entry of the Worker.
import { app } from './app.ts';
import type { Env } from './env.ts';
import { tick } from './jobs/schedule.ts';

export default { fetch: app.fetch, scheduled: (_, env) => tick(env) } satisfies ExportedHandler<Env>;
