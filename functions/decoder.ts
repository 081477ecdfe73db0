// Entry of the second script: it decodes policies that are too large for the api's isolate. It is deployed twice, as slots a and
// b, each an isolate of its own: a release is loaded where stable is not. In a slot a Durable Object owns the batch, since
// plain requests cannot work for one another.
import { DurableObject } from 'cloudflare:workers';
import { ChatTemplateError } from '../schema/chat.ts';
import type { Complete } from '../schema/completion.ts';
import { readTokenizer, type Tokenizer } from '../schema/tokenizer.ts';
import { batcher } from './policy/batch.ts';
import { ContextOverflow, DecoderBusy } from './policy/choice.ts';
import module from './policy/decoder.relaxed.wasm';
import { type Place, streamedDecoder, type WasmDecoder } from './policy/load.ts';
import { type DecoderCall, type DecoderLine, type DecoderProblem, ISOLATE_HEADER } from './policy/remote.ts';
import { noRoomBeside, roomInSlot } from './policy/room.ts';
import { streamBlob } from './store/blobs.ts';

/**
 * The one decoder of this isolate, and which object's it is: several objects may live in an isolate, which has no memory
 * for a second. Who comes while another's is in use is told so, and finds an object elsewhere, or the other, where that is of the same
 * policy; one that is idle is taken over, with its weights where they are the same.
 */
let decoder: WasmDecoder | undefined;
const place: Place = {};
let owner: { object: Decoding; call: DecoderCall; ready: Promise<Complete>; uses: number } | undefined;
/** This isolate's name. */
let isolate: string | undefined;

/** A policy that was trained from the one before has its tokenizer: reading that takes time, and memory. */
let read: { tokenizer: string; encoding: Tokenizer } | undefined;

async function load(bucket: R2Bucket, { image, tokenizer, chatTemplate }: DecoderCall): Promise<Complete> {
  decoder = undefined; // until the image is whole
  if (read?.tokenizer !== tokenizer) {
    read = undefined;
    read = { tokenizer, encoding: await encodingOf(bucket, tokenizer) };
  }
  const { encoding } = read;
  decoder = await streamedDecoder(module, streamBlob(bucket, image), roomInSlot, place);
  return batcher(decoder, encoding, chatTemplate);
}

/**
 * By itself, so that the file is let go before there is an image. Where there was one its place is void, and in memory that nothing else may
 * have: the file is read into that.
 */
async function encodingOf(bucket: R2Bucket, sha: string): Promise<Tokenizer> {
  const { instance } = place;
  let file = instance ? new Uint8Array(instance.memory.buffer, instance.weightsAt()) : new Uint8Array();
  let length = 0;
  for await (const piece of streamBlob(bucket, sha)) {
    if (length + piece.length > file.length) {
      const longer = new Uint8Array(length + Math.max(length, piece.length));
      longer.set(file.subarray(0, length));
      file = longer;
    }
    file.set(piece, length);
    length += piece.length;
  }
  return readTokenizer(file.subarray(0, length));
}

function problem(status: number, body: DecoderProblem): Response {
  return Response.json(body, { status, headers: { [ISOLATE_HEADER]: isolate! } });
}

export class Decoding extends DurableObject<{ BUCKET: R2Bucket }> {
  override async fetch(request: Request): Promise<Response> {
    isolate ??= crypto.randomUUID();
    const call = (await request.json()) as DecoderCall;
    if (owner?.object !== this) {
      if (owner && owner.uses > 0) {
        const { policy, object } = owner.call;
        if (policy !== call.policy) return problem(429, { type: 'busy', message: 'another policy decodes here' });
        return problem(429, { type: 'busy', message: 'another object of this policy decodes here', owner: object });
      }
      const held = owner && decoder && owner.call.image === call.image && read?.tokenizer === call.tokenizer;
      const noRoom = !held && place.instance && noRoomBeside(place.instance.memory.buffer.byteLength, call.vocabulary);
      if (noRoom) return problem(429, { type: 'busy', message: noRoom }); // and what was held goes on
      // a batch of its own: the other's may still have a turn before it is at rest
      const ready = held ? batcher(decoder!, read!.encoding, call.chatTemplate) : load(this.env.BUCKET, call);
      owner = { object: this, call, ready: Promise.resolve(ready), uses: 0 };
    }
    const own = owner;
    own.uses++;
    let used = true;
    const end = () => {
      if (used) own.uses--;
      used = false;
    };
    // before anything is waited for: of a client that leaves before the head is out nothing else is heard, and its stream is neither read nor cancelled
    const leaving = new AbortController();
    request.signal.addEventListener('abort', () => leaving.abort());
    let streaming = false;
    try {
      const complete = await own.ready.catch((error) => {
        if (owner === own) owner = undefined; // is tried again
        throw error;
      });
      if (!call.request)
        return Response.json({ context: decoder!.context }, { headers: { [ISOLATE_HEADER]: isolate } });
      const { logitBias, ...rest } = call.request;
      const asked = { ...rest, ...(logitBias && { logitBias: new Map(logitBias) }) };
      const chunks = complete(asked, leaving.signal)[Symbol.asyncIterator]();
      leaving.signal.addEventListener('abort', async () => {
        await chunks.return?.();
        end();
      });
      const first = await chunks.next();
      streaming = true;
      return new Response(lines(first, chunks, leaving, end), {
        // what lies between may hold back or compress what does not look like a stream
        headers: { 'Content-Type': 'text/event-stream', 'Content-Encoding': 'identity', [ISOLATE_HEADER]: isolate },
      });
    } catch (error) {
      if (error instanceof ContextOverflow)
        return problem(400, { type: 'context', promptTokens: error.promptTokens, context: error.context });
      if (error instanceof ChatTemplateError) return problem(400, { type: 'template', message: error.message });
      if (error instanceof DecoderBusy)
        return problem(429, { type: 'busy', message: error.message, owner: call.object });
      throw error;
    } finally {
      if (!streaming) end();
    }
  }
}

/** A chunk a line; `end` when there are no more. */
function lines(
  first: IteratorResult<DecoderLine>,
  chunks: AsyncIterator<DecoderLine>,
  leaving: AbortController,
  end: () => void,
): ReadableStream<Uint8Array> {
  const utf8 = new TextEncoder();
  let step: IteratorResult<DecoderLine> | undefined = first;
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const write = (line: DecoderLine) => controller.enqueue(utf8.encode(`${JSON.stringify(line)}\n`));
      try {
        const { value, done: over } = step ?? (await chunks.next());
        step = undefined;
        if (!over) return write(value);
      } catch (error) {
        if (!leaving.signal.aborted) write({ type: 'error', message: error instanceof Error ? error.message : '' });
      }
      end();
      controller.close();
    },
    cancel: () => leaving.abort(),
  });
}

export default {
  fetch: () => new Response('plumb decodes here; it is asked by the api', { status: 404 }),
} satisfies ExportedHandler;
