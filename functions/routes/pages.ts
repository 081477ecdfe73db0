// What browsers load: the widget, for any page, and the demo page, where it is switched on.
import { z } from 'zod';
import { sha256 } from '../crypto.ts';
import { settings } from '../env.ts';
import { notFound } from '../error.ts';
import { type Call, route } from '../route.ts';
import demoScript from '../widget/demo.client.js';
import demoStyle from '../widget/demo.css';
import demoPage from '../widget/demo.html';
import widget from '../widget/widget.client.js';

const TYPES = {
  html: 'text/html; charset=utf-8',
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
} as const;

const CSP = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** The text, or 304 to whoever has it. */
async function file({ c }: Call<unknown, unknown>, type: keyof typeof TYPES, text: string, more: HeadersInit) {
  const headers = new Headers(more);
  const etag = `"${(await sha256(text)).slice(0, 32)}"`;
  headers.set('ETag', etag);
  headers.set('X-Content-Type-Options', 'nosniff');
  const held = (c.req.header('If-None-Match') ?? '').split(',').map((tag) => tag.trim().replace(/^W\//, ''));
  if (held.includes(etag) || held.includes('*')) return new Response(null, { status: 304, headers });
  headers.set('Content-Type', TYPES[type]);
  return new Response(text, { headers });
}

/** The parts of the demo page are there where it is switched on, and nowhere else. */
const demo = (
  path: string,
  summary: string,
  type: keyof typeof TYPES,
  text: (call: Call<unknown, unknown>) => string,
) =>
  route({
    method: 'get',
    path,
    summary,
    auth: 'none',
    query: z.looseObject({}),
    answers: { 200: 'a text' },
    media: TYPES[type],
    handle(call) {
      if (settings(call.env).PLUMB_DEMO !== '1') throw notFound('route');
      const page = type === 'html' ? { 'Content-Security-Policy': CSP, 'Referrer-Policy': 'no-referrer' } : {};
      return file(call, type, text(call), { 'Cache-Control': 'no-cache', ...page });
    },
  });

export const pageRoutes = [
  route({
    method: 'get',
    path: '/widget.js',
    summary: 'The custom element <plumb-feedback>, for any page',
    auth: 'none',
    query: z.looseObject({}),
    answers: { 200: 'a script' },
    media: TYPES.js,
    handle: (call) =>
      file(call, 'js', widget, {
        'Cache-Control': 'public, max-age=300, stale-while-revalidate=86400',
        // pages that isolate themselves may embed it as well
        'Cross-Origin-Resource-Policy': 'cross-origin',
      }),
  }),
  demo('/', 'The demo page, where it is switched on', 'html', ({ env }) =>
    demoPage.replace('{{key}}', settings(env).PLUMB_DEMO_KEY),
  ),
  demo('/demo.css', 'Its style', 'css', () => demoStyle),
  demo('/demo.js', 'Its script', 'js', () => demoScript),
];
