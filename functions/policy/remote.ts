// A policy that decodes in the decoder script (../decoder.ts), behind the same interface as one that decodes here. The wire:
// a POST of `DecoderCall`, answered by a line of JSON for each chunk, or by a problem of the request as a status.
import { ChatTemplateError } from '../../schema/chat.ts';
import type { Complete, CompletionChunk, CompletionRequest } from '../../schema/completion.ts';
import { ContextOverflow, DecoderBusy } from './choice.ts';

/** The header that says which isolate an object is in: a name that it has as long as it lives. */
export const ISOLATE_HEADER = 'plumb-isolate';
export interface DecoderCall {
  policy: string;
  /** Of the policy's objects the one that is asked. */
  object: number;
  /** The policy's files, by their hashes. */
  image: string;
  tokenizer: string;
  chatTemplate: string;
  /** Its tokens. */
  vocabulary: number;
  /** Without one, the policy is loaded and that is all. */
  request?: Omit<CompletionRequest, 'logitBias'> & { logitBias?: [id: number, bias: number][] };
}
export type DecoderLine = CompletionChunk | { type: 'error'; message: string };
export type DecoderProblem =
  /** `owner`: of the policy's objects that are in this isolate, the one that decodes there, if one does. */
  | { type: 'busy'; message: string; owner?: number }
  | { type: 'context'; promptTokens: number; context: number }
  | { type: 'template'; message: string };

/** Objects that may decode one policy at once, each in an isolate of its own. */
const MOST_OBJECTS = 8;
/**
 * By isolate, the object that decodes there, as far as this one knows: one more where all were full and another was not, one less when that
 * has not been for a while. Objects may share an isolate, which has one decoder: of those one counts.
 */
const known = new Map<string, { objects: Map<string, number>; since: number }>();
const CALM_MS = 10 * 60_000;

function objectsOf(policy: string): Map<string, number> {
  const held = known.get(policy) ?? { objects: new Map<string, number>(), since: Date.now() };
  known.set(policy, held);
  if (held.objects.size > 1 && Date.now() - held.since > CALM_MS) {
    held.objects.delete([...held.objects.keys()].at(-1)!);
    held.since = Date.now();
  }
  return held.objects;
}

/** An object was found in an isolate. */
function learn(policy: string, isolate: string, object: number): void {
  const { objects } = known.get(policy)!;
  for (const [other, there] of objects) if (there === object && other !== isolate) objects.delete(other); // it has moved
  if (!objects.has(isolate)) known.get(policy)!.since = Date.now();
  objects.set(isolate, object);
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

export function remoteDecoder(
  slot: DurableObjectNamespace,
  policy: string,
  files: Pick<DecoderCall, 'image' | 'tokenizer' | 'chatTemplate' | 'vocabulary'>,
) {
  async function post(object: number, request: DecoderCall['request'], signal?: AbortSignal): Promise<Response> {
    const stub = slot.getByName(`${policy}/${object}`);
    const response = await stub.fetch('http://decoder/', {
      method: 'POST',
      body: JSON.stringify({ policy, object, ...files, ...(request && { request }) } satisfies DecoderCall),
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

  /** Who comes again is served where what was asked before may still be held; who finds it full, by another. */
  async function answerOf(session: string, request?: DecoderCall['request'], signal?: AbortSignal): Promise<Response> {
    const objects = [...objectsOf(policy).values()];
    const asked = new Set<number>();
    let object = objects[placeOf(session, objects.length)] ?? 0;
    let refusal: DecoderProblem | undefined; // the first that was no pointer to another
    for (;;) {
      asked.add(object);
      const response = await post(object, request, signal);
      const isolate = response.headers.get(ISOLATE_HEADER);
      if (response.status !== 429) {
        if (isolate) learn(policy, isolate, object);
        return response;
      }
      const problem = (await response.json()) as DecoderProblem & { type: 'busy' };
      const { owner } = problem;
      if (isolate && owner !== undefined) learn(policy, isolate, owner);
      if (owner === object || owner === undefined) refusal ??= problem;
      const others = [...(owner === undefined ? [] : [owner]), ...objects, ...Array(MOST_OBJECTS).keys()];
      const next = others.find((one) => !asked.has(one));
      if (next === undefined) throw thrown(refusal ?? problem);
      object = next;
    }
  }

  /** Has the policy loaded, where it is not yet, and says how many tokens a prompt and its answer may have there. */
  async function load(): Promise<{ context: number }> {
    const response = await answerOf('');
    if (response.status !== 200) throw thrown(await response.json());
    return response.json();
  }

  const complete: Complete = async function* (request, signal) {
    const { logitBias, ...rest } = request;
    const call = { ...rest, ...(logitBias && { logitBias: [...logitBias] }) };
    const response = await answerOf(request.session ?? '', call, signal);
    if (response.status !== 200) throw thrown(await response.json());
    for await (const line of linesOf(response.body!)) {
      if (line.type === 'error') throw new Error(`the decoder: ${line.message}`);
      yield line;
    }
    signal.throwIfAborted();
  };
  return { load, complete };
}
