// <plumb-feedback>: a person's judgement of an answer, a thumb for one or a choice between two, sent to Plumb.
//
//   <script src="https://plumb.example/widget.js" data-key="pk_…" defer></script>
//   <plumb-feedback sample="smp_…" token="…"></plumb-feedback>
//   <plumb-feedback samples="smp_… smp_…" token="…"><p slot="a">One answer</p><p slot="b">Another</p></plumb-feedback>
//
// Sample ids and the token come with a completion (`sample_id`, `feedback_token`). Without a token, as while an answer still
// streams, nothing can be clicked. `key` (or `data-key`) and `api` on the element go before the script's own.
// Events, which bubble: plumb-vote {id, value, feedback}, plumb-undo {id}, plumb-error {status, message, final}.
// A click shows at once and is sent until the server has answered; what it refuses is taken back, and said in words.

(() => {
  if (customElements.get('plumb-feedback')) return;

  /** @typedef {1 | -1 | string | null} Value of a thumb, or who wins a choice; null is no vote */
  /** @typedef {{ api: string, key: string, tokens: string[], samples: string[] }} Question */

  const script = /** @type {HTMLScriptElement | null} */ (
    document.currentScript ?? document.querySelector('script[src*="/widget.js"]')
  );
  const origin = script?.src ? new URL(script.src).origin : location.origin;

  const WAITS = [0.5, 1, 2, 5, 10, 30];
  const REQUEST_SECONDS = 15;

  /** Too much asked, or not now: the same request may succeed later. */
  const isPassing = (/** @type {number} */ status) =>
    status === 408 || status === 409 || status === 429 || status >= 500;

  const newKey = () =>
    [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

  /** @param {number} status @param {string} detail */
  function inWords(status, detail) {
    if (status === 410) return 'this answer is too old to be judged';
    if (status === 401 || status === 403) return `this page may not send feedback (${detail})`;
    return detail;
  }

  /** What one person was asked, what they want and what the server holds of it; and the way from the one to the other. */
  class Ballot {
    /** @type {Value} */ wanted = null;
    /** @type {Value} */ held = null;
    /** Of the vote, once the server has one. */
    id = '';
    note = '';
    sending = false;
    waiting = false;
    /** Ends a wait for the next try. */
    hurry = () => {};

    /**
     * @param {Question} question
     * @param {(event?: string, detail?: object) => void} changed
     */
    constructor(question, changed) {
      this.question = question;
      this.changed = changed;
    }

    /** @param {Value} value */
    choose(value) {
      this.wanted = value;
      this.note = '';
      this.changed();
      this.hurry();
      if (!this.sending) void this.send();
    }

    /** One request at a time, each to its end: what was wanted last is what the server is told last. */
    async send() {
      this.sending = true;
      addEventListener('beforeunload', this.stay);
      while (this.wanted !== this.held) {
        const value = this.wanted;
        const { status, body } = await this.deliver(value);
        if (status < 300) {
          this.note = value === null ? 'Taken back.' : this.held === null ? 'Thank you, saved.' : 'Changed.';
          this.held = value;
          if (value !== null) this.id = body.id;
          if (value === null) this.changed('plumb-undo', { id: this.id });
          else this.changed('plumb-vote', { id: this.id, value, feedback: body });
        } else {
          if (this.wanted === value) this.wanted = this.held;
          const message = inWords(status, body.detail ?? `the server answered ${status}`);
          this.note = `Not saved: ${message}.`;
          this.changed('plumb-error', { status, message, final: true });
        }
      }
      removeEventListener('beforeunload', this.stay);
      this.sending = false;
      this.changed();
    }

    /** Tries until there is an answer that will not change. The Idempotency-Key makes one vote of all tries. */
    async deliver(/** @type {Value} */ value) {
      const { api, key, tokens, samples } = this.question;
      const undo = value === null;
      const vote =
        samples.length > 1
          ? { kind: 'choice', sample_ids: samples, winner: value }
          : { kind: 'thumb', sample_id: samples[0], value };
      const request = {
        method: undo ? 'DELETE' : 'POST',
        headers: {
          Authorization: `Bearer ${key}`,
          ...(undo
            ? { 'Feedback-Token': tokens[0] ?? '' }
            : { 'Content-Type': 'application/json', 'Idempotency-Key': newKey() }),
        },
        ...(undo ? {} : { body: JSON.stringify({ ...vote, token: tokens.length > 1 ? tokens : tokens[0] }) }),
        // a click on the way out still arrives
        keepalive: true,
      };
      for (let tries = 0; ; tries++) {
        const signal = AbortSignal.timeout(1000 * REQUEST_SECONDS);
        const response = await fetch(`${api}/v1/feedback${undo ? `/${this.id}` : ''}`, { ...request, signal }).catch(
          () => null,
        );
        const body = response && response.status !== 204 ? await response.json().catch(() => ({})) : {};
        const status = response?.status ?? 0;
        // an answer that was just broken off is stored a moment later
        const early = status === 422 && tries < 4 && /^sample_id/.test(body.errors?.[0]?.path ?? '');
        if (status && !isPassing(status) && !early) {
          this.waiting = false;
          return { status, body };
        }
        const asked = Number(response?.headers.get('Retry-After')) || 0;
        const seconds = Math.max(asked, WAITS[Math.min(tries, WAITS.length - 1)] ?? 0);
        if (!early) {
          const message = status ? (body.detail ?? `the server answered ${status}`) : 'the server cannot be reached';
          this.note = `Not saved yet: ${message}. Trying again…`;
          this.waiting = true;
          this.changed('plumb-error', { status, message, final: false });
        }
        await this.pause(seconds);
      }
    }

    /** @param {number} seconds */
    async pause(seconds) {
      /** @type {PromiseWithResolvers<void>} */
      const { promise, resolve } = Promise.withResolvers();
      const timer = setTimeout(resolve, 1000 * seconds);
      this.hurry = resolve;
      addEventListener('online', this.hurry, { once: true });
      await promise;
      clearTimeout(timer);
      removeEventListener('online', this.hurry);
      this.hurry = () => {};
    }

    /** A vote that could not be sent yet is not left behind unasked. */
    stay = (/** @type {BeforeUnloadEvent} */ event) => {
      if (this.waiting) event.preventDefault();
    };
  }

  const style = new CSSStyleSheet();
  style.replaceSync(`
    :host { display: block; margin-block: .5rem; font: inherit; line-height: 1.4; container-type: inline-size;
      --accent: var(--plumb-accent, light-dark(#0b6b54, #6fd3b5)); }
    :host([hidden]) { display: none; }
    .bar { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; min-height: 2.75rem; }
    .pair { display: grid; gap: .75rem; margin-bottom: .5rem; }
    @container (min-width: 34rem) { .pair { grid-template-columns: 1fr 1fr; } }
    .answer { display: flex; flex-direction: column; gap: .75rem; padding: .9rem; min-width: 0; overflow-wrap: anywhere;
      border: 1px solid color-mix(in srgb, currentColor 22%, transparent); border-radius: .6rem; }
    .answer.chosen { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
    .answer > button { margin-top: auto; align-self: start; }
    button { font: inherit; font-size: .9em; color: inherit; cursor: pointer; min-height: 2.75rem; padding: .3rem .85rem;
      border: 1px solid color-mix(in srgb, currentColor 35%, transparent); border-radius: .6rem;
      background: transparent; touch-action: manipulation; }
    button.thumb { display: inline-grid; place-items: center; width: 2.75rem; padding: 0; }
    button.quiet { min-height: 1.75rem; padding: .1rem .3rem; border-color: transparent; text-decoration: underline; text-underline-offset: .2em; }
    button:hover:not(:disabled) { background: color-mix(in srgb, currentColor 8%, transparent); }
    button:focus-visible { outline: 3px solid; outline-color: var(--accent); outline-offset: 2px; }
    button:disabled { cursor: default; opacity: .45; }
    button[aria-pressed="true"] { color: var(--accent); border-color: currentColor;
      background: color-mix(in srgb, currentColor 14%, transparent); }
    button[aria-pressed="true"] svg { fill: color-mix(in srgb, currentColor 30%, transparent); }
    button[hidden] { display: none; }
    svg { width: 1.35rem; height: 1.35rem; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
    .down svg { transform: rotate(180deg); }
    [role="status"] { font-size: .9em; }
    [role="status"].problem { font-weight: 600; }
    @media (prefers-reduced-motion: no-preference) { button { transition: background-color .12s, color .12s, border-color .12s; } }
    @media (forced-colors: active) {
      button[aria-pressed="true"] { forced-color-adjust: none; color: HighlightText; background: Highlight; border-color: Highlight; }
    }
  `);

  /**
   * An element with attributes and children; text comes as text nodes.
   * @param {string} tag @param {Record<string, string>} attributes @param {(Node | string)[]} children
   */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function thumbIcon() {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', '0 0 24 24');
    svg.setAttribute('aria-hidden', 'true');
    const path = document.createElementNS(svg.namespaceURI, 'path');
    path.setAttribute(
      'd',
      'M3.5 10.5h3.8v9.3H3.5z M7.3 10.8l4-7.6c1.5 0 2.5 1.1 2.5 2.5l-.5 3.6h5.2c1.2 0 2.1 1.1 1.8 2.3l-1.6 6.6c-.2.9-1 1.6-2 1.6H7.3',
    );
    svg.append(path);
    return /** @type {SVGElement} */ (svg);
  }

  class PlumbFeedback extends HTMLElement {
    static observedAttributes = ['key', 'data-key', 'api', 'sample', 'samples', 'token'];

    /** @type {Ballot | undefined} */ #ballot;
    /** @type {{ value: Value, button: HTMLButtonElement }[]} */ #options = [];
    /** What is asked, to see whether it is another question now. */
    #asked = '';
    #status = make('span', { role: 'status' });
    #undo = /** @type {HTMLButtonElement} */ (make('button', { type: 'button', class: 'quiet' }, 'Undo'));
    #retry = /** @type {HTMLButtonElement} */ (make('button', { type: 'button', class: 'quiet' }, 'Try now'));

    constructor() {
      super();
      const root = this.attachShadow({ mode: 'open' });
      root.adoptedStyleSheets = [style];
      this.#undo.addEventListener('click', () => {
        this.#pressed()?.button.focus(); // the button under the focus goes away
        this.#ballot?.choose(null);
      });
      this.#retry.addEventListener('click', () => {
        this.#pressed()?.button.focus();
        this.#ballot?.hurry();
      });
    }

    connectedCallback() {
      this.#read();
    }

    attributeChangedCallback() {
      if (this.isConnected) this.#read();
    }

    /** The vote that the server holds: 1 or -1, the winner of a choice, or null. */
    get vote() {
      return this.#ballot?.held ?? null;
    }

    #read() {
      const words = (/** @type {string} */ name) => (this.getAttribute(name) ?? '').split(/\s+/).filter(Boolean);
      /** @type {Question} */
      const question = {
        api: (this.getAttribute('api') ?? origin).replace(/\/+$/, ''),
        key: this.getAttribute('key') ?? this.dataset.key ?? script?.dataset.key ?? '',
        tokens: words('token'),
        samples: [...words('sample'), ...words('samples')].slice(0, 2),
      };
      const asked = JSON.stringify(question);
      if (asked === this.#asked) return;
      const before = this.#ballot?.question.samples.join();
      this.#asked = asked;
      const same = before === question.samples.join() && this.#ballot;
      if (same) same.question = question;
      else {
        // one that was replaced still sends what it has
        const ballot = new Ballot(question, (event, detail) => {
          if (this.#ballot === ballot) this.#show();
          if (event) this.dispatchEvent(new CustomEvent(event, { detail, bubbles: true, composed: true }));
        });
        this.#ballot = ballot;
        if (question.samples.length > 1) this.#buildChoice(question.samples);
        else this.#buildThumbs();
      }
      this.#show();
    }

    /** @param {Value} value @param {HTMLElement} button */
    #option(value, button) {
      const option = { value, button: /** @type {HTMLButtonElement} */ (button) };
      button.addEventListener('click', ({ detail }) => {
        // the second of a double click takes nothing back
        if (detail < 2) this.#ballot?.choose(this.#ballot.wanted === value ? null : value);
      });
      this.#options.push(option);
      return button;
    }

    #pressed() {
      return this.#options.find(({ value }) => value === this.#ballot?.wanted);
    }

    #buildThumbs() {
      this.#options = [];
      const thumb = (/** @type {1 | -1} */ value, /** @type {string} */ label, /** @type {string} */ side) =>
        this.#option(
          value,
          make('button', { type: 'button', class: `thumb ${side}`, 'aria-label': label, title: label }, thumbIcon()),
        );
      this.shadowRoot?.replaceChildren(
        make(
          'div',
          { class: 'bar', role: 'group', 'aria-label': 'Was this answer good?' },
          thumb(1, 'Good answer', 'up'),
          thumb(-1, 'Bad answer', 'down'),
          this.#status,
          this.#undo,
          this.#retry,
        ),
      );
    }

    /** @param {string[]} samples */
    #buildChoice(samples) {
      this.#options = [];
      const button = (/** @type {Value} */ value, /** @type {string} */ label) =>
        this.#option(value, make('button', { type: 'button' }, label));
      const answer = (/** @type {string} */ sample, /** @type {number} */ i) => {
        const name = 'AB'.charAt(i);
        return make(
          'div',
          { class: 'answer', role: 'group', 'aria-label': `Answer ${name}` },
          make('slot', { name: name.toLowerCase() }),
          button(sample, `${name} is better`),
        );
      };
      this.shadowRoot?.replaceChildren(
        make(
          'div',
          { role: 'group', 'aria-label': 'Which answer is better?' },
          make('div', { class: 'pair' }, ...samples.map(answer)),
          make(
            'div',
            { class: 'bar' },
            button('tie', 'About the same'),
            button('both_bad', 'Both are bad'),
            this.#status,
            this.#undo,
            this.#retry,
          ),
        ),
      );
    }

    #show() {
      const ballot = this.#ballot;
      if (!ballot) return;
      const { key, tokens, samples } = ballot.question;
      const missing = key ? '' : 'Feedback is not set up on this page: it has no public key.';
      for (const { value, button } of this.#options) {
        const pressed = value === ballot.wanted;
        button.disabled = !key || tokens.length === 0 || samples.length === 0;
        button.setAttribute('aria-pressed', String(pressed));
        button.closest('.answer')?.classList.toggle('chosen', pressed);
      }
      const note = missing || ballot.note;
      if (this.#status.textContent !== note) this.#status.textContent = note;
      this.#status.classList.toggle('problem', note.startsWith('Not') || note === missing);
      this.#undo.hidden = ballot.sending || ballot.held === null;
      this.#retry.hidden = !ballot.waiting;
    }
  }

  customElements.define('plumb-feedback', PlumbFeedback);
})();
