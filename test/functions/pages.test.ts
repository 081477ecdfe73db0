// What browsers load: the widget for every page, the demo page only where it is switched on.
import { describe, expect, test } from 'vitest';
import { ask, env } from './support.ts';

const KEY = 'pk_of-the-demo-page';
const on = { ...env, PLUMB_DEMO: '1', PLUMB_DEMO_KEY: KEY };

describe('the widget', () => {
  test('is a script that any page may load and keep for a while', async () => {
    const { status, headers, text } = await ask('GET', '/widget.js', { headers: { Origin: 'https://shop.example' } });
    expect(status).toBe(200);
    expect(headers.get('Content-Type')).toBe('text/javascript; charset=utf-8');
    expect(headers.get('Access-Control-Allow-Origin')).toBe('*');
    expect(headers.get('Cross-Origin-Resource-Policy')).toBe('cross-origin');
    expect(headers.get('X-Content-Type-Options')).toBe('nosniff');
    expect(headers.get('Cache-Control')).toMatch(/public, max-age=\d+/);
    expect(text).toContain("customElements.define('plumb-feedback'");
    expect(text.length).toBeLessThan(20_000);
  });

  test('comes once: whoever has it is told so', async () => {
    const { headers } = await ask('GET', '/widget.js');
    const etag = headers.get('ETag')!;
    for (const held of [etag, `W/${etag}`, `"other", ${etag}`, '*']) {
      const again = await ask('GET', '/widget.js', { headers: { 'If-None-Match': held } });
      expect([held, again.status, again.text, again.headers.get('ETag')]).toEqual([held, 304, '', etag]);
    }
    expect((await ask('GET', '/widget.js', { headers: { 'If-None-Match': '"other"' } })).status).toBe(200);
  });

  test('takes HEAD, a version in its query, and nothing else', async () => {
    const head = await ask('HEAD', '/widget.js');
    expect([head.status, head.text, head.headers.get('Content-Type')]).toEqual([
      200,
      '',
      'text/javascript; charset=utf-8',
    ]);
    expect((await ask('GET', '/widget.js?v=3')).status).toBe(200);
    const post = await ask('POST', '/widget.js', { body: {} });
    expect([post.status, post.headers.get('Allow')]).toEqual([405, 'GET, HEAD, OPTIONS']);
  });

  test('needs no configuration', async () => {
    expect((await ask('GET', '/widget.js', { env: { ...env, PLUMB_PEPPER: 'short' } })).status).toBe(200);
  });

  test('never makes HTML of text', async () => {
    const { text } = await ask('GET', '/widget.js');
    expect(text).not.toMatch(/innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function/);
  });
});

describe('the demo page', () => {
  test('is off unless it is switched on', async () => {
    for (const path of ['/', '/demo.js', '/demo.css'])
      for (const off of [env, { ...env, PLUMB_DEMO: '0', PLUMB_DEMO_KEY: KEY }]) {
        const { status, json } = await ask('GET', path, { env: off });
        expect([path, status, json.detail]).toEqual([path, 404, 'there is no such route']);
      }
  });

  test('asks with the key it was given', async () => {
    const { status, headers, text } = await ask('GET', '/?from=mail', { env: on });
    expect(status).toBe(200);
    expect(headers.get('Content-Type')).toBe('text/html; charset=utf-8');
    expect(text).toContain(`data-key="${KEY}"`);
    expect(text).not.toContain('{{');
  });

  test('loads only what this server has, and is framed by nobody', async () => {
    const { headers, text } = await ask('GET', '/', { env: on });
    expect(headers.get('Referrer-Policy')).toBe('no-referrer');
    const policy = headers.get('Content-Security-Policy')!;
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("script-src 'self'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toContain('unsafe');
    const loaded = [...text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, url]) => url!);
    expect(loaded).toContain('/widget.js');
    for (const url of loaded.filter((url) => !url.startsWith('data:'))) {
      expect([url, (await ask('GET', url, { env: on })).status]).toEqual([url, 200]);
    }
    expect(text).not.toMatch(/<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=/);
    expect(headers.get('Cache-Control')).toBe('no-cache');
  });

  test('a key that is none is a wrong configuration, and nothing of it gets into the page', async () => {
    const wrong = await ask('GET', '/', { env: { ...on, PLUMB_DEMO_KEY: '"><script>' } });
    expect(wrong.status).toBe(503);
    expect(wrong.text).not.toContain('<script>');
  });
});
