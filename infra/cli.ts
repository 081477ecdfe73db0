// The plumb command. Each command loads what it needs: serving never waits for the training engine, nor a list for the Worker.

import { existsSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { z } from 'zod';
import { MalformedFile } from '../schema/malformed.ts';
import type { Key } from '../schema/wire.ts';
import type { Policy, Run } from '../schema/wire-runs.ts';
import { trainCommand } from '../trainer/cli.ts';
import { device, engineFolder, engineReady, setUpEngine, stockAsked } from '../trainer/engine/setup.ts';
import { EngineError } from '../trainer/engine/wheel.ts';
import { makeFolder } from '../trainer/folder.ts';
import { DivergedError } from '../trainer/metrics.ts';
import { UserError } from '../trainer/user-error.ts';
import { DEFAULT_PORT, devFile, homeFolder } from './home.ts';
import { isStopping, stopOnSignals } from './signals.ts';

const port = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > 65_535)
    throw new InvalidArgumentError('a port is a number from 1 to 65535');
  return value;
};

const whole = (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('not a whole number above 0');
  return value;
};

const plumb = new Command('plumb')
  .description('Keep a language model true to the people who use it.')
  .showHelpAfterError('(npx plumb --help lists the commands)')
  .hook('preAction', (_, command) => {
    // what a script's unset variable leaves: it names no folder, no policy and nobody
    for (const option of command.options) {
      const value = command.getOptionValue(option.attributeName());
      if (
        typeof value === 'string' &&
        value.trim() === '' &&
        command.getOptionValueSource(option.attributeName()) === 'cli'
      )
        throw new UserError(`${option.long} is empty: give it a value, or leave it out`);
    }
    if (command.args.some((argument) => argument.trim() === ''))
      throw new UserError(`an argument of ${command.name()} is empty: give it a value, or leave it out`);
  });

plumb
  .command('dev')
  .description('the whole system on this machine: the Worker with its database and storage, the launcher, the cron')
  .option('--port <n>', 'where it listens', port, DEFAULT_PORT)
  .action(async (options) => {
    const began = performance.now();
    const { startLocal } = await import('./local.ts');
    const local = await startLocal({ home: homeFolder(), port: options.port, cronSeconds: 60 });
    stopOnSignals(local.close); // before it is said
    console.log(`
  Plumb serves ${local.policy} (ready in ${((performance.now() - began) / 1000).toFixed(1)} s)

  demo page    ${local.url}/
  API          ${local.url}/v1  (documents: ${local.url}/docs)
  secret key   ${local.keys.secret}
  public key   ${local.keys.public}
  data         ${homeFolder()}

  Ctrl-C stops it; the data stay.
`);
    if (!engineReady())
      await setUpEngine(progressLine()).then(
        () => console.log('  training engine: ready'),
        (error) => console.error(`  no training engine yet: ${error.message}`),
      );
  });

plumb
  .command('demo')
  .description('two rounds of the loop with simulated raters, before your eyes')
  .addOption(
    new Option(
      '--model <model>',
      'the embedded policy, or SmolLM2-135M-Instruct (98 MB; a round takes 20 to 40 minutes)',
    )
      .choices(['seed', 'smollm2'])
      .default('seed'),
  )
  .option('--rounds <n>', 'rounds of judging and training (2; 1 with smollm2)', whole)
  .option('--bias', 'raters with a planted bias against dialect B')
  .addOption(new Option('--mode <mode>', 'what raters go by').choices(['gold', 'random', 'inverted']).default('gold'))
  .option('--seed <n>', 'of tickets and raters', whole, 1)
  .option('--json', 'the last line is one JSON object')
  .action(async (options) => {
    await setUpEngine(progressLine());
    const { demo } = await import('./demo.ts');
    await demo({ ...options, rounds: options.rounds ?? (options.model === 'seed' ? 2 : 1) }, progressLine());
  });

