// `Complete` for all who ask one decoder at once, where requests may wait for one another: in a Durable Object (decoder.ts one
// folder up). A loop runs a token of every choice under way and a part of the prompts that came meanwhile, gives the event
// loop its turn, and does so again. A choice has a stretch of the cache, somewhat longer than what it has come to:
//
//   0                                                                          positions
//   | choice, under way | idle: what an answer left | free | choice, under way | idle | free |
//
// What an answer leaves stays until its place is needed: a prompt that begins like it (the next turn of a chat, the same
// instructions, the other choices of a request) takes that beginning over instead of running it. Where the cache is full of
// choices under way, the one that began last pauses until another has ended, and then goes on where it was.
import type { Complete, CompletionChunk, CompletionRequest } from '../../schema/completion.ts';
import type { Tokenizer } from '../../schema/tokenizer.ts';
import { advance, type Choice, DecoderBusy, promptEncoder, startChoice } from './choice.ts';
import { type Decoder, stretch } from './decoder.ts';
import { commonPrefix } from './generate.ts';
import { tick } from './tick.ts';

interface Stretch {
  start: number;
  size: number;
  /** Tokens whose keys and values are there. */
  held: number[];
  idleSince?: number; // counted in admissions
}
interface Asked {
  request: CompletionRequest;
  prompt: number[];
  /** Choices begun. */
  begun: number;
  chunks: CompletionChunk[];
  error?: unknown;
  wake: () => void;
}
interface Sequence {
  asked: Asked;
  choice: Choice;
  place: Stretch;
}

interface Shared {
  source: Stretch | undefined;
  taken: number;
}

/** So many requests wait; the next are refused. */
const QUEUE = 32;
/** Who has not begun after so long is refused, too, while a status can still say so. */
const PATIENCE_MS = 20_000;
/** Positions that a choice is given beyond what it has come to: most answers end long before they are as long as they may be. */
const AHEAD = 64;

