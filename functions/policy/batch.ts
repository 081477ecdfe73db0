// `Complete` for all who ask one decoder at once, where requests may wait for one another: in a Durable Object (decoder.ts one
// folder up). A loop runs a token of every choice under way and a part of the prompts that came meanwhile, gives the event
// loop its turn, and does so again. A choice has a stretch of the cache as long as it may become:
//
//   0                                                                          positions
//   | choice, under way | idle: what an answer left | free | choice, under way | idle | free |
//
// What an answer leaves stays until its place is needed: a prompt that begins like it (the next turn of a chat, the same
// instructions, the other choices of a request) takes that beginning over instead of running it.
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

/** So many requests wait; the next are refused. */
const QUEUE = 32;

export function batcher(decoder: Decoder, tokenizer: Tokenizer, chatTemplate: string): Complete {
  const promptOf = promptEncoder(decoder, tokenizer, chatTemplate);
  const stretches: Stretch[] = []; // by start
  let waiting: Asked[] = []; // those with choices that have not begun, in the order they came
  let underWay: Sequence[] = [];
  let admissions = 0;
  let running = false;

  const choicesOf = (asked: Asked) => underWay.filter((sequence) => sequence.asked === asked).length;

  /** The first gap of that size between those stretches. */
  function gap(size: number, among: Stretch[]): number | undefined {
    let at = 0;
    for (const { start, size: taken } of among) {
      if (start - at >= size) return at;
      at = start + taken;
    }
    return decoder.positions - at >= size ? at : undefined;
  }

  /** Makes room, if need be by giving up what has been idle longest, what is to be taken over last of all. */
  function makeRoom(size: number, source: Stretch | undefined): number | undefined {
    const isIdle = (s: Stretch) => s.idleSince !== undefined;
    const busy = stretches.filter((s) => !isIdle(s));
    if (gap(size, busy) === undefined) return undefined;
    const age = (s: Stretch) => (s === source ? Number.POSITIVE_INFINITY : s.idleSince!);
    const idle = stretches.filter(isIdle).sort((a, b) => age(a) - age(b));
    for (;;) {
      const start = gap(size, stretches);
      if (start !== undefined) return start;
      stretches.splice(stretches.indexOf(idle.shift()!), 1);
    }
  }

  /** Begins choices while there is room: of those who wait, whoever has fewest under way, then whoever came first. */
  function admit(): void {
    const passedOver = new Set<Asked>();
    while (underWay.length < Math.min(decoder.slots, decoder.logitRows)) {
      const [asked] = waiting
        .filter((one) => !passedOver.has(one))
        .sort((a, b) => choicesOf(a) - choicesOf(b) || waiting.indexOf(a) - waiting.indexOf(b));
      if (!asked) return;
      const { prompt, request } = asked;
      const shared = (s: Stretch) => commonPrefix(s.held, prompt);
      const source = stretches.reduce<Stretch | undefined>(
        (best, s) => (shared(s) > (best ? shared(best) : 0) ? s : best),
        undefined,
      );
      // The last token runs in any case: its logits are what the answer begins with.
      const taken = Math.min(source ? shared(source) : 0, prompt.length - 1);
      // What another is just running is waited for: to run it too would take as long.
      const isComing = underWay.some((other) => {
        const common = Math.min(commonPrefix(other.asked.prompt, prompt), prompt.length - 1);
        return common > Math.max(taken, other.place.held.length);
      });
      if (isComing) {
        passedOver.add(asked);
        continue;
      }
      const size = stretch(Math.min(decoder.context, prompt.length + request.maxTokens));
      const start = makeRoom(size, source);
      if (start === undefined) return; // whoever comes after does not overtake
      if (source && taken > 0 && source.start !== start) decoder.copy(source.start, start, taken);
      const place: Stretch = { start, size, held: prompt.slice(0, taken) };
      stretches.push(place);
      stretches.sort((a, b) => a.start - b.start);
      underWay.push({ asked, choice: startChoice(tokenizer, request, prompt, asked.begun++), place });
      admissions++;
      if (asked.begun === request.n) waiting = waiting.filter((one) => one !== asked);
    }
  }

  /** The place of a choice that has ended, or is not wanted any more, is what it holds, and idle. */
  function leave({ place }: Sequence): void {
    place.size = stretch(place.held.length);
    place.idleSince = admissions;
    if (place.size === 0) stretches.splice(stretches.indexOf(place), 1);
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
      underWay = underWay.filter((other) => other !== sequence);
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
        step();
      }
    } catch (error) {
      for (const asked of [...waiting, ...underWay.map((sequence) => sequence.asked)]) {
        asked.error = error;
        asked.wake();
      }
      waiting = [];
      underWay = [];
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
    run();
    try {
      yield { type: 'prompt', promptTokens: prompt.length };
      for (let open = request.n; open > 0; ) {
        signal.throwIfAborted();
        if (asked.error) throw asked.error;
        const chunk = asked.chunks.shift();
        if (!chunk) {
          await new Promise<void>((resolve) => {
            asked.wake = resolve;
          });
          continue;
        }
        if (chunk.type === 'end') open--;
        yield chunk;
      }
    } finally {
      signal.removeEventListener('abort', wake);
      waiting = waiting.filter((one) => one !== asked);
      for (const sequence of underWay.filter((one) => one.asked === asked)) leave(sequence);
      underWay = underWay.filter((one) => one.asked !== asked);
    }
  };
}
