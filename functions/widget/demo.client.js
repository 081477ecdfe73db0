// The demo page: asks the released policy as any page would, with a public key, shows the answer while it streams, and
// hands its samples to <plumb-feedback>.

/** @typedef {{ index: number, delta?: { content?: string }, sample_id?: string, finish_reason?: string | null }} Piece */
/** @typedef {{ model?: string, choices?: Piece[], feedback_token?: string, session_token?: string, error?: { message: string } }} Chunk */

const EXAMPLES = [
  ['Late parcel', 'Hello, I bought a kettle on 12 May for $45, order #123; it has not arrived yet.'],
  ['Refund', 'Good morning, I bought a heater on 13 March for $50, order #187; please give me a refund.'],
  ['Charged twice', 'Alright mate, 5 August I were after a lamp, order #129, $53; me card shows two payments.'],
  ['Damaged', 'Hi there, my order #623 is a blender for $47, bought on 9 September; it arrived broken.'],
];
const MAX_TOKENS = 128;

const byId = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
const form = /** @type {HTMLFormElement} */ (byId('ask'));
const ticket = /** @type {HTMLTextAreaElement} */ (byId('ticket'));
const send = /** @type {HTMLButtonElement} */ (byId('send'));
const stop = /** @type {HTMLButtonElement} */ (byId('stop'));
const answers = byId('answers');
const key = /** @type {HTMLElement} */ (document.querySelector('script[data-key]')).dataset.key ?? '';

/** One visitor is one rater, for as long as the tab is open. */
const session = {
  get: () => sessionStorage.getItem('plumb-session'),
  set: (/** @type {string} */ token) => sessionStorage.setItem('plumb-session', token),
  forget: () => sessionStorage.removeItem('plumb-session'),
};
/** Which policy answered last. */
let policy = '';
/** @type {AbortController | undefined} */
let asking;

/** @param {string} tag @param {string} className @param {(Node | string)[]} children */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

const examples = /** @type {HTMLElement} */ (form.querySelector('.examples'));
for (const [name, text] of EXAMPLES) {
  const button = /** @type {HTMLButtonElement} */ (make('button', '', name ?? ''));
  button.type = 'button';
  button.addEventListener('click', () => {
    ticket.value = text ?? '';
    ticket.focus();
  });
  examples.append(button);
}
if (!ticket.value) ticket.value = EXAMPLES[0]?.[1] ?? '';

ticket.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
stop.addEventListener('click', () => asking?.abort());
form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = ticket.value.trim();
  if (asking || !text) return;
  asking = new AbortController();
  // not disabled: that would take the focus from whoever asks by the keyboard
  send.setAttribute('aria-disabled', 'true');
  stop.hidden = false;
  try {
    await ask(text, new FormData(form).get('mode') === 'two' ? 2 : 1, asking.signal);
  } finally {
    if (document.activeElement === stop) send.focus();
    asking = undefined;
    send.removeAttribute('aria-disabled');
    stop.hidden = true;
  }
});

/** @param {string} text @param {number} n @param {AbortSignal} signal */
async function ask(text, n, signal) {
  const texts = Array.from({ length: n }, () => make('p', 'text'));
  const body = make('div', '', ...(n === 1 ? texts : []));
  const meta = make('p', 'meta', 'Asking…');
  const entry = make('article', '', make('h2', '', text), body, meta);
  entry.setAttribute('aria-label', 'Answer');
  body.setAttribute('aria-live', 'polite');
  body.setAttribute('aria-busy', 'true');
  answers.prepend(entry);

  const began = performance.now();
  const seconds = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  const feedback = document.createElement('plumb-feedback');
  /** @type {string[]} */
  const samples = [];
  let token = '';
  try {
    for await (const chunk of completion(text, n, signal)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.session_token) session.set(chunk.session_token);
      token = chunk.feedback_token ?? token;
      if (chunk.model && samples.length === 0) answeredBy(entry, meta, chunk.model);
      for (const { index, sample_id, delta } of chunk.choices ?? []) {
        if (sample_id) samples[index] = sample_id;
        texts[index]?.append(delta?.content ?? '');
      }
      if (samples.filter(Boolean).length === n && !feedback.isConnected) place(feedback, samples, texts, body);
    }
    meta.append(`, in ${seconds()}`);
  } catch (error) {
    const empty = texts.every((one) => !one.textContent);
    if (empty) body.replaceChildren();
    const why = `${empty ? 'No answer' : 'Broken off'}: ${error instanceof Error ? error.message : error}`;
    if (signal.aborted) meta.append(`, stopped after ${seconds()}`);
    else meta.replaceChildren(make('span', 'wrong', why));
  }
  body.removeAttribute('aria-busy');
  // what has ended can be judged
  if (token) feedback.setAttribute('token', token);
}

/** One answer stands above its thumbs; of two each has its place in the element. */
function place(
  /** @type {HTMLElement} */ feedback,
  /** @type {string[]} */ samples,
  /** @type {HTMLElement[]} */ texts,
  /** @type {HTMLElement} */ body,
) {
  feedback.setAttribute('samples', samples.join(' '));
  if (texts.length > 1) {
    for (const [i, text] of texts.entries()) text.slot = 'ab'.charAt(i);
    feedback.append(...texts);
  }
  if (texts.length > 1) body.append(feedback);
  else body.after(feedback);
}

/** @param {HTMLElement} entry @param {HTMLElement} meta @param {string} model */
function answeredBy(entry, meta, model) {
  meta.replaceChildren('Answered by ', make('code', '', model));
  entry.dataset.policy = model;
  if (policy && policy !== model) entry.prepend(make('p', 'news', 'From here on another policy answers.'));
  policy = model;
}

/**
 * @param {string} text @param {number} n @param {AbortSignal} signal
 * @returns {AsyncGenerator<Chunk>}
 */
async function* completion(text, n, signal) {
  const token = session.get();
  const response = await fetch('/v1/chat/completions', {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${key}`,
      'Content-Type': 'application/json',
      ...(token ? { 'Plumb-Session': token } : {}),
    },
    body: JSON.stringify({
      model: 'default',
      messages: [{ role: 'user', content: text }],
      n,
      max_tokens: MAX_TOKENS,
      stream: true,
    }),
    signal,
  }).catch((error) => {
    throw signal.aborted ? error : new Error('Plumb cannot be reached. Is it running?');
  });
  if (!response.ok || !response.body) {
    const { error } = /** @type {Chunk} */ (await response.json().catch(() => ({})));
    const message = error?.message ?? `the server answered ${response.status}`;
    // a session that has expired, or of another deployment: a fresh one comes with the answer
    if (token && /session token/.test(message)) {
      session.forget();
      yield* completion(text, n, signal);
      return;
    }
    throw new Error(message);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const events = (rest + value).split('\n\n');
    rest = events.pop() ?? '';
    for (const event of events) {
      const data = event.replace(/^data: /, '');
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
  // whatever stands between may end the stream as if it were whole
  throw new Error('the connection ended before the answer did.');
}
