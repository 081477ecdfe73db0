// A policy behind the api, SmolLM2 unless another is named, and one decoder script: for what is to be known of these alone.
import { insertKey, makeKey } from '../../functions/store/keys.ts';
import { importPolicy } from '../../functions/store/policies.ts';
import { freePort } from '../../infra/home.ts';
import { startDecoder, startWorker, withStore } from '../../infra/local.ts';
import { importFrom } from '../../trainer/import/import.ts';
import { smollm2 } from '../../trainer/import/smollm2.ts';

export async function serveLarge(home: string, more: Parameters<typeof startDecoder>[2], from?: string) {
  const { manifest, files } = importFrom(from ?? (await smollm2()), 'served');
  const { plain: key, row } = await makeKey('sk', undefined, [], 'of the test');
  await withStore(home, async ({ DB, BUCKET }) => {
    await importPolicy(DB, BUCKET, manifest, Object.fromEntries(files), 'stable');
    await insertKey(DB, row);
  });
  const decoder = await startDecoder(home, 'a', more);
  await decoder.ready;
  const secret = 'a secret of the test';
  const port = await freePort();
  const api = await startWorker(home, port, {
    PLUMB_TOKEN_SECRETS: `a:${secret}`,
    PLUMB_PEPPER: secret,
    PLUMB_SIDE_KEY: secret,
  });
  await api.ready;
  return {
    url: `http://127.0.0.1:${port}`,
    key,
    manifest,
    files,
    close: () => Promise.all([decoder.dispose(), api.dispose()]),
  };
}