plumb
  .command('engine')
  .description('which training engine is used, why, and how to mend it')
  .option('--install', 'set it up now')
  .action(async (options) => {
    if (options.install) await setUpEngine(progressLine());
    const which = device();
    console.log(`device   ${which} (${which === 'gpu' ? 'nvidia-smi answers' : 'nvidia-smi does not answer'})`);
    console.log(`folder   ${engineFolder()}`);
    if (stockAsked()) {
      await import('../trainer/engine/tf.ts');
      console.log('engine   the stock tfjs-node package, for PLUMB_ENGINE=stock: slow, no compiled calls');
    } else if (engineReady()) {
      const { compile } = await import('../trainer/engine/compile.ts');
      const { hasBfloat16, tf } = await import('../trainer/engine/tf.ts');
      const twice = compile('check', (x: ReturnType<typeof tf.scalar>) => tf.mul(x, 2));
      const works = twice(tf.scalar(21)).dataSync()[0] === 42;
      console.log(
        works
          ? 'engine   TensorFlow 2.21, compiled calls work'
          : 'engine   computes wrongly: remove the folder and run npx plumb engine --install',
      );
      console.log(
        hasBfloat16
          ? 'products bfloat16 for models of four million weights or more, float32 below (PLUMB_PRECISION changes it)'
          : 'products float32 (this processor does not multiply bfloat16)',
      );
      if (!works) process.exitCode = 1;
    } else {
      console.log(
        'engine   not set up: npx plumb engine --install does it (Python with pip, and a download of some 280 MB)',
      );
      process.exitCode = 1;
    }
  });

