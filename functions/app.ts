// The HTTP application: its routes mounted, one handler of errors.
import { Hono } from 'hono';
import { cors } from 'hono/cors';
import { answer, asApiError, notFound } from './error.ts';
import { type AnyRoute, type App, mount } from './route.ts';
import { completionRoutes } from './routes/completions.ts';
import { datasetRoutes } from './routes/datasets.ts';
import { feedbackRoutes } from './routes/feedback.ts';
import { jobRoutes } from './routes/jobs.ts';
import { keyRoutes } from './routes/keys.ts';
import { modelRoutes } from './routes/models.ts';
import { pageRoutes } from './routes/pages.ts';
import { policyRoutes } from './routes/policies.ts';
import { runRoutes } from './routes/runs.ts';
import { sampleRoutes } from './routes/samples.ts';
import { systemRoutes } from './routes/system.ts';

const routes: AnyRoute[] = [
  ...completionRoutes,
  ...modelRoutes,
  ...sampleRoutes,
  ...feedbackRoutes,
  ...datasetRoutes,
  ...runRoutes,
  ...policyRoutes,
  ...jobRoutes,
  ...keyRoutes,
  ...pageRoutes,
  ...systemRoutes(() => routes),
];

export const app = new Hono<App>();

// A preflight cannot see the key: it is answered to any origin, without credentials; the real request is judged.
app.use(
  cors({
    origin: '*',
    allowMethods: ['GET', 'HEAD', 'POST', 'PUT', 'DELETE'],
    // whatever is asked for is allowed: OpenAI's SDK in a page sends headers of its own
    exposeHeaders: ['Idempotent-Replayed', 'Retry-After'],
    maxAge: 86_400,
  }),
);

mount(app, routes);

app.notFound((c) => answer(c, notFound('route')));
app.onError((error, c) => answer(c, asApiError(error)));
