BEGIN TRANSACTION;
CREATE TABLE cluster (
	one INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	secret VARCHAR(64) NOT NULL, 
	PRIMARY KEY (one)
);
CREATE TABLE events (
	job VARCHAR(64) NOT NULL, 
	id BIGINT NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (job, id)
);
INSERT INTO "events" VALUES('job-0',1,'queued','{"id": "job-0", "position": 0}');
INSERT INTO "events" VALUES('job-1',1,'queued','{"id": "job-1", "position": 0}');
INSERT INTO "events" VALUES('job-0',1000000,'image','{"index": 0}');
INSERT INTO "events" VALUES('job-0',1000001,'finished','{"id": "job-0"}');
CREATE TABLE images (
	job VARCHAR(64) NOT NULL, 
	position INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	bytes INTEGER NOT NULL, 
	about TEXT NOT NULL, 
	PRIMARY KEY (job, position)
);
INSERT INTO "images" VALUES('job-0',0,'abababababababababababababababababababababababababababababababab',9,'{"index": 0, "seed": 7, "format": "png"}');
CREATE TABLE jobs (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	client VARCHAR(200) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	priority INTEGER NOT NULL, 
	request TEXT NOT NULL, 
	body_digest VARCHAR(64) NOT NULL, 
	idempotency_key VARCHAR(300), 
	use_cache BOOLEAN NOT NULL, 
	created FLOAT NOT NULL, 
	started FLOAT, 
	finished FLOAT, 
	runs INTEGER NOT NULL, 
	owner VARCHAR(64), 
	lease FLOAT, 
	cancel BOOLEAN NOT NULL, 
	outcome TEXT NOT NULL, exact BOOLEAN NOT NULL DEFAULT 1, environment VARCHAR(64), put_back FLOAT, 
	PRIMARY KEY (seq), 
	UNIQUE (client, idempotency_key), 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'job-0','ada','succeeded',0,'{"prompt":"a red apple","seed":7}','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','key-0',1,1000.0,1.79598041874672746656e+09,1.79598041883665657039e+09,1,NULL,NULL,0,'{"plan": {}, "cache": "miss", "warnings": []}',1,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'job-1','ada','queued',0,'{"prompt":"a red apple","seed":7}','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','key-1',1,1001.0,NULL,NULL,0,NULL,NULL,0,'{}',1,NULL,NULL);
CREATE TABLE notes (
	job VARCHAR(64) NOT NULL, 
	note TEXT NOT NULL, 
	PRIMARY KEY (job)
);
INSERT INTO "notes" VALUES('job-1','{"door": "here"}');
CREATE TABLE progress (
	job VARCHAR(64) NOT NULL, 
	run INTEGER NOT NULL, 
	event BIGINT NOT NULL, 
	image INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	preview BLOB, 
	PRIMARY KEY (job)
);
CREATE TABLE schema_version (
	one INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	PRIMARY KEY (one)
);
INSERT INTO "schema_version" VALUES(1,3);
CREATE TABLE servers (
	id VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	version VARCHAR(64) NOT NULL, 
	environment VARCHAR(64), 
	seen FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE webhooks (
	job VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	tries INTEGER NOT NULL, 
	due FLOAT, 
	PRIMARY KEY (job)
);
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_images_digest ON images (digest);
COMMIT;
