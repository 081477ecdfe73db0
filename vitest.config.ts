// What runs in workerd (the Worker's routes and stores) and what runs in Node (all the rest).
import { cloudflareTest, readD1Migrations } from '@cloudflare/vitest-plugin';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

const inWorkerd = ['test/functions/**/*.test.ts', 'test/schema/tables*.test.ts'];
const policy = 'test/functions/policy/**';

/** What a launcher is to the Worker: it takes requests at /launch, and tells the tests which. */
const launched: unknown[] = [];
async function launcher(request: Request) {
  const { pathname } = new URL(request.url);
  if (pathname === '/launches') return Response.json(launched) as never;
  if (pathname !== '/launch' || request.headers.get('Authorization') !== 'Bearer of-the-launcher')
    return new Response(null, { status: 503 }) as never;
  launched.push(await request.json());
  return new Response(null, { status: 202 }) as never;
}

/** What trains the seed policy itself, compiled as for its users. */
const trained = ['test/e2e/loop.test.ts', 'test/trainer/{randomwalks,reward}.test.ts', 'test/trainer/seed/*.test.ts'];
/** Compiles llama.cpp at its first run, which takes twenty minutes: run when it is asked for. */
const llama = process.env.PLUMB_LLAMA ? [] : ['test/e2e/llama.test.ts'];
const inNode = {
  pool: 'forks' as const,
  env: { TF_CPP_MIN_LOG_LEVEL: '2', TF_NUM_INTRAOP_THREADS: '2' },
  // A machine may be slow, and busy with other things: what hangs is told from what waits only after minutes.
  testTimeout: 300_000,
  hookTimeout: 300_000,
  expect: { poll: { timeout: 10_000 } },
};

/** Those that take minutes begin first: one that begins last is waited for alone. */
const LONGEST = ['e2e/loop', 'trainer/files', 'trainer/crash', 'trainer/seed/bias', 'infra/local', 'trainer/reward'];
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]) {
    const place = ({ moduleId }: TestSpecification) => {
      const index = LONGEST.findIndex((name) => moduleId.endsWith(`test/${name}.test.ts`));
      return index < 0 ? LONGEST.length : index;
    };
    return (await super.sort(files)).sort((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  test: {
    // Many files wait for a server, a browser or a child: two run side by side even on two cores.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          ...inNode,
          name: 'node',
          include: ['test/{schema,trainer,infra,e2e,functions/policy}/**/*.test.ts'],
          exclude: ['test/schema/tables*.test.ts', ...trained, ...llama],
          // Tiny models take a step in no time: it is the compiling that is waited for.
          env: { ...inNode.env, XLA_FLAGS: '--xla_backend_optimization_level=0' },
        },
      },
      { test: { ...inNode, name: 'trained', include: trained } },
      {
        plugins: [
          cloudflareTest(async () => ({
            wrangler: { configPath: './wrangler.jsonc' },
            miniflare: {
              outboundService: launcher,
              bindings: {
                MIGRATIONS: await readD1Migrations('schema/migrations'),
                PLUMB_TOKEN_SECRETS: 'new:the-secret-that-signs-now,old:the-secret-of-last-month',
                PLUMB_PEPPER: 'a-pepper-of-the-tests',
                PLUMB_SIDE_KEY: 'a-side-key-of-the-tests',
                PLUMB_IDENTITY_KEY: 'an-identity-key-of-the-tests',
                PLUMB_URL: 'http://plumb.test',
              },
            },
          })),
        ],
        test: {
          name: 'workers',
          include: inWorkerd,
          exclude: [policy],
          setupFiles: ['test/functions/setup.ts'],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          expect: { poll: { timeout: 10_000 } },
        },
      },
    ],
  },
});
