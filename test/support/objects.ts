// The decoder script with its objects open to whoever asks: a call goes to the object that it names, and is given up after so many
// milliseconds as the header says.
import type { DecoderCall } from '../../functions/policy/remote.ts';

export { Decoding } from '../../functions/decoder.ts';

export default {
  async fetch(request, { DECODING }) {
    const body = await request.text();
    const { policy, object } = JSON.parse(body) as DecoderCall;
    const patience = Number(request.headers.get('patience') ?? 60_000);
    const leaving = new AbortController();
    setTimeout(() => leaving.abort(), patience);
    try {
      const stub = DECODING.getByName(`${policy}/${object}`);
      return await stub.fetch('http://decoder/', { method: 'POST', body, signal: leaving.signal });
    } catch (error) {
      return new Response(`left: ${error}`, { status: 499 });
    }
  },
} satisfies ExportedHandler<{ DECODING: DurableObjectNamespace }>;