plumb
  .command('job')
  .description(
    'work one run for the Worker (what a launcher starts; PLUMB_URL, PLUMB_RUN and PLUMB_JOB_TOKEN say which)',
  )
  .action(async () => {
    const { PLUMB_URL: url, PLUMB_RUN: run, PLUMB_JOB_TOKEN: token, PLUMB_FENCE: fence } = process.env;
    if (!url || !run || !token)
      throw new UserError('PLUMB_URL, PLUMB_RUN and PLUMB_JOB_TOKEN must be set: a launcher does that');
    // The lease is kept while the engine is being set up, which may take as long as the download does.
    const say = (path: string, body: object) =>
      fetch(`${url}/v1/jobs/${run}/${path}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: JSON.stringify({ fence: Number(fence ?? 1), ...body }),
      }).catch(() => null);
    const beat = async () => {
      const answer = await say('heartbeat', { stage: 'engine', step: 0, steps: 1, metrics: [] });
      if (answer?.status === 410) process.exit(143);
    };
    const beats = engineReady() ? undefined : setInterval(beat, 10_000);
    try {
      await setUpEngine(progressLine());
    } catch (error) {
      await say('fail', { error: (error as Error).message });
      throw error;
    } finally {
      clearInterval(beats);
    }
    const { Gone, workJob } = await import('../trainer/job.ts');
    const { compilations } = await import('../trainer/engine/compile.ts');
    const { toAll, toFile, toTerminal } = await import('../trainer/metrics.ts');
    const { toTensorBoard } = await import('../trainer/tensorboard.ts');
    const runs = join(homeFolder(), 'runs');
    makeFolder(runs);
    const local = toAll(
      toFile(join(runs, `${run}.jsonl`)),
      toTensorBoard(join(homeFolder(), 'tensorboard', run)),
      toTerminal(process.stdout, compilations),
    );
    const { GRACE, saveOnSignals } = await import('../trainer/interrupt.ts');
    const { endInTime } = await import('../trainer/engine/tf.ts');
    saveOnSignals();
    endInTime(GRACE);
    try {
      console.log(await workJob({ url, run, token, ...(fence && { fence: Number(fence) }) }, local));
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
      console.log(error.message);
    }
  });

plumb
  .command('import <path>')
  .description(
    'publish a policy from a folder in Hugging Face’s layout or a .gguf file, or one that another server decodes, by its address; prints its id last',
  )
  .option('--name <name>', 'what to call it')
  .option('--model <model>', 'of another server: what it calls the model')
  .option('--release <channel>', 'release it to a channel: stable or canary')
  .action(async (path, options) => {
    const isServer = /^https?:\/\//.test(path);
    if (isServer !== (options.model !== undefined))
      throw new UserError(
        isServer
          ? `--model says which model ${path} is to answer with`
          : `--model is of another server with OpenAI’s API: give its address (https://…/v1) in place of ${path}`,
      );
    if (options.release && !['stable', 'canary'].includes(options.release))
      throw new UserError(`${options.release} is not a channel: stable or canary`);
    if (isServer) {
      const address = URL.parse(path);
      if (!address) throw new UserError(`${path} is not an address`);
      if (address.search || address.hash)
        throw new UserError(`${path} goes on behind its path: routes (/chat/completions) are put at its end`);
      if (address.username || address.password)
        throw new UserError(
          'the address holds a password: give keys of servers in PLUMB_UPSTREAM_KEYS when Plumb starts',
        );
      const { publishUpstream } = await import('./local.ts');
      const upstream = { url: path.replace(/\/+$/, ''), model: options.model };
      await fetch(`${upstream.url}/models`, { signal: AbortSignal.timeout(5_000) }).catch(() =>
        console.error(`nothing answers at ${upstream.url} now; it is to when it is asked for a completion`),
      );
      console.log(await publishUpstream(homeFolder(), upstream, options.name ?? options.model, options.release));
      return;
    }
    if (!existsSync(path)) throw new UserError(`there is no ${path}`);
    if (!statSync(path).isDirectory() && !path.endsWith('.gguf'))
      throw new UserError(
        `${path} is neither a folder with config.json, tokenizer.json and model.safetensors nor a .gguf file`,
      );
    const { publish } = await import('./local.ts');
    const from = resolve(path);
    console.log(await publish(homeFolder(), from, options.name ?? basename(from, '.gguf'), options.release));
    // who serves this data begins to load it before it is asked for
    const dev = devFile();
    if (dev && options.release === 'stable')
      await fetch(`${dev.url}/readyz`, { signal: AbortSignal.timeout(5_000) }).catch(() => {});
  });

plumb
  .command('export <policy>')
  .description(
    'write a policy (its id, stable or canary) to a folder in Hugging Face’s layout, or to a .gguf file of llama.cpp',
  )
  .requiredOption('--to <path>', 'a new folder, or a file that ends in .gguf')
  .addOption(
    new Option('--type <type>', 'what a .gguf file’s matrices are in (default: f16)').choices(['f32', 'f16', 'q8_0']),
  )
  .action(async (policy, { to, type }) => {
    const { exportTo, requireWritable } = await import('../trainer/export/export.ts');
    const { readBlob } = await import('../functions/store/blobs.ts');
    const { readManifest } = await import('../functions/store/policies.ts');
    const { lookup } = await import('../functions/store/keys.ts');
    const { withStore } = await import('./local.ts');
    requireWritable(to, type);
    await withStore(homeFolder(), async ({ DB, BUCKET }) => {
      const { channels } = await lookup(DB, undefined, true);
      const id = policy === 'stable' || policy === 'canary' ? channels[policy as 'stable' | 'canary']?.policy : policy;
      const manifest = id && (await readManifest(BUCKET, id));
      if (!manifest)
        throw new UserError(
          id ? `there is no policy ${id}: npx plumb policies lists them` : `nothing is released to ${policy}`,
        );
      if ('upstream' in manifest)
        throw new UserError(`${id} decodes at ${manifest.upstream.url}: its weights are not here`);
      const files = new Map<string, Uint8Array>();
      for (const { name, sha256 } of manifest.files) {
        const bytes = await readBlob(BUCKET, sha256).catch((error) => {
          throw new UserError(`${name} of ${id} cannot be read (${error.message}): import the policy again`);
        });
        files.set(name, bytes);
      }
      exportTo(to, files, manifest.name, type);
      console.log(`${id} is in ${to}`);
    });
  });

// ---- what asks a running Plumb over HTTP

const notPlumb = () =>
  new UserError(`what answers at ${process.env.PLUMB_URL ?? devFile()?.url} is not Plumb: check PLUMB_URL`);

/** Calls the API of PLUMB_URL with PLUMB_KEY, or of the Plumb that runs on this machine. */
async function api<T>(method: string, path: string, body?: object): Promise<T> {
  const dev = devFile();
  const url = process.env.PLUMB_URL ?? dev?.url;
  // This machine's own key is for its own Plumb: it goes nowhere else.
  const key = process.env.PLUMB_KEY ?? (url === dev?.url ? dev?.keys.secret : undefined);
  if (url && !key) throw new UserError(`PLUMB_URL=${url} wants a key of its own: set PLUMB_KEY`);
  if (!url || !key) throw new UserError('no Plumb runs here: start one (npm start), or set PLUMB_URL and PLUMB_KEY');
  const init: RequestInit = {
    method,
    headers: { authorization: `Bearer ${key}`, ...(body && { 'content-type': 'application/json' }) },
  };
  if (body) init.body = JSON.stringify(body);
  if (!URL.canParse(url)) throw new UserError(`PLUMB_URL=${url} is not an address such as https://plumb.example.org`);
  const response = await fetch(url + path, init).catch((error) => {
    throw new UserError(`Plumb at ${url} cannot be reached (${error.cause?.code ?? error.message}): is it running?`);
  });
  if (response.status === 204) return undefined as T;
  const answer = (await response.json().catch(() => {
    throw notPlumb();
  })) as T & { detail?: string; title?: string };
  if (!response.ok) throw new UserError(`${answer.title ?? response.status}: ${answer.detail ?? ''}`);
  return answer;
}
/** The newest of a list, as many as one answer holds, oldest first. */
async function newest<T>(path: string): Promise<T[]> {
  const { data } = await api<{ data?: T[] }>('GET', `${path}?order=desc&limit=1000`);
  if (!Array.isArray(data)) throw notPlumb();
  return data.toReversed();
}
const table = (rows: string[][]): void => {
  if (rows.length === 0) console.log('none yet');
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]!.length))) ?? [];
  for (const row of rows)
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    );
};

