-- A ledger as version 1 of the schema wrote it: one study, one job, three deliveries.
BEGIN TRANSACTION;
CREATE TABLE association (
    association_id VARCHAR(64) NOT NULL,
    peer VARCHAR(64) NOT NULL,
    opened_at DATETIME NOT NULL,
    heartbeat DATETIME NOT NULL,
    PRIMARY KEY (association_id)
);
CREATE TABLE association_study (
    association_id VARCHAR(64) NOT NULL,
    study_instance_uid VARCHAR(64) NOT NULL,
    PRIMARY KEY (association_id, study_instance_uid)
);
CREATE TABLE delivery (
    delivery_id INTEGER NOT NULL,
    plan_id VARCHAR(32) NOT NULL,
    sop_instance_uid VARCHAR(64) NOT NULL,
    peer VARCHAR(64) NOT NULL,
    state VARCHAR(16) NOT NULL,
    attempts INTEGER NOT NULL,
    status INTEGER,
    reason TEXT,
    queued_at DATETIME NOT NULL,
    next_attempt DATETIME NOT NULL,
    PRIMARY KEY (delivery_id),
    UNIQUE (sop_instance_uid, peer),
    FOREIGN KEY(plan_id) REFERENCES job (plan_id),
    FOREIGN KEY(sop_instance_uid) REFERENCES derived (sop_instance_uid),
    CONSTRAINT deliverystate CHECK (state IN ('pending', 'sent', 'warned', 'parked'))
);
INSERT INTO "delivery" VALUES(1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2.25.5.1','pacs','sent',1,0,NULL,'2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "delivery" VALUES(2,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2.25.5.2','pacs','warned',1,45056,'coerced','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
INSERT INTO "delivery" VALUES(3,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2.25.5.3','pacs','pending',0,NULL,NULL,'2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000');
CREATE TABLE derived (
    sop_instance_uid VARCHAR(64) NOT NULL,
    plan_id VARCHAR(32) NOT NULL,
    sop_class_uid VARCHAR(64) NOT NULL,
    series_instance_uid VARCHAR(64) NOT NULL,
    role VARCHAR(16) NOT NULL,
    number INTEGER NOT NULL,
    sha256 VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    forgotten_at DATETIME,
    PRIMARY KEY (sop_instance_uid),
    FOREIGN KEY(plan_id) REFERENCES job (plan_id),
    CONSTRAINT role CHECK (role IN ('image', 'uncertainty', 'report'))
);
INSERT INTO "derived" VALUES('2.25.5.1','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','1.2.840.10008.5.1.4.1.1.4','2.25.9','image',1,'0000000000000000000000000000000000000000000000000000000000000000','derived/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/1/image-1.dcm',NULL);
INSERT INTO "derived" VALUES('2.25.5.2','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','1.2.840.10008.5.1.4.1.1.4','2.25.9','image',2,'0000000000000000000000000000000000000000000000000000000000000000','derived/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/1/image-2.dcm',NULL);
INSERT INTO "derived" VALUES('2.25.5.3','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','1.2.840.10008.5.1.4.1.1.4','2.25.9','image',3,'0000000000000000000000000000000000000000000000000000000000000000','derived/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/1/image-3.dcm',NULL);
CREATE TABLE event (
    sequence INTEGER NOT NULL,
    at DATETIME NOT NULL,
    name VARCHAR(64) NOT NULL,
    study_instance_uid VARCHAR(64),
    plan_id VARCHAR(32),
    detail JSON NOT NULL,
    PRIMARY KEY (sequence)
);
INSERT INTO "event" VALUES(1,'2026-01-02 03:04:05.000000','study.received','1.2.3',NULL,'{"peer": "pacs", "new": 1, "own": 0, "association": null}');
INSERT INTO "event" VALUES(2,'2026-01-02 03:04:05.000000','study.judged','1.2.3',NULL,'{"generation": 1, "gaps": 0, "queued": 1, "revived": 0, "superseded": 0, "refused": []}');
INSERT INTO "event" VALUES(3,'2026-01-02 03:04:05.000000','job.claim','1.2.3','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"state": "running", "attempt": 1, "reason": null}');
INSERT INTO "event" VALUES(4,'2026-01-02 03:04:05.000000','job.finish','1.2.3','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"state": "done", "attempt": 1, "reason": null}');
INSERT INTO "event" VALUES(5,'2026-01-02 03:04:05.000000','delivery.sent',NULL,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"sop_instance_uid": "2.25.5.1", "peer": "pacs", "status": 0, "reason": null}');
INSERT INTO "event" VALUES(6,'2026-01-02 03:04:05.000000','delivery.warned',NULL,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"sop_instance_uid": "2.25.5.2", "peer": "pacs", "status": 45056, "reason": "coerced"}');
CREATE TABLE instance (
    sequence INTEGER NOT NULL,
    sop_instance_uid VARCHAR(64) NOT NULL,
    sha256 VARCHAR(64) NOT NULL,
    sop_class_uid VARCHAR(64) NOT NULL,
    series_instance_uid VARCHAR(64) NOT NULL,
    study_instance_uid VARCHAR(64) NOT NULL,
    transfer_syntax_uid VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    own BOOLEAN NOT NULL,
    peer VARCHAR(64) NOT NULL,
    received_at DATETIME NOT NULL,
    forgotten_at DATETIME,
    header JSON,
    PRIMARY KEY (sequence),
    UNIQUE (sop_instance_uid, sha256),
    FOREIGN KEY(study_instance_uid) REFERENCES study (study_instance_uid),
    UNIQUE (path)
);
INSERT INTO "instance" VALUES(1,'1.2.3.4.1','61b10ddd4cad332dce5aa728e355e4f67150ed811f0fa9622c470e507e743ce4','1.2.840.10008.5.1.4.1.1.4','1.2.3.4','1.2.3','1.2.840.10008.1.2.1','incoming/73/733790ebbd29270d8701706d655dce07-61b10ddd4cad332d.dcm',0,'pacs','2026-01-02 03:04:05.000000',NULL,NULL);
CREATE TABLE job (
    plan_id VARCHAR(32) NOT NULL,
    study_instance_uid VARCHAR(64) NOT NULL,
    generation INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    "plan" JSON NOT NULL,
    state VARCHAR(16) NOT NULL,
    attempt INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    lease_until DATETIME,
    reason TEXT,
    quality JSON NOT NULL,
    seconds JSON NOT NULL,
    record JSON NOT NULL,
    changed_at DATETIME NOT NULL,
    PRIMARY KEY (plan_id),
    CONSTRAINT running_has_a_lease CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    FOREIGN KEY(study_instance_uid) REFERENCES study (study_instance_uid),
    CONSTRAINT jobstate CHECK (state IN ('queued', 'running', 'done', 'held', 'failed', 'rejected', 'superseded'))
);
INSERT INTO "job" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','1.2.3',1,50,'2026-01-02 03:04:05.000000','{"plan_id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "study_instance_uid": "1.2.3", "generation": 1, "rule": "brain", "rule_reason": "rule brain expects T2w, and the study holds none", "target": "T2w", "target_modality": "MR", "anatomy": "BRAIN", "sources": {"T1w": "1.2.3.4"}, "source_instances": [["1.2.3.4.1", "61b10ddd4cad332dce5aa728e355e4f67150ed811f0fa9622c470e507e743ce4"]], "model_id": "copy", "model_digest": "d", "seed": 1, "mode": "send", "priority": 50, "deliver_to": ["pacs"], "config_digest": "c", "created_at": "2026-01-02T03:04:05+00:00"}','done',1,0,NULL,NULL,'{"verdict": "pass"}','{"predict": 1.5}','["resampled"]','2026-01-02 03:04:05.000000');
CREATE TABLE judgement (
    study_instance_uid VARCHAR(64) NOT NULL,
    generation INTEGER NOT NULL,
    judged_at DATETIME NOT NULL,
    series JSON NOT NULL,
    slots JSON NOT NULL,
    gaps JSON NOT NULL,
    refusals JSON NOT NULL,
    PRIMARY KEY (study_instance_uid, generation),
    FOREIGN KEY(study_instance_uid) REFERENCES study (study_instance_uid)
);
INSERT INTO "judgement" VALUES('1.2.3',1,'2026-01-02 03:04:05.000000','[]','{}','[]','[]');
CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE study (
    study_instance_uid VARCHAR(64) NOT NULL,
    state VARCHAR(16) NOT NULL,
    generation INTEGER NOT NULL,
    first_received DATETIME NOT NULL,
    last_received DATETIME NOT NULL,
    judged_at DATETIME,
    hold_code VARCHAR(64),
    hold_reason TEXT,
    PRIMARY KEY (study_instance_uid),
    CONSTRAINT held_has_a_code CHECK ((state = 'held') = (hold_code IS NOT NULL)),
    CONSTRAINT studystate CHECK (state IN ('receiving', 'judged', 'held'))
);
INSERT INTO "study" VALUES('1.2.3','judged',1,'2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000','2026-01-02 03:04:05.000000',NULL,NULL);
CREATE INDEX study_by_state ON study (state, last_received);
CREATE INDEX association_study_by_study ON association_study (study_instance_uid);
CREATE INDEX ix_event_study_instance_uid ON event (study_instance_uid);
CREATE INDEX instance_by_study ON instance (study_instance_uid, sop_instance_uid);
CREATE INDEX job_by_state ON job (state, priority, created_at);
CREATE INDEX job_by_study ON job (study_instance_uid);
CREATE INDEX ix_derived_plan_id ON derived (plan_id);
CREATE INDEX ix_delivery_plan_id ON delivery (plan_id);
CREATE INDEX delivery_by_peer ON delivery (peer, state, next_attempt);
COMMIT;
