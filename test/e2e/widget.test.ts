// <plumb-feedback> in a real browser against the real Worker: every way to vote, by mouse and by keyboard alone, and what
// it does where the network or the server says no.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Browser, BrowserContext, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startBrowser } from '../support/browser.ts';
import { startTestLocal, type TestLocal } from '../support/local.ts';

interface Vote {
  id: string;
  value?: number;
  winner?: string;
  revision: number;
  undone_at?: string;
}
interface Told {
  type: string;
  detail: { id?: string; value?: unknown; status?: number; message?: string; final?: boolean };
}

let local: TestLocal;
let browser: Browser;
let context: BrowserContext;
let page: Page;
/** A host of its own, with an origin of its own, as pages that embed the widget have; its only page is `html`. */
const host = createServer((_, response) => response.setHeader('content-type', 'text/html').end(html));
let html = '';
let origin = '';
/** Good for the host's origin. */
let key = '';

beforeAll(async () => {
  local = await startTestLocal();
  await new Promise<void>((resolve) => host.listen(0, '127.0.0.1', resolve));
  origin = `http://127.0.0.1:${(host.address() as AddressInfo).port}`;
  ({ key } = await local.api<{ key: string }>('POST', '/v1/keys', { kind: 'pk', origins: [origin] }));
  browser = await startBrowser();
}, 300_000);
afterAll(async () => {
  await browser?.close();
  host.close();
  await local?.close();
}, 300_000);
beforeEach(async () => {
  context = await browser.newContext();
  page = await context.newPage();
});
afterEach(() => context.close());

/** Answers made elsewhere, on a host's page; the widget's events are kept in `told`. */
async function embed(texts: string[], attributes: Record<string, string> = {}) {
  const prompt = `A question of ${crypto.randomUUID()}`;
  const made = await local.api<{ choices: { sample_id: string }[]; feedback_token: string }>('POST', '/v1/samples', {
    prompt,
    model: 'elsewhere',
    choices: texts.map((text) => ({ text })),
  });
  const samples = made.choices.map((choice) => choice.sample_id);
  const all = { samples: samples.join(' '), token: made.feedback_token, ...attributes };
  const written = Object.entries(all).map(([name, value]) => `${name}="${value}"`);
  const slots = texts.map((text, i) => `<p slot="${'ab'.charAt(i)}">${escaped(text)}</p>`);
  html = `<!doctype html><html lang="en" style="color-scheme: light dark"><title>host</title>
    <script>
      told = [];
      for (const type of ['plumb-vote', 'plumb-undo', 'plumb-error'])
        addEventListener(type, (event) => told.push({ type, detail: event.detail }));
    </script>
    <script src="${local.url}/widget.js" data-key="${key}" defer></script>
    <button>before</button>
    <plumb-feedback ${written.join(' ')}>${texts.length > 1 ? slots.join('') : ''}</plumb-feedback>`;
  await page.goto(origin);
  return { samples, token: made.feedback_token };
}

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
const told = () => page.evaluate<Told[]>('told');
const button = (name: string) => page.getByRole('button', { name, exact: true });
const status = () => page.getByRole('status');
const pressed = (name: string) => button(name).getAttribute('aria-pressed');
const votesOf = async (sample: string) => {
  const { feedback } = await local.api<{ feedback: Vote[] }>('GET', `/v1/samples/${sample}`);
  return feedback;
};

