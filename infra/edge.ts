/// <reference path="../.sst/platform/config.d.ts" />
// The edge in the cloud: the Worker with its database, its bucket and its cron. Secrets are set by `sst secret set`.

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
  const api = new sst.cloudflare.Worker('Api', { handler: 'functions/worker.ts', url: true, link, environment });
  new sst.cloudflare.Cron('Schedule', {
    schedules: ['* * * * *'],
    worker: { handler: 'functions/worker.ts', link, environment },
  });
  return { api: api.url };
}
