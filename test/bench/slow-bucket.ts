// The decoder script over a bucket that is far away: 50 ms until the first byte of a file, and then 100 MB a second.
import { Decoding as Near } from '../../functions/decoder.ts';

export { default } from '../../functions/decoder.ts';

const [WAIT_MS, BYTES_A_MS] = [50, 100_000];
const PIECE = 2 ** 20;

/** A file whose bytes come no sooner than they would from there. */
async function slowed(object: R2ObjectBody): Promise<R2ObjectBody> {
  const began = Date.now();
  await scheduler.wait(WAIT_MS);
  const { readable, writable } = new IdentityTransformStream();
  const pass = async () => {
    const writer = writable.getWriter();
    const reader = object.body.getReader({ mode: 'byob' });
    let sent = 0;
    for (;;) {
      // of a mebibyte, for the turns of the event loop are not what is to be measured
      const { value: piece } = await reader.readAtLeast(PIECE, new Uint8Array(PIECE));
      if (!piece?.length) break;
      sent += piece.length;
      const early = began + WAIT_MS + sent / BYTES_A_MS - Date.now();
      if (early > 1) await scheduler.wait(early);
      await writer.write(piece);
    }
    await writer.close();
  };
  const passing = pass();
  const arrayBuffer = async () => {
    const [bytes] = await Promise.all([new Response(readable).arrayBuffer(), passing]);
    return bytes;
  };
  return { body: readable, arrayBuffer } as unknown as R2ObjectBody;
}

export class Decoding extends Near {
  constructor(state: DurableObjectState, env: { BUCKET: R2Bucket }) {
    const get = async (key: string) => {
      const object = await env.BUCKET.get(key);
      return object && slowed(object);
    };
    super(state, { BUCKET: { get } as R2Bucket });
  }
}
