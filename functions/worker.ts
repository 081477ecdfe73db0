// Entry of the Worker.
import { app } from './app.ts';
import type { Env } from './env.ts';
import { logUnexpected } from './error.ts';
import { tick } from './jobs/schedule.ts';

export default {
  fetch: app.fetch,
  async scheduled(_, env) {
    try {
      await tick(env);
    } catch (error) {
      logUnexpected(error);
      throw new Error('the tick failed'); // what was thrown may quote people, and the platform logs it
    }
  },
} satisfies ExportedHandler<Env>;
