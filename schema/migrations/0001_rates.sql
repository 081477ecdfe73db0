CREATE TABLE `rates` (
	`minute` integer NOT NULL,
	`caller` text NOT NULL,
	`count` integer NOT NULL,
	PRIMARY KEY(`minute`, `caller`)
);