const keys = plumb.command('keys').description('who may call the API');
keys
  .command('create')
  .description('make a key; it is shown this once')
  .addOption(new Option('--kind <kind>', 'sk: for servers, pk: for browsers').choices(['sk', 'pk']).default('sk'))
  .option('--scopes <list>', 'of a secret key, with commas')
  .option('--origins <list>', 'pages that may use a public key, with commas')
  .option('--name <name>', 'for the list', '')
  .action(async ({ kind, scopes, origins, name }) => {
    if (kind === 'pk' && !origins)
      throw new UserError('a public key works from the pages that it names: --origins https://your.page,…');
    const made = await api<{ id: string; key: string }>('POST', '/v1/keys', {
      kind,
      name,
      ...(scopes && { scopes: scopes.split(',').map((scope: string) => scope.trim()) }),
      ...(origins && { origins: origins.split(',').map((origin: string) => origin.trim()) }),
    });
    console.log(`${made.id}\n${made.key}`);
  });
keys
  .command('list')
  .description('every key, without its secret')
  .action(async () => {
    const keys = await newest<Key>('/v1/keys');
    table(
      keys.map(({ id, kind, revoked_at, created_at, name, scopes, origins }) => [
        id,
        kind,
        revoked_at ? 'revoked' : 'valid',
        created_at,
        (kind === 'pk' ? origins : scopes).join(','),
        name,
      ]),
    );
  });
