// The decoder script with its objects open to whoever asks: a call goes to the object that it names.
import type { DecoderCall } from '../../functions/policy/remote.ts';

export { Decoding } from '../../functions/decoder.ts';

export default {
  async fetch(request, { DECODING }) {
    const body = await request.text();
    const { policy, object } = JSON.parse(body) as DecoderCall;
    return DECODING.getByName(`${policy}/${object}`).fetch('http://decoder/', { method: 'POST', body });
  },
} satisfies ExportedHandler<{ DECODING: DurableObjectNamespace }>;