describe('a thumb', () => {
  test('that is clicked twice in a row is a vote, and not taken back', async () => {
    const { samples } = await embed(['An answer.']);
    await button('Good answer').dblclick();
    await status().getByText('Thank you, saved.').waitFor();
    await page.waitForTimeout(500);
    expect(await pressed('Good answer')).toBe('true');
    const standing = (await votesOf(samples[0]!)).filter((vote) => !vote.undone_at);
    expect(standing).toMatchObject([{ value: 1, revision: 1 }]);
  });

  test('is stored, changed and taken back', async () => {
    const { samples } = await embed(['An answer.']);
    await button('Good answer').click();
    await status().getByText('Thank you, saved.').waitFor();
    const [first] = await votesOf(samples[0]!);
    expect(first).toMatchObject({ value: 1, revision: 1 });

    await button('Bad answer').click();
    await status().getByText('Changed.').waitFor();
    expect([await pressed('Good answer'), await pressed('Bad answer')]).toEqual(['false', 'true']);
    expect(await votesOf(samples[0]!)).toMatchObject([{ id: first!.id, value: -1, revision: 2 }]);

    await button('Undo').click();
    await status().getByText('Taken back.').waitFor();
    expect(await pressed('Bad answer')).toBe('false');
    expect((await votesOf(samples[0]!)).filter((vote) => !vote.undone_at)).toEqual([]);

    await button('Good answer').click();
    await status().getByText('Thank you, saved.').waitFor();
    expect((await votesOf(samples[0]!)).filter((vote) => !vote.undone_at)).toMatchObject([{ id: first!.id, value: 1 }]);
    expect(await told()).toMatchObject([
      { type: 'plumb-vote', detail: { id: first!.id, value: 1 } },
      { type: 'plumb-vote', detail: { id: first!.id, value: -1 } },
      { type: 'plumb-undo', detail: { id: first!.id } },
      { type: 'plumb-vote', detail: { id: first!.id, value: 1 } },
    ]);
  });

  test('by the keyboard alone, with the focus in sight and never lost', async () => {
    const { samples } = await embed(['An answer.']);
    const focused = () =>
      page.evaluate(`(() => {
        const inner = document.activeElement.shadowRoot.activeElement;
        return [inner.getAttribute('aria-label') ?? inner.textContent, getComputedStyle(inner).outlineStyle];
      })()`);
    await button('before').focus();
    await page.keyboard.press('Tab');
    expect(await focused()).toEqual(['Good answer', 'solid']);
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    await status().getByText('Thank you, saved.').waitFor();
    expect(await votesOf(samples[0]!)).toMatchObject([{ value: -1 }]);
    await page.keyboard.press('Tab');
    expect(await focused()).toEqual(['Undo', 'solid']);
    await page.keyboard.press('Space');
    await status().getByText('Taken back.').waitFor();
    expect(await focused()).toEqual(['Bad answer', 'solid']);
  });

  test('cannot be given before there is a token', async () => {
    const { token } = await embed(['An answer.'], { token: '' });
    expect(await button('Good answer').isDisabled()).toBe(true);
    await page.evaluate(`document.querySelector('plumb-feedback').setAttribute('token', '${token}')`);
    await button('Good answer').click();
    await status().getByText('Thank you, saved.').waitFor();
  });
});

describe('a choice', () => {
  test('of the better, of a tie, of neither', async () => {
    const { samples } = await embed(['One answer.', 'Another.']);
    const place = (await page.getByRole('group', { name: 'Answer B' }).boundingBox())!;
    const text = (await page.getByText('Another.').boundingBox())!;
    expect(text.x).toBeGreaterThan(place.x);
    expect(text.y).toBeGreaterThan(place.y);
    expect(text.y).toBeLessThan(place.y + place.height);
    await button('B is better').click();
    await status().getByText('Thank you, saved.').waitFor();
    expect(await votesOf(samples[0]!)).toMatchObject([{ winner: samples[1] }]);
    await button('About the same').click();
    await status().getByText('Changed.').waitFor();
    expect(await votesOf(samples[1]!)).toMatchObject([{ winner: 'tie' }]);
    await button('Both are bad').click();
    await expect.poll(async () => (await votesOf(samples[1]!))[0]?.winner).toBe('both_bad');
    await button('Both are bad').click();
    await status().getByText('Taken back.').waitFor();
    expect((await votesOf(samples[1]!)).filter((vote) => !vote.undone_at)).toEqual([]);
  });

  test('shows what a model wrote as text, whatever it is', async () => {
    await embed(['<img src=x onerror="told.push(1)"><b>bold</b>', '</p><script>told.push(2)</script>']);
    expect(await page.getByText('<img src=x onerror="told.push(1)"><b>bold</b>').isVisible()).toBe(true);
    expect(await told()).toEqual([]);
  });

  test('stands side by side where there is room, else one above the other', async () => {
    await embed(['One answer. '.repeat(20), 'x'.repeat(300)]);
    const places = async () => {
      const boxes = [
        await page.getByRole('group', { name: 'Answer A' }).boundingBox(),
        await page.getByRole('group', { name: 'Answer B' }).boundingBox(),
      ];
      expect(await page.evaluate('document.documentElement.scrollWidth - innerWidth')).toBe(0);
      return boxes.map((box) => box!);
    };
    await page.setViewportSize({ width: 1280, height: 800 });
    const [a, b] = await places();
    expect(a!.y).toBe(b!.y);
    await page.setViewportSize({ width: 360, height: 800 });
    const [above, below] = await places();
    expect(below!.y).toBeGreaterThan(above!.y + above!.height);
  });
});

