// A policy on disk that trains in no time: the seed policy's tokenizer, and two layers of 64 with random weights.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ModelConfig } from '../../schema/manifest.ts';
import { writeSafetensors } from '../../schema/safetensors.ts';
import { randomModel } from './model.ts';
import { SEED_FOLDER } from './seed.ts';

export function tinyFolder(folder: string, over: Partial<ModelConfig> = {}): string {
  mkdirSync(folder);
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'])
    cpSync(join(SEED_FOLDER, name), join(folder, name));
  const config = ModelConfig.parse({
    ...JSON.parse(readFileSync(join(SEED_FOLDER, 'config.json'), 'utf8')),
    hidden_size: 64,
    intermediate_size: 64,
    num_hidden_layers: 2,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    ...over,
  });
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  writeFileSync(join(folder, 'model.safetensors'), writeSafetensors(randomModel(config, 1), 'BF16'));
  return folder;
}