export function batcher(decoder: Decoder, tokenizer: Tokenizer, chatTemplate: string): Complete {
  const promptOf = promptEncoder(decoder, tokenizer, chatTemplate);
  const stretches: Stretch[] = []; // by start
  let waiting: Asked[] = []; // those with choices that have not begun, in the order they came
  let underWay: Sequence[] = []; // in the order they began
  let paused: Sequence[] = []; // began after all of those
  let admissions = 0;
  let running = false;

  const choicesOf = (asked: Asked) => underWay.filter((sequence) => sequence.asked === asked).length;
  const isIdle = (s: Stretch) => s.idleSince !== undefined;
  const sizes = (among: Stretch[]) => among.reduce((sum, { size }) => sum + size, 0);
  const free = () => decoder.positions - sizes(stretches);
  /** What is free, or would be without what is idle. */
  const spare = () => free() + sizes(stretches.filter(isIdle));
  /** How long a stretch is to be for so many tokens and those that may follow. */
  const sizeFor = (tokens: number, { prompt, request }: Asked) =>
    stretch(Math.min(tokens + AHEAD, prompt.length + request.maxTokens, decoder.context));

  /** Gives up what has been idle longest, until so much is free. */
  function giveUp(size: number, kept?: Stretch): void {
    const idle = stretches.filter((s) => isIdle(s) && s !== kept).sort((a, b) => a.idleSince! - b.idleSince!);
    while (free() < size && idle.length > 0) stretches.splice(stretches.indexOf(idle.shift()!), 1);
  }

  const end = (i: number) => (i < 0 ? 0 : stretches[i]!.start + stretches[i]!.size);
  const gapBehind = (i: number) => (stretches[i + 1]?.start ?? decoder.positions) - end(i);

  /** Brings all that is free behind the i-th stretch: the others move to the front, and to the back. */
  function gather(i: number): void {
    const move = (place: Stretch, start: number) => {
      if (start !== place.start) decoder.copy(place.start, start, place.held.length);
      place.start = start;
    };
    for (let k = 0; k <= i; k++) move(stretches[k]!, end(k - 1));
    for (let k = stretches.length - 1, at = decoder.positions; k > i; k--) {
      at -= stretches[k]!.size;
      move(stretches[k]!, at);
    }
  }

  /** Makes a stretch longer where it is. There is to be so much to spare. */
  function lengthen(place: Stretch, size: number): void {
    giveUp(size - place.size, place);
    const i = stretches.indexOf(place);
    if (gapBehind(i) < size - place.size) gather(i);
    place.size = size;
  }

  /** The stretch that begins like these tokens for longest, and how many of them need not run. */
  function longest(tokens: number[]): Shared {
    const shared = stretches.map((s) => commonPrefix(s.held, tokens));
    const most = Math.max(0, ...shared);
    // The last token runs in any case: its logits are what comes next.
    return { source: most > 0 ? stretches[shared.indexOf(most)] : undefined, taken: Math.min(most, tokens.length - 1) };
  }

  /** A place for these tokens, with what another has run of them. Undefined where there is no room. */
  function settle(tokens: number[], asked: Asked, { source, taken }: Shared): Stretch | undefined {
    const size = sizeFor(tokens.length, asked);
    if (spare() < size) return undefined;
    giveUp(size, source);
    admissions++;
    if (free() < size) {
      // Then nothing is idle but the source, and there is no room for both.
      Object.assign(source!, { held: tokens.slice(0, taken), size: stretch(taken), idleSince: undefined });
      lengthen(source!, size);
      return source;
    }
    let before = stretches.findIndex((_, i) => gapBehind(i - 1) >= size) - 1; // −1: the gap is the first of all
    if (before < -1) {
      before = stretches.length - 1;
      if (gapBehind(before) < size) gather(before);
    }
    const place: Stretch = { start: end(before), size, held: tokens.slice(0, taken) };
    if (taken > 0) decoder.copy(source!.start, place.start, taken);
    stretches.splice(before + 1, 0, place);
    return place;
  }

  /** Those who pause go on, and others begin, while there is room: whoever has fewest under way, then whoever came first. */
  function admit(): void {
    const passedOver = new Set<Asked>();
    while (underWay.length < Math.min(decoder.slots, decoder.logitRows)) {
      const [resting] = paused;
      if (resting) {
        const tokens = [...resting.choice.prompt, ...resting.choice.ids];
        const place = settle(tokens, resting.asked, longest(tokens));
        if (!place) return;
        underWay.push({ ...paused.shift()!, place });
        continue;
      }
      const [asked] = waiting
        .filter((one) => !passedOver.has(one))
        .sort((a, b) => choicesOf(a) - choicesOf(b) || waiting.indexOf(a) - waiting.indexOf(b));
      if (!asked) return;
      const { prompt, request } = asked;
      const shared = longest(prompt);
      // What another is just running is waited for: to run it too would take as long.
      const isComing = underWay.some((other) => {
        const common = Math.min(commonPrefix(other.asked.prompt, prompt), prompt.length - 1);
        return common > Math.max(shared.taken, other.place.held.length);
      });
      if (isComing) {
        passedOver.add(asked);
        continue;
      }
      const place = settle(prompt, asked, shared);
      if (!place) return; // whoever comes after does not overtake
      underWay.push({ asked, choice: startChoice(tokenizer, request, prompt, asked.begun++), place });
      asked.wake();
      if (asked.begun === request.n) waiting = waiting.filter((one) => one !== asked);
    }
  }

  /** The place of a choice that does not go on is what it holds, and idle. */
  function leave(sequence: Sequence): void {
    const { place } = sequence;
    underWay = underWay.filter((other) => other !== sequence);
    place.size = stretch(place.held.length);
    place.idleSince = admissions;
    if (place.size === 0) stretches.splice(stretches.indexOf(place), 1);
  }

  /**
   * Whose place is full gets a longer one. Where there is no room for it, who began last pauses: the first always goes on. What
   * there is to spare then is less than what one that paused needs, so it goes on only when another has left.
   */
  function widen(): void {
    for (let i = 0; i < underWay.length; i++) {
      const { asked, place } = underWay[i]!;
      if (place.held.length < place.size) continue;
      const size = sizeFor(place.held.length + 1, asked);
      while (spare() < size - place.size) {
        const last = underWay.at(-1)!;
        leave(last);
        paused.unshift(last);
        if (underWay.length === i) return; // it was this one
      }
      lengthen(place, size);
    }
  }

  /** One call of the decoder: a token of every answer, and of the prompts as much as there is room for, in equal parts. */
  function step(): void {
    const left = ({ choice, place }: Sequence) => choice.prompt.length + choice.ids.length - place.held.length;
    const inOrder = [...underWay].sort((a, b) => left(a) - left(b));
    const rows: [token: number, position: number, start: number][] = [];
    const wanted: number[] = [];
    const sampled: Sequence[] = [];
    for (const [i, sequence] of inOrder.entries()) {
      const { choice, place } = sequence;
      const part = Math.min(left(sequence), Math.ceil((decoder.rows - rows.length) / (inOrder.length - i)));
      for (let k = 0; k < part; k++) {
        const position = place.held.length;
        const token = choice.prompt[position] ?? choice.ids[position - choice.prompt.length]!;
        rows.push([token, position, place.start]);
        place.held.push(token);
      }
      if (part > 0 && left(sequence) === 0) {
        wanted.push(rows.length - 1);
        sampled.push(sequence);
      }
    }
    decoder.forward(
      rows.map(([token]) => token),
      rows.map(([, position]) => position),
      rows.map(([, , start]) => start),
      wanted,
    );
    for (const [i, sequence] of sampled.entries()) {
      const { asked, choice } = sequence;
      const chunks = advance(decoder, tokenizer, asked.request, choice, i);
      if (chunks.length === 0) continue;
      asked.chunks.push(...chunks);
      asked.wake();
      if (chunks.at(-1)!.type !== 'end') continue;
      leave(sequence);
    }
  }

  async function run(): Promise<void> {
    if (running) return;
    running = true;
    try {
      for (;;) {
        await tick(); // whoever comes meanwhile is in the next step
        admit();
        if (underWay.length === 0) return;
        widen();
        step();
      }
    } catch (error) {
      for (const asked of [...waiting, ...[...underWay, ...paused].map((sequence) => sequence.asked)]) {
        asked.error = error;
        asked.wake();
      }
      waiting = [];
      underWay = [];
      paused = [];
      stretches.length = 0;
    } finally {
      running = false;
    }
  }

  return async function* complete(request, signal) {
    signal.throwIfAborted();
    const prompt = promptOf(request);
    if (waiting.filter(({ begun }) => begun === 0).length >= QUEUE)
      throw new DecoderBusy(`${QUEUE} requests wait already`);
    const asked: Asked = { request, prompt, begun: 0, chunks: [], wake: () => {} };
    waiting.push(asked);
    const wake = () => asked.wake();
    signal.addEventListener('abort', wake);
    const patience = setTimeout(() => {
      if (asked.begun === 0) asked.error ??= new DecoderBusy('all that there is room for answers others');
      asked.wake();
    }, PATIENCE_MS);
    const until = async (isSo: () => boolean) => {
      for (;;) {
        signal.throwIfAborted();
        if (asked.error) throw asked.error;
        if (isSo()) return;
        await new Promise<void>((resolve) => {
          asked.wake = resolve;
        });
      }
    };
    run();
    try {
      await until(() => asked.begun > 0);
      yield { type: 'prompt', promptTokens: prompt.length };
      for (let open = request.n; open > 0; ) {
        await until(() => asked.chunks.length > 0);
        const chunk = asked.chunks.shift()!;
        if (chunk.type === 'end') open--;
        yield chunk;
      }
    } finally {
      clearTimeout(patience);
      signal.removeEventListener('abort', wake);
      waiting = waiting.filter((one) => one !== asked);
      paused = paused.filter((one) => one.asked !== asked);
      for (const sequence of underWay.filter((one) => one.asked === asked)) leave(sequence);
    }
  };
}
