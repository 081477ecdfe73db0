// What the Worker is given: bindings, secrets and variables (wrangler.jsonc), checked before the first request is served.
import { z } from 'zod';
import { inWords } from '../schema/malformed.ts';
import { RunSettings } from '../schema/run-config.ts';

export interface Env {
  DB: D1Database;
  BUCKET: R2Bucket;
  /** Where large policies decode: the decoder script's objects, as it is deployed twice. Without them such a policy is refused. */
  DECODER_A?: DurableObjectNamespace;
  DECODER_B?: DurableObjectNamespace;
  [name: `PLUMB_${string}`]: string | undefined;
}

const number = () => z.coerce.number('not a number');
const Seconds = (seconds: number) => number().positive('not above 0').default(seconds);

const json = <T extends z.ZodType>(schema: T) =>
  z
    .string()
    .default('{}')
    .transform((text, context) => {
      try {
        return JSON.parse(text);
      } catch {
        context.addIssue('not JSON');
        return z.NEVER;
      }
    })
    .pipe(schema);

const Settings = z.object({
  /** "kid:secret,kid:secret": the first signs, all are accepted. */
  PLUMB_TOKEN_SECRETS: z
    .string()
    .regex(
      /^[\w-]+:[^,:]{16,}(,[\w-]+:[^,:]{16,})*$/,
      'not a list of kid:secret, each secret of 16 characters at least',
    )
    .transform((text) => text.split(',').map((pair) => pair.split(':') as [kid: string, secret: string])),
  /** Hides raters' ids. */
  PLUMB_PEPPER: z.string().min(16),
  /** Decides the side of a conversation; never changed, or sides mix. */
  PLUMB_SIDE_KEY: z.string().min(16),
  /** Where a host's own server signs Plumb-Rater. */
  PLUMB_IDENTITY_KEY: z.string().min(16).optional(),
  /** The URL by which the trainer reaches this Worker. */
  PLUMB_URL: z.url().optional(),
  PLUMB_LAUNCHER_URL: z.url().optional(),
  PLUMB_LAUNCHER_TOKEN: z.string().default(''),
  PLUMB_DEMO: z.enum(['0', '1']).default('0'),
  /** The public key that the demo page asks with. */
  PLUMB_DEMO_KEY: z
    .string()
    .regex(/^pk_[\w-]+$/)
    .or(z.literal(''))
    .default(''),
  PLUMB_TOKEN_TTL: Seconds(30 * 24 * 3600),
  /** So many new judgements start a run, or any at all after so many seconds. */
  PLUMB_MIN_FEEDBACK: number().int('not a whole number').positive('not above 0').default(200),
  PLUMB_MAX_WAIT: Seconds(24 * 3600),
  /** Settings of the runs that the cron starts, as JSON: what `config` of POST /v1/runs takes. */
  PLUMB_RUN_CONFIG: json(RunSettings),
  /** Requests that a key may make in a minute, a public one for each visitor's address; 0: as many as it likes. */
  PLUMB_RATE_LIMIT: number().int('not a whole number').nonnegative('below 0').default(0),
  /** What to say to servers that decode a policy, as JSON: {"https://their.origin": "their key"}. */
  PLUMB_UPSTREAM_KEYS: json(z.record(z.url({ protocol: /^https?$/ }), z.string())),
  PLUMB_LEASE: Seconds(60),
  PLUMB_LAUNCH_PATIENCE: Seconds(600),
});
/** A variable or secret is missing or wrong; the message says which. */
export class Misconfigured extends Error {}

export type Settings = z.infer<typeof Settings>;

/** What is wrong with a variable's value, were it given so. */
export function settingFault(name: keyof Settings, value: string | undefined): string | undefined {
  const { error } = Settings.shape[name].safeParse(value);
  return error && inWords(error);
}

const parsed = new WeakMap<Env, Settings>();

export function settings(env: Env): Settings {
  const known = parsed.get(env);
  if (known) return known;
  const { data: fresh, error } = Settings.safeParse(env);
  if (error) throw new Misconfigured(inWords(error));
  parsed.set(env, fresh);
  return fresh;
}
