// A policy that decodes in the decoder script (../decoder.ts), behind the same interface as one that decodes here. The wire:
// a POST of `DecoderCall`, answered by a line of JSON for each chunk, or by a problem of the request as a status.
import { ChatTemplateError } from '../../schema/chat.ts';
import type { Complete, CompletionChunk, CompletionRequest } from '../../schema/completion.ts';
import { ContextOverflow, DecoderBusy } from './choice.ts';

export interface DecoderCall {
  /** The policy's files, by their hashes. */
  image: string;
  tokenizer: string;
  chatTemplate: string;
  /** Without one, the policy is loaded and that is all. */
  request?: Omit<CompletionRequest, 'logitBias'> & { logitBias?: [id: number, bias: number][] };
}
export type DecoderLine = CompletionChunk | { type: 'error'; message: string };
export type DecoderProblem =
  | { type: 'busy'; message: string }
  | { type: 'context'; promptTokens: number; context: number }
  | { type: 'template'; message: string };

/** Objects that may decode one policy at once, each in an isolate of its own. */
const MOST_OBJECTS = 8;
/** How many of them there are, as far as this isolate knows: one more when all were full, one less when that has not been for a while. */
const objects = new Map<string, { count: number; since: number }>();
const CALM_MS = 10 * 60_000;

function objectsOf(policy: string): number {
  const known = objects.get(policy);
  if (!known || known.count === 1) return 1;
  if (Date.now() - known.since > CALM_MS) objects.set(policy, { count: known.count - 1, since: Date.now() });
  return objects.get(policy)!.count;
}

/** A number of so many, the same for the same text. */
function placeOf(text: string, among: number): number {
  let hash = 0;
  for (const char of text) hash = (Math.imul(hash, 31) + char.codePointAt(0)!) >>> 0;
  return hash % among;
}

/** Answers' pieces from lines that come in whatever parts. */
async function* linesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<DecoderLine> {
  let rest = '';
  for await (const part of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split('\n');
    rest = lines.pop()!;
    for (const line of lines) yield JSON.parse(line);
  }
}

function thrown(problem: DecoderProblem): Error {
  if (problem.type === 'context') return new ContextOverflow(problem.promptTokens, problem.context);
  if (problem.type === 'template') return new ChatTemplateError(problem.message);
  return new DecoderBusy(problem.message);
}

export function remoteDecoder(slot: DurableObjectNamespace, policy: string, files: Omit<DecoderCall, 'request'>) {
  async function post(object: number, call: DecoderCall, signal?: AbortSignal): Promise<Response> {
    const stub = slot.getByName(`${policy}/${object}`);
    const response = await stub.fetch('http://decoder/', {
      method: 'POST',
      body: JSON.stringify(call),
      ...(signal && { signal }),
    });
    // 503: the platform's word for an object that is overloaded or a script that is not there
    if (response.status === 503) {
      await response.body?.cancel();
      return Response.json({ type: 'busy', message: 'the decoder script is not there' } satisfies DecoderProblem, {
        status: 429,
      });
    }
    return response;
  }

  /** Has the policy loaded, where it is not yet, and says how many tokens a prompt and its answer may have there. */
  async function load(): Promise<{ context: number }> {
    const response = await post(0, files);
    if (response.status !== 200) throw thrown(await response.json());
    return response.json();
  }

  const complete: Complete = async function* (request, signal) {
    const { logitBias, ...rest } = request;
    const call = { ...files, request: { ...rest, ...(logitBias && { logitBias: [...logitBias] }) } };
    // Who comes again is served where what was asked before may still be held; who finds it full, by another.
    let among = objectsOf(policy);
    let response = await post(placeOf(request.session ?? '', among), call, signal);
    let refusal: DecoderProblem | undefined; // the first one's: the others may be no more than names for the same isolate
    while (response.status === 429 && among < MOST_OBJECTS) {
      const next: DecoderProblem = await response.json();
      refusal ??= next;
      response = await post(among, call, signal);
      among++;
      if (response.status === 200)
        objects.set(policy, { count: Math.max(among, objectsOf(policy)), since: Date.now() });
    }
    if (response.status === 429 && refusal) throw thrown(refusal);
    if (response.status !== 200) throw thrown(await response.json());
    for await (const line of linesOf(response.body!)) {
      if (line.type === 'error') throw new Error(`the decoder: ${line.message}`);
      yield line;
    }
    signal.throwIfAborted();
  };
  return { load, complete };
}
