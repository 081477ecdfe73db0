import { spawn } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readTensors, writeSafetensors } from '../../schema/safetensors.ts';
import { tryLock } from '../../trainer/engine/lock.ts';
import { sha256 } from '../../trainer/manifest.ts';
import { tickets } from '../../trainer/seed/world.ts';
import { PLUMB } from '../support/plumb.ts';
import { tinyFolder } from '../support/tiny-folder.ts';

const folder = mkdtempSync(join(tmpdir(), 'plumb-files-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

/** Runs plumb train; once `whenSeen` is there, it is killed as a power cut would, or by another signal. */
function train(
  args: string[],
  whenSeen?: string | (() => boolean),
  signal: NodeJS.Signals = 'SIGKILL',
  environment: Record<string, string> = {},
): Promise<{ code: number | null; out: string }> {
  const env = { ...process.env, ...environment };
  const child = spawn(process.execPath, [PLUMB, 'train', ...args], { env });
  let out = '';
  child.stdout.on('data', (chunk) => {
    out += chunk;
  });
  child.stderr.on('data', (chunk) => {
    out += chunk;
  });
  let sent = false;
  const watch = setInterval(() => {
    if (sent || !whenSeen || !(typeof whenSeen === 'string' ? existsSync(whenSeen) : whenSeen())) return;
    sent = true;
    child.kill(signal);
  }, 5);
  return new Promise((resolve) =>
    child.on('close', (code) => {
      clearInterval(watch);
      resolve({ code, out });
    }),
  );
}

const asked = tickets('tests', 8, 24).map(({ text }) => text);
const jsonl = (rows: object[]) => rows.map((row) => JSON.stringify(row)).join('\n');
writeFileSync(
  at('pairs.jsonl'),
  jsonl(
    asked.flatMap((prompt) =>
      ['No. Go away now.', 'What order?'].map((rejected) => ({
        prompt,
        chosen: 'We are sorry. It is on its way.',
        rejected,
      })),
    ),
  ),
);
writeFileSync(at('prompts.jsonl'), jsonl(asked.map((prompt) => ({ prompt }))));
writeFileSync(at('text.jsonl'), jsonl(asked.map((text) => ({ text }))));
writeFileSync(at('answered.jsonl'), jsonl(asked.map((prompt) => ({ prompt, completion: 'It is on its way.' }))));
tinyFolder(at('tiny'));
const ppo = (out: string, data = at('prompts.jsonl')) => [
  'ppo',
  ...['--data', data, '--base', at('tiny'), '--reward', at('reward'), '--out', at(out)],
  ...['--episodes', '192', '--answer-tokens', '12'],
];

/** What plumb train reward says, whose model several tests go on with. */
let fitted = '';
beforeAll(async () => {
  const args = ['reward', '--data', at('pairs.jsonl'), '--base', at('tiny'), '--out', at('reward')];
  fitted = (await train(args)).out;
  expect(fitted).toContain('reward model written');
}, 300_000);

test('plumb train reward says how right its model is on held-out conversations, each of them held out whole', () => {
  // every tenth conversation is held out whole: of its two rows none is fitted to
  expect(fitted).toContain('of the pairs in 2 held-out conversations');
  expect(fitted).toMatch(/pairs of a choice +\d+\.\d % of 4\n/);
  expect(JSON.parse(readFileSync(join(at('reward'), 'reward.report.json'), 'utf8')).preferences.pairs).toBe(4);
});

test('many answers to one prompt are one conversation, and none of them is held out from the others', async () => {
  const answers = Array.from({ length: 20 }, (_, i) => ({ prompt: asked[0], completion: `It is the ${i}th.` }));
  writeFileSync(at('one.jsonl'), jsonl(answers));
  const args = ['sft', '--data', at('one.jsonl'), '--base', at('tiny'), '--out', at('one'), '--steps', '1', '--plan'];
  const { code, out } = await train(args);
  expect([code, out]).toEqual([0, expect.stringContaining('fewer than ten conversations: none is held out')]);
}, 300_000);

test('--plan says what a stage would take, and writes nothing', async () => {
  const before = readdirSync(folder);
  const base = ['--base', at('tiny'), '--out', at('planned'), '--plan'];
  for (const [args, tokens, steps] of [
    [['sft', '--data', at('pairs.jsonl'), '--steps', '500', '--batch', '8'], /[34]\d\d/, '500'],
    [['reward', '--data', at('pairs.jsonl'), '--epochs', '20'], /1,\d{3}/, '60'],
    [[...ppo('planned').filter((option) => option !== at('planned') && option !== '--out')], /2,\d{3}/, '3'],
  ] as const) {
    const { code, out } = await train([...args, ...base]);
    expect(code).toBe(0);
    const rows = Object.fromEntries(out.split('\n').map((line) => line.split(/ {2,}/) as [string, string]));
    expect(rows).toMatchObject({
      parameters: '123,200',
      'tokens a step': expect.stringMatching(tokens),
      steps,
      'peak memory': expect.stringMatching(/^(\d,)?\d{3} MiB$/),
      time: expect.stringMatching(/^(\d+ min )?\d+ s$/),
    });
    expect(readdirSync(folder)).toEqual(before);
  }
}, 300_000);

test('SIGTERM saves what is done and ends; of two saves a damaged one is passed over, and the weights come out the same', async () => {
  expect((await train(ppo('whole'))).out).toContain('policy written');
  const stopped = await train(ppo('stopped'), join(at('stopped'), 'ppo.state.1.json'), 'SIGTERM');
  expect(stopped).toMatchObject({
    code: 143,
    out: expect.stringContaining('ppo was interrupted: the same call goes on'),
  });
  const saves = readdirSync(at('stopped')).filter((name) => /state\.\d+\.safetensors/.test(name));
  expect(saves.sort()).toEqual(['ppo.state.1.safetensors', 'ppo.state.2.safetensors']);
  cpSync(at('stopped'), at('edited'), { recursive: true });
  const tensors = join(at('stopped'), 'ppo.state.2.safetensors');
  const bytes = readFileSync(tensors);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(tensors, bytes);
  const numbers = join(at('edited'), 'ppo.state.2.json');
  const beta = readFileSync(numbers, 'utf8').replace(/"beta":[\d.]+/, '"beta":0.9');
  expect(beta).not.toBe(readFileSync(numbers, 'utf8'));
  writeFileSync(numbers, beta);
  for (const [name, damaged] of [
    ['stopped', tensors],
    ['edited', numbers],
  ] as const) {
    const { code, out } = await train(ppo(name));
    expect([code, out]).toEqual([
      0,
      expect.stringContaining(`${damaged} is damaged: going on from the save before it`),
    ]);
    expect(out).toContain('ppo 2/3');
    expect(out).not.toContain('ppo 1/3');
    expect(readFileSync(join(at(name), 'model.safetensors'))).toEqual(
      readFileSync(join(at('whole'), 'model.safetensors')),
    );
    expect(readdirSync(at(name)).filter((file) => file.includes('state'))).toEqual([]);
  }
}, 300_000);

test('what no training can come of is said before anything starts', async () => {
  const refused = async (name: string, lines: string[], args: (data: string) => string[]) => {
    writeFileSync(at(name), lines.join('\n'));
    const { code, out } = await train(args(at(name)));
    expect(code).toBe(1);
    expect(out).not.toMatch(/^\s+at /m);
    return out;
  };
  const base = ['--base', at('tiny'), '--out', at('none')];
  for (const [option, value, reason] of [
    ['--learning-rate', '', 'not a number'],
    ['--seed', '99999999999999999999', 'not a whole number'],
  ] as const) {
    const { code, out } = await train(['sft', '--data', at('prompts.jsonl'), ...base, option, value]);
    expect([code, out]).toEqual([1, expect.stringContaining(reason)]);
  }
  const mute = JSON.stringify({ messages: [{ role: 'user', content: 'hi' }] });
  expect(await refused('mute.jsonl', ['', mute], (data) => ['sft', '--data', data, ...base])).toMatch(
    /line 2: messages: no assistant answers anything/,
  );
  for (const more of [[], ['--own-tokenizer', '300']])
    expect(
      await refused('all.jsonl', [mute, '{', '{"text": 3}'], (data) => ['sft', '--data', data, ...base, ...more]),
    ).toMatch(/has 3 bad lines\n {2}line 1: messages: no assistant.*\n {2}line 2: not JSON\n {2}line 3: /);
  const pair = JSON.stringify({ prompt: 'a', chosen: 'b', rejected: 'c' });
  expect(
    await refused('pair.jsonl', [pair], (data) => ['reward', '--data', data, ...base, '--answer-tokens', '5000']),
  ).toMatch(/^plumb: --answer-tokens 5000: the policy takes 256 tokens.*$/m);
  const even = JSON.stringify({ prompt: 'a', chosen: 'b', rejected: 'b' });
  expect(await refused('even.jsonl', [even], (data) => ['reward', '--data', data, ...base])).toMatch(
    /no line says that one answer is better/,
  );
  const long = JSON.stringify({ prompt: 'kettle '.repeat(300), chosen: 'b', rejected: 'c' });
  expect(await refused('long.jsonl', ['', long], (data) => ['reward', '--data', data, ...base])).toMatch(
    /line 2: the prompt has \d+ tokens, and the policy takes 256/,
  );
}, 300_000);

test('what of a conversation is not learnt is said', async () => {
  const row = (prompt: string, completion: string) => ({ prompt, completion });
  const rows = [row('kettle '.repeat(300), 'b'), row('a', 'kettle '.repeat(40)), row('a', 'b')];
  writeFileSync(at('cut.jsonl'), jsonl(rows));
  const args = ['sft', '--data', at('cut.jsonl'), '--base', at('tiny'), '--out', at('cut')];
  const { code, out } = await train([...args, '--answer-tokens', '20', '--steps', '1']);
  expect(code).toBe(0);
  expect(out).toContain('longer than 20 tokens (--answer-tokens), and learnt to there alone: 1 of 3 answers\n');
  expect(out).toContain("longer than the policy's context, and learnt without the beginning: 1 of 3 prompts\n");
}, 300_000);

test('a base is never written over', async () => {
  for (const out of [at('base'), join(at('base'), '..', 'base')]) {
    cpSync(at('tiny'), at('base'), { recursive: true });
    const args = ['--data', at('pairs.jsonl'), '--base', at('base'), '--out', out, '--steps', '1'];
    const { code, out: said } = await train(['sft', ...args]);
    expect([code, said.trim()]).toEqual([1, expect.stringMatching(/is the base itself: give another folder/)]);
  }
  const weights = (folder: string) => readFileSync(join(folder, 'model.safetensors'));
  expect(weights(at('base')).equals(weights(at('tiny')))).toBe(true);
}, 300_000);

test('what another stage made is not written over', async () => {
  const { code, out } = await train(['sft', '--data', at('pairs.jsonl'), '--base', at('tiny'), '--out', at('reward')]);
  expect([code, out.trim()]).toEqual([
    1,
    `plumb: ${at('reward')} holds what plumb train reward made: give another --out, or remove it`,
  ]);
}, 300_000);

test('a folder that cannot be written to is said in one line', async () => {
  for (const [out, reason] of [
    [at('pairs.jsonl'), /is a file: --out wants a folder/],
    ['/proc/plumb', /cannot write to \/proc\/plumb: \w+/],
  ] as const) {
    const { code, out: said } = await train(['sft', '--data', at('text.jsonl'), '--base', at('tiny'), '--out', out]);
    expect(code).toBe(1);
    expect(said.trim().split('\n')).toHaveLength(1);
    expect(said).toMatch(reason);
  }
}, 300_000);

test('unfinished work on other data is not gone on with', async () => {
  await train(ppo('other'), join(at('other'), 'ppo.state.1.json'));
  writeFileSync(at('fewer.jsonl'), jsonl(asked.slice(1).map((prompt) => ({ prompt }))));
  const { code, out } = await train(ppo('other', at('fewer.jsonl')));
  expect(code).toBe(1);
  expect(out).toMatch(/unfinished work of a call with other settings or data/);
  for (const name of readdirSync(at('other')).filter((name) => /state\.\d+\.json$/.test(name)))
    writeFileSync(join(at('other'), name), '{"sha256":');
  const damaged = await train(ppo('other'));
  expect([damaged.code, damaged.out.trim()]).toEqual([
    1,
    expect.stringMatching(/ppo\.state\.\* are damaged: remove them/),
  ]);
}, 300_000);

test.each([
  ['another shape', 'config.json', (json: string) => json.replace(/"rope_theta": ?\d+/, '"rope_theta": 5')],
  [
    'another template',
    'tokenizer_config.json',
    (json: string) => json.replace('"chat_template": "', '"chat_template": "\\n'),
  ],
  ['another template in a file of its own', 'chat_template.jinja', (template: string) => `\n${template}`],
])(
  'nor is such whose base has %s by now',
  async (_, name, change) => {
    const base = at(`base of ${name}`);
    cpSync(at('tiny'), base, { recursive: true });
    const { chat_template } = JSON.parse(readFileSync(join(base, 'tokenizer_config.json'), 'utf8'));
    if (name === 'chat_template.jinja') writeFileSync(join(base, name), chat_template);
    const out = at(`out of ${name}`);
    const sft = ['sft', '--data', at('pairs.jsonl'), '--base', base, '--out', out, '--steps', '400'];
    await train(sft, join(out, 'sft.state.1.json'));
    const before = readFileSync(join(base, name), 'utf8');
    writeFileSync(join(base, name), change(before));
    expect(change(before)).not.toBe(before);
    const { code, out: said } = await train(sft);
    expect([code, said]).toEqual([1, expect.stringMatching(/unfinished work of a call with other settings or data/)]);
  },
  300_000,
);

test('nor is such that was begun under another schedule', async () => {
  const sft = (schedule: string) => [
    ...['sft', '--data', at('pairs.jsonl'), '--base', at('tiny'), '--out', at('curve')],
    ...['--steps', '400', '--schedule', schedule],
  ];
  await train(sft('linear'), join(at('curve'), 'sft.state.1.json'));
  const { code, out } = await train(sft('cosine'));
  expect([code, out]).toEqual([1, expect.stringMatching(/unfinished work of a call with other settings or data/)]);
}, 300_000);

test('files of another model, or a folder that another writes to, are said in one line', async () => {
  const rest = ['--data', at('prompts.jsonl'), '--base', at('tiny'), '--episodes', '192'];
  cpSync(at('reward'), at('foreign'), { recursive: true });
  writeFileSync(
    join(at('foreign'), 'reward.safetensors'),
    writeSafetensors(
      new Map([
        ['parameters/embedding', { shape: [512, 192], data: new Float32Array(512 * 192) }],
        ['parameters/norm', { shape: [192], data: new Float32Array(192) }],
      ]),
      'F32',
    ),
  );
  const mixed = await train(['ppo', ...rest, '--reward', at('foreign'), '--out', at('mixed')]);
  expect([mixed.code, mixed.out.trim()]).toEqual([1, expect.stringMatching(/reward\.safetensors: .* another model$/)]);

  mkdirSync(at('shared'));
  const unlock = await tryLock(`out ${realpathSync(at('shared'))}`);
  const text = ['sft', '--data', at('text.jsonl'), '--base', at('tiny'), '--out', at('shared')];
  const second = await train(text);
  expect([second.code, second.out.trim()]).toEqual([1, expect.stringMatching(/another plumb train writes to /)]);
  await unlock!();
}, 300_000);

test('a folder that is not there is said to be none', async () => {
  const judged = ['evaluate', '--data', at('pairs.jsonl'), '--prompts', at('prompts.jsonl')];
  const drawn = ['ppo', '--data', at('prompts.jsonl'), '--base', at('tiny'), '--out', at('none')];
  for (const args of [
    [...judged, '--base', at('nowhere'), '--candidate', at('tiny')],
    [...judged, '--base', at('tiny'), '--candidate', at('nowhere')],
    [...judged, '--base', at('tiny'), '--candidate', at('tiny'), '--root', at('nowhere')],
    [...drawn, '--reward', at('nowhere')],
  ]) {
    const { code, out } = await train(args);
    expect([code, out.trim()]).toEqual([1, `plumb: there is no folder ${at('nowhere')}`]);
  }
}, 300_000);

test('bad lines are named by number and reason before anything starts', async () => {
  writeFileSync(at('bad.jsonl'), '{"prompt": "a", "chosen": "b"}\nnot json\n{"prompt": 3}\n');
  const { code, out } = await train(['reward', '--data', at('bad.jsonl'), '--base', at('tiny'), '--out', at('none')]);
  expect(code).toBe(1);
  expect(out).toMatch(/bad\.jsonl has 3 bad lines\n {2}line 1: .*\n {2}line 2: not JSON\n {2}line 3: /);
  expect(existsSync(at('none'))).toBe(false);
}, 300_000);

const short = (out: string, ...more: string[]) => [
  ...['sft', '--data', at('answered.jsonl'), '--base', at('tiny'), '--out', at(out)],
  ...['--steps', '100', '--batch', '4', ...more],
];

test('a save of another machine is gone on with and said, and with --deterministic refused by what differs', async () => {
  const place = join(at('moved'), 'sft.state.1.json');
  const threads = (count: string) => ({ TF_NUM_INTRAOP_THREADS: count });
  await train(short('moved'), place, 'SIGKILL', threads('2'));
  const saved = readFileSync(place, 'utf8');

  const fewer = await train(short('moved', '--deterministic'), undefined, undefined, threads('1'));
  expect([fewer.code, fewer.out.trim()]).toEqual([
    1,
    `plumb: ${join(at('moved'), 'sft.state.*')} are of another machine (2 threads there, 1 here): set TF_NUM_INTRAOP_THREADS=2, or leave --deterministic out`,
  ]);
  for (const [what, told] of [
    [
      { cpu: 'Abacus 3000' },
      /\(a processor Abacus 3000 there, .* here\): go on with it on a machine like that one, or /,
    ],
    [{ flags: 'beads' }, /\(a processor with other flags there \(beads\), .* here\): go on with it on a machine like /],
    [{ engine: 'tensorflow-cpu==1.0' }, /\(tensorflow-cpu==1\.0 there, .* here\): go on with it on a machine like /],
  ] as const) {
    const { save } = JSON.parse(saved);
    Object.assign(save.machines[0], what);
    writeFileSync(place, JSON.stringify({ sha256: sha256(Buffer.from(JSON.stringify(save))), save }));
    const other = await train(short('moved', '--deterministic'), undefined, undefined, threads('2'));
    expect([other.code, other.out.trim()]).toEqual([1, expect.stringMatching(told)]);
  }

  writeFileSync(place, saved);
  const on = await train(short('moved'), undefined, undefined, threads('1'));
  expect([on.code, on.out]).toEqual([
    0,
    expect.stringContaining(
      'going on with a save of another machine (2 threads there, 1 here): results may differ in the last digits\n',
    ),
  ]);
}, 300_000);

test('what has diverged ends with step, stage and number, and its last good state stays', async () => {
  const { code, out } = await train(short('diverged', '--learning-rate', '1e30'));
  expect(code).toBe(1);
  const last = out.trim().split('\n').at(-1)!;
  expect(last).toMatch(
    /^plumb: sft: (loss\/train|grad\/norm) is \S+ at step (\d+); the state after step \d+ is kept in .*diverged: try a lower --learning-rate with another --out$/,
  );
  expect(readdirSync(at('diverged')).filter((name) => name.startsWith('sft.state'))).not.toEqual([]);
}, 300_000);

test('of an ensemble that was killed a member that is damaged since is fitted anew, to what it was', async () => {
  const inputs = ['--data', at('pairs.jsonl'), '--base', at('tiny'), '--out', at('bitten')];
  const args = ['reward', ...inputs, '--members', '2', '--epochs', '100'];
  const atSecond = () =>
    (existsSync(at('bitten')) ? readdirSync(at('bitten')) : [])
      .filter((name) => /state\.\d+\.json$/.test(name))
      .some((name) => {
        try {
          return readFileSync(join(at('bitten'), name), 'utf8').includes('"member":1');
        } catch {
          return false; // a newer save has taken its place since the folder was read
        }
      });
  const { code } = await train(args, atSecond);
  expect(code).toBe(null);
  const first = join(at('bitten'), 'reward.safetensors');
  const whole = readFileSync(first);
  const bitten = Buffer.from(whole);
  bitten[bitten.length - 3]! ^= 0x40;
  writeFileSync(first, bitten);
  const again = await train(args);
  expect([again.code, again.out]).toEqual([
    0,
    expect.stringContaining(`${first} is damaged: its model is fitted anew`),
  ]);
  expect(readFileSync(first).equals(whole)).toBe(true);
}, 300_000);

test('an ensemble with LoRA that was killed keeps the members it has; PPO by LoRA goes by all of them', async () => {
  const lora = ['--lora-rank', '2', '--lora-on', 'mlp'];
  const members = [
    '--data',
    at('pairs.jsonl'),
    '--base',
    at('tiny'),
    '--out',
    at('several'),
    '--members',
    '2',
    ...lora,
  ];
  const first = join(at('several'), 'reward.safetensors');
  await train(['reward', ...members], first);
  expect(existsSync(join(at('several'), 'reward.2.safetensors'))).toBe(false);
  const kept = readFileSync(first);
  const { code, out } = await train(['reward', ...members]);
  expect([code, out]).toEqual([0, expect.stringContaining('by the mean of 2 models; reward models written to')]);
  expect(out).not.toContain('reward 1/');
  expect(readFileSync(first).equals(kept)).toBe(true);
  const second = readFileSync(join(at('several'), 'reward.2.safetensors'));
  expect(second.equals(kept)).toBe(false);

  const trained = [
    ...['ppo', '--data', at('prompts.jsonl'), '--base', at('tiny'), '--reward', at('several'), '--out', at('mean')],
    ...['--episodes', '64', '--answer-tokens', '24', '--spread-penalty', '0.5', ...lora],
  ];
  writeFileSync(join(at('several'), 'reward.2.safetensors'), kept.subarray(0, 1000));
  const damaged = await train(trained);
  expect([damaged.code, damaged.out.trim()]).toEqual([1, expect.stringMatching(/reward\.2\.safetensors: .*beyond/)]);
  writeFileSync(join(at('several'), 'reward.2.safetensors'), second);
  expect(await train(trained)).toEqual({ code: 0, out: expect.stringContaining('policy written') });
  // where the two disagree an answer is worth less
  const free = trained.map((option) => (option === at('mean') ? at('free') : option === '0.5' ? '0' : option));
  expect((await train(free)).code).toBe(0);
  const score = (of: string) =>
    JSON.parse(readFileSync(join(at(of), 'metrics.jsonl'), 'utf8').split('\n')[0]!)['objective/score'];
  expect(score('mean')).toBeLessThan(score('free'));
  const ours = readTensors(readFileSync(join(at('mean'), 'model.safetensors')));
  const base = readTensors(readFileSync(join(at('tiny'), 'model.safetensors')));
  const moved = [...base.keys()].filter((name) => !sameNumbers(ours.get(name)!.data, base.get(name)!.data));
  expect(moved.sort()).toEqual(
    [0, 1].flatMap((layer) => ['down', 'gate', 'up'].map((part) => `model.layers.${layer}.mlp.${part}_proj.weight`)),
  );
}, 300_000);
const sameNumbers = (a: Float32Array, b: Float32Array) => a.every((value, i) => value === b[i]);