keys
  .command('revoke <id>')
  .description('end a key; within 30 seconds nothing accepts it')
  .action(async (id) => {
    await api('DELETE', `/v1/keys/${encodeURIComponent(id)}`);
    console.log(`${id} revoked`);
  });

/** What a rejected candidate failed by, in the gate's words. */
const GateReasons = z.object({ reasons: z.array(z.object({ passed: z.boolean(), words: z.string() })) });
function failedIn({ status, report }: Run): string[] {
  const read = GateReasons.safeParse(report);
  if (status !== 'rejected' || !read.success) return [];
  return read.data.reasons.filter(({ passed }) => !passed).map(({ words }) => words);
}

plumb
  .command('runs')
  .description('training runs, oldest first')
  .action(async () => {
    const runs = await newest<Run>('/v1/runs');
    table(
      runs.map((run) => [
        run.id,
        run.status,
        run.stage ? `${run.stage} ${run.step}/${run.steps}` : '',
        [run.policy, run.error, ...failedIn(run)].filter(Boolean).join('  '),
      ]),
    );
  });

plumb
  .command('policies')
  .description('policies, oldest first, with the channels that serve them')
  .action(async () => {
    const policies = await newest<Policy>('/v1/policies');
    table(
      policies.map((policy) => [
        policy.id,
        policy.name,
        policy.withdrawn_at ? 'withdrawn' : policy.channels.join(' '),
        policy.created_at,
        policy.parent ?? '',
      ]),
    );
  });

// ---- training

plumb.addCommand(trainCommand(() => setUpEngine(progressLine())));

plumb
  .command('sim')
  .description('rounds of the loop on files, without HTTP, in the little world')
  .usage('[options]')
  .addHelpText(
    'after',
    `  --rounds n       rounds a seed (2)
  --seeds 1,2,3    one simulation each, as many at once as there are cores (1)
  --judgements n   votes a round (400)
  --tickets n      of the evaluation (1000)
  --mode mode      gold: raters go by gold, and err; random: they toss coins; inverted: they prefer the worse (gold)
  --bias           a cohort casts most of dialect B's votes, and prefers curt answers there
  --no-gate        what the gate rejects is served none the less
  --config json    of the runs, such as '{"ppo": {"learningRate": 0}}'
  --policy folder  what to start from (the seed policy)
  --json           a line of JSON a seed
  --quiet          no progress`,
  )
  .allowUnknownOption()
  .allowExcessArguments()
  .action(async () => {
    const { sim } = await import('../trainer/seed/sim.ts');
    await sim(process.argv.slice(3), () => setUpEngine(progressLine()));
  });

/** Setting-up as one line that is overwritten on a terminal, a line a step elsewhere. */
function progressLine(stream: NodeJS.WriteStream = process.stderr) {
  let last = '';
  return (step: string, share?: number) => {
    const bar =
      share === undefined ? '' : ` ${'█'.repeat(Math.round(20 * share)).padEnd(20, '·')} ${Math.round(100 * share)} %`;
    if (stream.isTTY) stream.write(`\r\x1b[K  training engine: ${step}${bar}${share === 1 ? '\n' : ''}`);
    else if (step !== last) stream.write(`  training engine: ${step}\n`);
    last = step;
  };
}

try {
  await plumb.parseAsync();
} catch (error) {
  // What the user can mend is one line; anything else is a defect, and its trace is wanted.
  if (error instanceof CommanderError) process.exitCode = error.exitCode;
  else if (!isStopping()) {
    const { code, message, syscall } = error as NodeJS.ErrnoException;
    const mendable =
      error instanceof UserError ||
      error instanceof EngineError ||
      error instanceof DivergedError ||
      error instanceof MalformedFile ||
      syscall !== undefined || // a full disk, a folder that is not ours
      code?.startsWith('ERR_PARSE_ARGS') === true;
    const remedy = code === 'ENOSPC' ? ': free some space, and do it again' : '';
    console.error(mendable ? `plumb: ${message}${remedy}` : error);
    process.exit(1);
  }
}
