// Two projects: what runs in workerd (the Worker's routes and stores) and what runs in Node (all the rest).
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'node',
          pool: 'forks',
          include: ['test/{schema,trainer,infra,e2e,functions/policy}/**/*.test.ts'],
          env: { TF_CPP_MIN_LOG_LEVEL: '2', TF_NUM_INTRAOP_THREADS: '2' },
          testTimeout: 120_000,
        },
      },
    ],
  },
});
