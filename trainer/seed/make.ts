// Makes the seed policy: the world's unfiltered logs, a tokenizer trained on them, and a small Llama trained by our own sft.
//
//   npm run seed [-- --steps N] [--out folder]
//
// Corpus and tokenizer come out byte for byte the same anywhere; the weights on the same CPU model.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { ModelConfig } from '../../schema/manifest.ts';
import { tokenizerJson, trainBpe } from '../../schema/tokenizer.ts';
import { SFT_DEFAULTS } from '../config.ts';
import { answerRow } from '../data.ts';
import { toTerminal } from '../metrics.ts';
import { initialParameters } from '../model.ts';
import { shapeFor } from '../pack.ts';
import { readPolicy } from '../policy.ts';
import { random } from '../random.ts';
import { sft } from '../sft.ts';
import { countParameters, writePolicy } from '../weights.ts';
import { loggedAnswer, tickets } from './world.ts';

const SPECIAL = ['<|pad|>', '<|eos|>', '<|system|>', '<|user|>', '<|assistant|>'];
const CHAT_TEMPLATE = [
  '{% for message in messages %}',
  "{{ '<|' + message.role + '|>' + message.content }}",
  "{% if message.role == 'assistant' %}{{ '<|eos|>' }}{% endif %}",
  '{% endfor %}',
  "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
].join('');
const CONFIG: ModelConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 1024,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 3,
  num_key_value_heads: 3,
  head_dim: 64,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: 1,
  pad_token_id: 0,
};
const SEED = 1;
const LOGS = 60_000;
/** Fills four calls of 512 tokens. */
const BATCH = 36;

const { values: options } = parseArgs({
  options: {
    steps: { type: 'string', default: '2400' },
    out: { type: 'string', default: join(import.meta.dirname, 'policy') },
  },
});

const logs = (range: 'logs' | 'holdout', count: number) => {
  const rng = random(SEED, `${range} answers`);
  return tickets(range, SEED, count).map((ticket) => ({ ticket: ticket.text, answer: loggedAnswer(rng, ticket) }));
};
const corpus = logs('logs', LOGS);

mkdirSync(options.out, { recursive: true });
const bpe = trainBpe(
  corpus.slice(0, 8000).flatMap(({ ticket, answer }) => [ticket, answer]),
  { vocabSize: CONFIG.vocab_size, special: SPECIAL, individualDigits: true },
);
writeFileSync(join(options.out, 'tokenizer.json'), tokenizerJson(bpe));
writeFileSync(join(options.out, 'config.json'), `${JSON.stringify(CONFIG, null, 2)}\n`);
writeFileSync(
  join(options.out, 'tokenizer_config.json'),
  `${JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', eos_token: '<|eos|>', pad_token: '<|pad|>', chat_template: CHAT_TEMPLATE }, null, 2)}\n`,
);
writeFileSync(
  join(options.out, 'generation_config.json'),
  `${JSON.stringify({ eos_token_id: 1, pad_token_id: 0, do_sample: true, temperature: 1 }, null, 2)}\n`,
);

const policy = readPolicy(options.out);
const encoded = (rows: typeof corpus) =>
  rows.map(({ ticket, answer }) => answerRow(policy, [{ role: 'user', content: ticket }], answer));
const parameters = initialParameters(CONFIG, random(SEED, 'weights'));
console.log(`${countParameters(parameters)} parameters, ${LOGS} logged answers`);
const trained = await sft(
  CONFIG,
  parameters,
  encoded(corpus),
  encoded(logs('holdout', 512)),
  {
    ...SFT_DEFAULTS,
    steps: Number(options.steps),
    batch: BATCH,
    shape: shapeFor(0),
    learningRate: 1.5e-3,
    warmup: 100,
    weightDecay: 0.05,
    seed: SEED,
  },
  toTerminal(),
);
writePolicy(options.out, policy, trained.parameters);
console.log(`held-out loss ${trained.loss.toFixed(4)} nats a token, written to ${options.out}`);
