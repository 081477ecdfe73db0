CREATE TABLE `audit` (
	`id` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`at` text NOT NULL,
	`key` text NOT NULL,
	`action` text NOT NULL,
	`subject` text NOT NULL
);
--> statement-breakpoint
CREATE TABLE `feedback` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`created_seq` integer NOT NULL,
	`rater` text NOT NULL,
	`rater_kind` text NOT NULL,
	`kind` text NOT NULL,
	`facet` text NOT NULL,
	`target` text NOT NULL,
	`body` text NOT NULL,
	`policy` text NOT NULL,
	`session` text NOT NULL,
	`revision` integer NOT NULL,
	`created_at` text NOT NULL,
	`updated_at` text NOT NULL,
	`undone_at` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `one_vote` ON `feedback` (`rater`,`kind`,`facet`,`target`);--> statement-breakpoint
CREATE UNIQUE INDEX `feedback_seq` ON `feedback` (`seq`);--> statement-breakpoint
CREATE UNIQUE INDEX `feedback_created` ON `feedback` (`created_seq`);--> statement-breakpoint
CREATE INDEX `feedback_kind` ON `feedback` (`kind`,`created_seq`);--> statement-breakpoint
CREATE INDEX `feedback_policy` ON `feedback` (`policy`,`created_seq`);--> statement-breakpoint
CREATE INDEX `feedback_rater` ON `feedback` (`rater`,`created_seq`);--> statement-breakpoint
CREATE TABLE `feedback_samples` (
	`sample` text NOT NULL,
	`feedback` text NOT NULL,
	PRIMARY KEY(`sample`, `feedback`)
);
--> statement-breakpoint
CREATE TABLE `keys` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`hash` text NOT NULL,
	`kind` text NOT NULL,
	`name` text NOT NULL,
	`scopes` text NOT NULL,
	`origins` text NOT NULL,
	`created_at` text NOT NULL,
	`revoked_at` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `keys_hash` ON `keys` (`hash`);--> statement-breakpoint
CREATE INDEX `keys_seq` ON `keys` (`seq`);--> statement-breakpoint
CREATE TABLE `policies` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`manifest` text NOT NULL,
	`created_at` text NOT NULL,
	`withdrawn_at` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `policies_seq` ON `policies` (`seq`);--> statement-breakpoint
CREATE TABLE `prompts` (
	`hash` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`body` text NOT NULL,
	`root` text NOT NULL,
	`side` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `prompts_seq` ON `prompts` (`seq`);--> statement-breakpoint
CREATE TABLE `raters` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`cohorts` text NOT NULL,
	`created_at` text NOT NULL
);
--> statement-breakpoint
CREATE TABLE `releases` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`channel` text NOT NULL,
	`policy` text NOT NULL,
	`share` real NOT NULL,
	`run` text,
	`fence` integer,
	`rollback_of` text,
	`created_at` text NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `releases_seq` ON `releases` (`seq`);--> statement-breakpoint
CREATE INDEX `releases_channel` ON `releases` (`channel`,`seq`);--> statement-breakpoint
CREATE INDEX `releases_run` ON `releases` (`run`);--> statement-breakpoint
CREATE TABLE `requests` (
	`key` text PRIMARY KEY NOT NULL,
	`body` text NOT NULL,
	`status` integer,
	`type` text,
	`response` text,
	`created_at` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `requests_created` ON `requests` (`created_at`);--> statement-breakpoint
CREATE TABLE `revisions` (
	`seq` integer PRIMARY KEY NOT NULL,
	`feedback` text NOT NULL,
	`revision` integer NOT NULL,
	`op` text NOT NULL,
	`body` text NOT NULL,
	`at` text NOT NULL,
	`idempotency` text,
	`request` text
);
--> statement-breakpoint
CREATE INDEX `revisions_feedback` ON `revisions` (`feedback`,`seq`);--> statement-breakpoint
CREATE INDEX `revisions_idempotency` ON `revisions` (`idempotency`) WHERE idempotency IS NOT NULL;--> statement-breakpoint
CREATE TABLE `run_metrics` (
	`id` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`run` text NOT NULL,
	`name` text NOT NULL,
	`step` integer NOT NULL,
	`value` real NOT NULL,
	`at` text NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `one_metric` ON `run_metrics` (`run`,`name`,`step`);--> statement-breakpoint
CREATE INDEX `run_metrics_run` ON `run_metrics` (`run`,`id`);--> statement-breakpoint
CREATE TABLE `runs` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`status` text NOT NULL,
	`stages` text,
	`config` text NOT NULL,
	`reason` text NOT NULL,
	`snapshot` text NOT NULL,
	`base_policy` text NOT NULL,
	`fence` integer NOT NULL,
	`launched_at` text,
	`lease_until` text,
	`stage` text,
	`step` integer,
	`steps` integer,
	`checkpoint` text,
	`verdict` text,
	`policy` text,
	`report` text,
	`error` text,
	`created_at` text NOT NULL,
	`started_at` text,
	`ended_at` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `runs_seq` ON `runs` (`seq`);--> statement-breakpoint
CREATE INDEX `runs_status` ON `runs` (`status`,`seq`);--> statement-breakpoint
CREATE UNIQUE INDEX `one_active_run` ON `runs` ((status IS NOT NULL)) WHERE status IN ('queued', 'launched', 'running', 'evaluating', 'publishing');--> statement-breakpoint
CREATE TABLE `samples` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`prompt` text NOT NULL,
	`policy` text NOT NULL,
	`text` text NOT NULL,
	`finish_reason` text NOT NULL,
	`completion_tokens` integer NOT NULL,
	`session` text NOT NULL,
	`user` text,
	`params` text NOT NULL,
	`metadata` text NOT NULL,
	`created_at` text NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `samples_seq` ON `samples` (`seq`);--> statement-breakpoint
CREATE INDEX `samples_policy` ON `samples` (`policy`,`seq`);--> statement-breakpoint
CREATE TABLE `sequence` (
	`name` text PRIMARY KEY NOT NULL,
	`value` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `snapshots` (
	`id` text PRIMARY KEY NOT NULL,
	`to_seq` integer NOT NULL,
	`votes_cursor` integer NOT NULL,
	`prompts_cursor` integer NOT NULL,
	`parts` text NOT NULL,
	`prompts` text NOT NULL,
	`created_at` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `snapshots_to` ON `snapshots` (`to_seq`);--> statement-breakpoint
CREATE TABLE `tasks` (
	`id` text PRIMARY KEY NOT NULL,
	`seq` integer NOT NULL,
	`kind` text NOT NULL,
	`prompt` text NOT NULL,
	`samples` text NOT NULL,
	`aspects` text NOT NULL,
	`raters` integer NOT NULL,
	`priority` real NOT NULL,
	`created_at` text NOT NULL,
	`done_at` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `tasks_seq` ON `tasks` (`seq`);