describe('when it does not go through', () => {
  test('the same vote is sent again until it is stored, once', async () => {
    const { samples } = await embed(['An answer.']);
    const keys: (string | undefined)[] = [];
    await page.route('**/v1/feedback', async (route) => {
      keys.push(route.request().headers()['idempotency-key']);
      if (keys.length === 1) return route.abort(); // it never arrived
      if (keys.length === 2) {
        await route.fetch(); // it arrived, and its answer was lost
        return route.abort();
      }
      return route.continue();
    });
    await button('Good answer').click();
    await status().getByText('Not saved yet: the server cannot be reached. Trying again…').waitFor();
    expect(await pressed('Good answer')).toBe('true');
    await status().getByText('Thank you, saved.').waitFor();
    expect(keys[0]).toMatch(/^[0-9a-f]{32}$/);
    expect(keys).toEqual([keys[0], keys[0], keys[0]]);
    expect(await votesOf(samples[0]!)).toMatchObject([{ value: 1, revision: 1 }]);
    expect(await told()).toMatchObject([
      { type: 'plumb-error', detail: { status: 0, final: false } },
      { type: 'plumb-error', detail: { status: 0, final: false } },
      { type: 'plumb-vote', detail: { value: 1 } },
    ]);
  });

  test('an answer that was just broken off may be stored a moment after its vote', async () => {
    const { samples } = await embed(['An answer.']);
    let tries = 0;
    const problem = { status: 422, detail: 'sample_id is not a sample', errors: [{ path: 'sample_id' }] };
    await page.route('**/v1/feedback', (route) =>
      ++tries < 3 ? route.fulfill({ status: 422, json: problem }) : route.continue(),
    );
    await button('Good answer').click();
    await status().getByText('Thank you, saved.').waitFor();
    expect(await votesOf(samples[0]!)).toMatchObject([{ value: 1 }]);
    expect(await told()).toMatchObject([{ type: 'plumb-vote' }]);
  });

  test('what was wanted last is what the server holds', async () => {
    const { samples } = await embed(['An answer.']);
    let held = true;
    await page.route('**/v1/feedback', (route) => (held ? route.abort() : route.continue()));
    await button('Good answer').click();
    await button('Try now').waitFor();
    await button('Bad answer').click();
    held = false;
    await button('Try now').click();
    await expect.poll(async () => (await votesOf(samples[0]!))[0]?.value).toBe(-1);
    expect(await pressed('Bad answer')).toBe('true');
  });

  test('what a server that is asked too much refuses for now is sent again', async () => {
    const { samples } = await embed(['An answer.']);
    let tries = 0;
    await page.route('**/v1/feedback', (route) =>
      ++tries === 1 ? route.fulfill({ status: 429, json: { detail: 'too many requests' } }) : route.continue(),
    );
    await button('Good answer').click();
    await status().getByText('Thank you, saved.').waitFor();
    expect(await votesOf(samples[0]!)).toMatchObject([{ value: 1 }]);
    expect(await told()).toMatchObject([
      { type: 'plumb-error', detail: { status: 429, final: false } },
      { type: 'plumb-vote' },
    ]);
  });

  test('while a vote is under way there is no Undo, and what is wanted meanwhile is sent after it, even if it is refused', async () => {
    const { samples } = await embed(['An answer.']);
    const sent: string[] = [];
    const answers: (() => void)[] = [];
    await page.route('**/v1/feedback{,/*}', async (route) => {
      sent.push(route.request().method());
      await new Promise<void>((resolve) => answers.push(resolve));
      if (sent.length === 3) return route.fulfill({ status: 422, json: { detail: 'no' } });
      return route.continue();
    });
    const answer = async (n: number) => {
      await expect.poll(() => answers.length).toBe(n);
      expect(await button('Undo').isVisible()).toBe(false);
      answers[n - 1]!();
    };
    await button('Good answer').click();
    await button('Good answer').click(); // taken back before it has arrived
    await answer(1);
    await answer(2);
    await status().getByText('Taken back.').waitFor();
    await button('Good answer').click();
    await expect.poll(() => answers.length).toBe(3);
    await button('Bad answer').click();
    await answer(3);
    await answer(4);
    await button('Undo').waitFor();
    expect(sent).toEqual(['POST', 'DELETE', 'POST', 'POST']);
    expect(await pressed('Bad answer')).toBe('true');
    expect(await votesOf(samples[0]!)).toMatchObject([{ value: -1, revision: 2 }]);
  });

  test('whoever leaves with a vote unsent is asked first', async () => {
    await embed(['An answer.']);
    await page.route('**/v1/feedback', (route) => route.abort());
    await button('Good answer').click();
    await button('Try now').waitFor();
    const asked = new Promise<string>((resolve) =>
      page.once('dialog', (dialog) => {
        resolve(dialog.type());
        void dialog.accept();
      }),
    );
    await page.close({ runBeforeUnload: true });
    expect(await asked).toBe('beforeunload');
  });

  test('a refusal is said, and the vote taken back', async () => {
    await embed(['An answer.'], { 'data-key': 'pk_of_nobody' });
    await button('Good answer').click();
    await status().getByText('Not saved: this page may not send feedback (the key is not known).').waitFor();
    expect(await pressed('Good answer')).toBe('false');
    expect(await told()).toMatchObject([{ type: 'plumb-error', detail: { status: 401, final: true } }]);
  });

  test('as is a key that is for other pages', async () => {
    await embed(['An answer.'], { 'data-key': local.keys.public });
    await button('Good answer').click();
    await status().getByText('Not saved: this page may not send feedback (the page is not among').waitFor();
  });

  test('a page that has no key says so', async () => {
    await embed(['An answer.'], { key: '' });
    await status().getByText('Feedback is not set up on this page: it has no public key.').waitFor();
    expect(await button('Good answer').isDisabled()).toBe(true);
  });
});

