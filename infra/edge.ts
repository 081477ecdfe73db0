/// <reference path="../.sst/platform/config.d.ts" />
// The edge in the cloud: the Worker with its database, its bucket and its cron, and the decoder script in its two slots. Secrets are set by `sst secret set`.

export function edge() {
  const DB = new sst.cloudflare.D1('DB');
  const BUCKET = new sst.cloudflare.Bucket('BUCKET');
  const secrets = {
    PLUMB_TOKEN_SECRETS: new sst.Secret('TokenSecrets'),
    PLUMB_PEPPER: new sst.Secret('Pepper'),
    PLUMB_SIDE_KEY: new sst.Secret('SideKey'),
  };
  const environment = Object.fromEntries(Object.entries(secrets).map(([name, secret]) => [name, secret.value]));
  const link = [DB, BUCKET];
  const api = new sst.cloudflare.Worker('Api', {
    handler: 'functions/worker.ts',
    url: true,
    link: [...link, decoder('A', BUCKET), decoder('B', BUCKET)],
    environment,
  });
  new sst.cloudflare.Cron('Schedule', {
    schedules: ['* * * * *'],
    worker: { handler: 'functions/worker.ts', link, environment },
  });
  return { api: api.url };
}

/** The decoder script in a slot, as the api is bound to it. */
function decoder(slot: 'A' | 'B', BUCKET: sst.cloudflare.Bucket) {
  const objects = new sst.cloudflare.DurableObject(`Decoding${slot}`, { className: 'Decoding' });
  const script = new sst.cloudflare.Worker(`Decoder${slot}`, {
    handler: 'functions/decoder.ts',
    link: [BUCKET, objects],
    migrations: [{ tag: 'v1', newSqliteClasses: [objects.className] }],
  });
  return new sst.Linkable(`DECODER_${slot}`, {
    properties: {},
    include: [
      sst.cloudflare.binding({
        type: 'durableObjectNamespaceBindings',
        properties: { className: 'Decoding', scriptName: script.nodes.worker.scriptName },
      }),
    ],
  });
}
