// Migrations are generated from schema/tables.ts (`npx drizzle-kit generate`) and applied by wrangler as they are.
import { defineConfig } from 'drizzle-kit';

export default defineConfig({ dialect: 'sqlite', schema: './schema/tables.ts', out: './schema/migrations' });