test('follows the page into the dark, and is still for those who want it still', async () => {
  await page.emulateMedia({ colorScheme: 'dark', reducedMotion: 'reduce' });
  await embed(['An answer.']);
  const looks = () =>
    page.evaluate<{ color: string; transitionDuration: string }>(`(() => {
      const button = document.querySelector('plumb-feedback').shadowRoot.querySelector('button');
      const { color, transitionDuration } = getComputedStyle(button);
      return { color, transitionDuration };
    })()`);
  expect(await looks()).toEqual({ color: 'rgb(255, 255, 255)', transitionDuration: '0s' });
  await page.emulateMedia({ colorScheme: 'light' });
  expect((await looks()).color).toBe('rgb(0, 0, 0)');
});

describe('the demo page', () => {
  const newest = () => page.locator('article').first();
  const wrong: string[] = [];
  beforeEach(async () => {
    page.on('pageerror', (error) => wrong.push(error.message));
    page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()));
    await page.goto(local.url);
  });

  test('is asked and answered by the keyboard alone', async () => {
    const press = async (...keys: string[]) => {
      for (const key of keys) await page.keyboard.press(key);
    };
    const focused = () =>
      page.evaluate<string>(`(() => {
        let at = document.activeElement;
        while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
        return at.getAttribute('aria-label') ?? (at.labels?.[0] ?? at).textContent.trim();
      })()`);
    await press('Tab');
    expect(await focused()).toBe('Your ticket');
    await press('Control+Enter');
    await newest().locator('plumb-feedback[token]').waitFor();

    await press('Tab', 'Tab', 'Enter'); // the second example
    expect(await focused()).toBe('Your ticket');
    expect(await page.getByLabel('Your ticket').inputValue()).toMatch(/refund/);
    await press('Tab', 'Tab', 'Tab', 'Tab', 'Tab', 'ArrowRight');
    expect(await focused()).toBe('two to compare');
    await press('Tab', 'Enter');
    await newest().getByRole('button', { name: 'B is better' }).waitFor();
    await newest().locator('plumb-feedback[token]').waitFor();
    expect(await focused()).toBe('Ask');
    await press('Tab', 'Tab', 'Space');
    expect(await focused()).toBe('B is better');
    await newest().getByText('Thank you, saved.').waitFor();
    expect(wrong).toEqual([]);
  });

  test('one visitor is one rater, whatever they ask', async () => {
    const raters = new Set<string>();
    for (const name of ['Good answer', 'Bad answer']) {
      await button('Ask').click();
      await newest().locator('plumb-feedback[token]').waitFor();
      await newest().getByRole('button', { name }).click();
      await newest().getByText('Thank you, saved.').waitFor();
      await page.reload();
    }
    const { data } = await local.api<{ data: { rater: string }[] }>(
      'GET',
      '/v1/feedback?order=desc&limit=2&kind=thumb',
    );
    for (const { rater } of data) raters.add(rater);
    expect(raters.size).toBe(1);
  });

  test('says in words why there is no answer', async () => {
    await page.route('**/v1/chat/completions', (route) => route.abort());
    await button('Ask').click();
    await newest().getByText('No answer: Plumb cannot be reached. Is it running?').waitFor();
    expect(await newest().locator('.text').count()).toBe(0);
    await page.unroute('**/v1/chat/completions');
    await page.getByLabel('Your ticket').fill('word '.repeat(200));
    await button('Ask').click();
    await newest()
      .getByText(/^No answer: .*context/)
      .waitFor();
  });

  test('says of an answer whose stream ends too soon that it was broken off', async () => {
    const delta = { model: 'pol_1', choices: [{ index: 0, delta: { content: 'We are sor' } }] };
    await page.route('**/v1/chat/completions', (route) =>
      route.fulfill({ contentType: 'text/event-stream', body: `data: ${JSON.stringify(delta)}\n\n` }),
    );
    await button('Ask').click();
    await newest().getByText('Broken off: the connection ended before the answer did.').waitFor();
    expect(await newest().locator('.text').textContent()).toBe('We are sor');
  });

  test('shows what a model wrote as text, whatever it is, while it streams and after', async () => {
    // without the page's Content-Security-Policy, which would hold back the scripts by itself
    await context.close();
    context = await browser.newContext({ bypassCSP: true });
    page = await context.newPage();
    const evil = (who: string) =>
      `<img src="x" onerror="ran = '${who}'"><b>${who}</b><template shadowrootmode="open"></template>`;
    const texts = [evil('A'), evil('B')];
    let n = 1;
    await page.route('**/v1/chat/completions', (route) => {
      const chunks = [
        ...texts.slice(0, n).flatMap((text, index) =>
          // whole tags, and then one that is cut in two
          [text, '<img src="y" ', 'onerror="ran = 1">'].map((content) => ({ index, delta: { content } })),
        ),
        ...texts
          .slice(0, n)
          .map((_, index) => ({ index, delta: {}, sample_id: `smp_${index}`, finish_reason: 'stop' })),
      ];
      const events = chunks.map((choice) => ({ model: evil('model'), choices: [choice] }));
      return route.fulfill({
        contentType: 'text/event-stream',
        body: [...events.map((event) => JSON.stringify(event)), '[DONE]'].map((data) => `data: ${data}\n\n`).join(''),
      });
    });
    await page.goto(local.url);
    await page.evaluate(`
      seen = [];
      new MutationObserver((all) => {
        for (const { addedNodes } of all) for (const node of addedNodes)
          if (node.matches?.('img, b, template')) seen.push(node.outerHTML);
      }).observe(document, { subtree: true, childList: true });
    `);
    for (n of [1, 2]) {
      await page.getByLabel(n === 1 ? 'one answer' : 'two to compare').check();
      await page.getByLabel('Your ticket').fill(evil('ticket'));
      await button('Ask').click();
      await newest()
        .getByText(/, in \d/)
        .waitFor();
      const whole = texts.slice(0, n).map((text) => `${text}<img src="y" onerror="ran = 1">`);
      expect(await newest().locator('.text').allTextContents()).toEqual(whole);
      expect(await newest().locator('h2').textContent()).toBe(evil('ticket'));
      expect(await newest().locator('code').textContent()).toBe(evil('model'));
    }
    expect(
      await page.evaluate("[seen, typeof ran, document.querySelectorAll('article :is(img, b, template)').length]"),
    ).toEqual([[], 'undefined', 0]);
  });

  test('a session that is not of this deployment is left for a fresh one', async () => {
    await page.evaluate("sessionStorage.setItem('plumb-session', 'v1.a.b.c')");
    await button('Ask').click();
    await newest().locator('plumb-feedback[token]').waitFor();
    expect(await page.evaluate("sessionStorage.getItem('plumb-session')")).not.toBe('v1.a.b.c');
  });
});
