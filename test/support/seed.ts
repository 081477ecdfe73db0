// The embedded default policy, for tests that need a real one.
import { join } from 'node:path';
import { readPolicy } from '../../trainer/policy.ts';

export const SEED_FOLDER = join(import.meta.dirname, '../../trainer/seed/policy');
export const seedPolicy = () => ({ folder: SEED_FOLDER, policy: readPolicy(SEED_FOLDER) });
