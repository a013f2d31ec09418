-- min_worker_version: 0.1.0
-- The metadata schema, first version. "{m}" is replaced by the quoted schema name.
-- Every key starts with target, the destination schema: two sources may hold a database of the same name.

CREATE TABLE {m}.owners (
    target text PRIMARY KEY,
    identity text NOT NULL,
    source_cluster text NOT NULL,
    source_database text NOT NULL,
    schema_created boolean NOT NULL DEFAULT false,
    claimed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {m}.owners IS 'Who may write to a target, and which source it is filled from';
COMMENT ON COLUMN {m}.owners.target IS 'destination schema';
COMMENT ON COLUMN {m}.owners.identity IS 'pipeline uid, or the standalone worker''s setting identity';
COMMENT ON COLUMN {m}.owners.source_cluster IS 'the source''s own cluster or replica set identity';
COMMENT ON COLUMN {m}.owners.source_database IS 'source database';
COMMENT ON COLUMN {m}.owners.schema_created IS 'true when the worker created the target schema itself';
COMMENT ON COLUMN {m}.owners.claimed_at IS 'when the identity claimed the target';

CREATE TABLE {m}.fence (
    target text PRIMARY KEY,
    epoch bigint NOT NULL,
    instance uuid NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {m}.fence IS 'The one worker process that may write; every data transaction locks its row FOR SHARE';
COMMENT ON COLUMN {m}.fence.target IS 'destination schema';
COMMENT ON COLUMN {m}.fence.epoch IS 'raised by each take-over';
COMMENT ON COLUMN {m}.fence.instance IS 'the process that holds the epoch';
COMMENT ON COLUMN {m}.fence.taken_at IS 'when the epoch began';

CREATE TABLE {m}.workers (
    instance uuid NOT NULL,
    target text NOT NULL,
    epoch bigint NOT NULL,
    state text NOT NULL,
    detail text NOT NULL DEFAULT '',
    config_hash text NOT NULL DEFAULT '',
    control_generation bigint NOT NULL DEFAULT 0,
    version text NOT NULL DEFAULT '',
    host text NOT NULL DEFAULT '',
    lag_seconds double precision,
    source_time timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, instance)
);
COMMENT ON TABLE {m}.workers IS 'Heartbeats; a worker is taken to be dead 20 s after its last one';
COMMENT ON COLUMN {m}.workers.instance IS 'a fresh UUID for each process';
COMMENT ON COLUMN {m}.workers.target IS 'destination schema';
COMMENT ON COLUMN {m}.workers.epoch IS 'the epoch that this instance took';
COMMENT ON COLUMN {m}.workers.state IS 'starting, standby, snapshotting, streaming, retrying, paused, stopped, failed, done';
COMMENT ON COLUMN {m}.workers.detail IS 'one sentence about the state, without secrets';
COMMENT ON COLUMN {m}.workers.config_hash IS 'hash of the effective configuration';
COMMENT ON COLUMN {m}.workers.control_generation IS 'the generation of control that this instance has confirmed';
COMMENT ON COLUMN {m}.workers.version IS 'version of cartridge-warp';
COMMENT ON COLUMN {m}.workers.host IS 'host or pod name';
COMMENT ON COLUMN {m}.workers.lag_seconds IS 'how far the destination is behind the source';
COMMENT ON COLUMN {m}.workers.source_time IS 'the source''s wall clock at the last heartbeat';
COMMENT ON COLUMN {m}.workers.started_at IS 'when the instance started';
COMMENT ON COLUMN {m}.workers.heartbeat IS 'the last sign of life';

CREATE TABLE {m}.control (
    target text PRIMARY KEY,
    desired text NOT NULL DEFAULT 'Running',
    generation bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {m}.control IS 'What the operator or the command line wants of the worker';
COMMENT ON COLUMN {m}.control.target IS 'destination schema';
COMMENT ON COLUMN {m}.control.desired IS 'Running, Paused or Stopped';
COMMENT ON COLUMN {m}.control.generation IS 'raised with each change';
COMMENT ON COLUMN {m}.control.at IS 'when it was set';

CREATE TABLE {m}.resyncs (
    target text NOT NULL,
    token text NOT NULL,
    tables text[] NOT NULL DEFAULT '{{}}',
    state text NOT NULL DEFAULT 'requested',
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, token)
);
COMMENT ON TABLE {m}.resyncs IS 'Requests to copy tables again; a token acts once, ever';
COMMENT ON COLUMN {m}.resyncs.target IS 'destination schema';
COMMENT ON COLUMN {m}.resyncs.token IS 'the request''s name';
COMMENT ON COLUMN {m}.resyncs.tables IS 'collections; empty for all';
COMMENT ON COLUMN {m}.resyncs.state IS 'requested, running, done';
COMMENT ON COLUMN {m}.resyncs.at IS 'when the state was set';

CREATE TABLE {m}.sync_markers (
    target text NOT NULL,
    "table" text NOT NULL DEFAULT '',
    kind text NOT NULL,
    position jsonb NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    source_time timestamptz,
    source_identity text NOT NULL DEFAULT '',
    version_offset bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT -9223372036854775808,
    rows bigint NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, "table", kind)
);
COMMENT ON TABLE {m}.sync_markers IS 'Positions, committed together with the rows that they speak of';
COMMENT ON COLUMN {m}.sync_markers.target IS 'destination schema';
COMMENT ON COLUMN {m}.sync_markers."table" IS 'collection; empty for the schema''s one stream';
COMMENT ON COLUMN {m}.sync_markers.kind IS 'stream, batch or snapshot';
COMMENT ON COLUMN {m}.sync_markers.position IS 'where to go on; only the source connector reads it';
COMMENT ON COLUMN {m}.sync_markers.seq IS 'raised by one with each commit (compare-and-set)';
COMMENT ON COLUMN {m}.sync_markers.source_time IS 'the source''s wall clock of the last applied event';
COMMENT ON COLUMN {m}.sync_markers.source_identity IS 'the source that the position belongs to';
COMMENT ON COLUMN {m}.sync_markers.version_offset IS 'added to every version of this source';
COMMENT ON COLUMN {m}.sync_markers.version IS 'the highest version that the stream has written';
COMMENT ON COLUMN {m}.sync_markers.rows IS 'changes applied since the marker was created';
COMMENT ON COLUMN {m}.sync_markers.epoch IS 'the epoch that wrote it last';
COMMENT ON COLUMN {m}.sync_markers.updated_at IS 'when it was last committed';

CREATE TABLE {m}.tables (
    target text NOT NULL,
    collection text NOT NULL,
    relation text,
    collection_uuid text,
    key_type text,
    state text NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    tombstone bigint NOT NULL DEFAULT -9223372036854775808,
    start_version bigint,
    stamp bigint NOT NULL DEFAULT -9223372036854775808,
    sweep boolean NOT NULL DEFAULT false,
    rows_done bigint NOT NULL DEFAULT 0,
    rows_estimated bigint NOT NULL DEFAULT 0,
    bytes_done bigint NOT NULL DEFAULT 0,
    reason text NOT NULL DEFAULT '',
    started_at timestamptz,
    completed_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, collection)
);
COMMENT ON TABLE {m}.tables IS 'Every mirrored collection and how far its copy is';
COMMENT ON COLUMN {m}.tables.target IS 'destination schema';
COMMENT ON COLUMN {m}.tables.collection IS 'source collection';
COMMENT ON COLUMN {m}.tables.relation IS 'destination table; null until the first document';
COMMENT ON COLUMN {m}.tables.collection_uuid IS 'the collection''s UUID when it was listed last';
COMMENT ON COLUMN {m}.tables.key_type IS 'objectid, int, string, uuid, date, or hash (the key is _warp_key)';
COMMENT ON COLUMN {m}.tables.state IS 'snapshotting, complete, stale, stopped, excluded';
COMMENT ON COLUMN {m}.tables.generation IS 'raised by each snapshot and each barrier; a chunk of an older one never commits';
COMMENT ON COLUMN {m}.tables.tombstone IS 'everything up to this version is void (drop, rename)';
COMMENT ON COLUMN {m}.tables.start_version IS 'when this generation''s snapshot began; older rows are swept at its end';
COMMENT ON COLUMN {m}.tables.stamp IS 'the highest version that a chunk has written';
COMMENT ON COLUMN {m}.tables.sweep IS 'whether the snapshot ends with a sweep';
COMMENT ON COLUMN {m}.tables.rows_done IS 'rows copied by this generation';
COMMENT ON COLUMN {m}.tables.rows_estimated IS 'the source''s own estimate at the start';
COMMENT ON COLUMN {m}.tables.bytes_done IS 'bytes of BSON copied by this generation';
COMMENT ON COLUMN {m}.tables.reason IS 'why the table is in its state';
COMMENT ON COLUMN {m}.tables.started_at IS 'start of this generation''s snapshot';
COMMENT ON COLUMN {m}.tables.completed_at IS 'end of the last snapshot';
COMMENT ON COLUMN {m}.tables.updated_at IS 'last change of this row';

CREATE TABLE {m}.snapshot_chunks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target text NOT NULL,
    "table" text NOT NULL,
    generation bigint NOT NULL,
    lower text,
    upper text,
    after boolean NOT NULL DEFAULT false,
    claim uuid,
    instance uuid,
    state text NOT NULL DEFAULT 'open',
    stamp bigint,
    rows bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX snapshot_chunks_open ON {m}.snapshot_chunks (target, "table", id) WHERE state IN ('open', 'claimed');
COMMENT ON TABLE {m}.snapshot_chunks IS 'Ranges of keys that a snapshot still has to copy';
COMMENT ON COLUMN {m}.snapshot_chunks.id IS 'chunk';
COMMENT ON COLUMN {m}.snapshot_chunks.target IS 'destination schema';
COMMENT ON COLUMN {m}.snapshot_chunks."table" IS 'source collection';
COMMENT ON COLUMN {m}.snapshot_chunks.generation IS 'the generation of tables that it belongs to';
COMMENT ON COLUMN {m}.snapshot_chunks.lower IS 'lower end as canonical Extended JSON; null for none';
COMMENT ON COLUMN {m}.snapshot_chunks.upper IS 'upper end, exclusive; null for none';
COMMENT ON COLUMN {m}.snapshot_chunks.after IS 'true when the lower end itself is copied already';
COMMENT ON COLUMN {m}.snapshot_chunks.claim IS 'random token of the reader that works on it';
COMMENT ON COLUMN {m}.snapshot_chunks.instance IS 'the process of that reader';
COMMENT ON COLUMN {m}.snapshot_chunks.state IS 'open, claimed, done, cancelled';
COMMENT ON COLUMN {m}.snapshot_chunks.stamp IS 'version that its rows were written with';
COMMENT ON COLUMN {m}.snapshot_chunks.rows IS 'rows copied';
COMMENT ON COLUMN {m}.snapshot_chunks.updated_at IS 'last change of this row';

CREATE TABLE {m}.tombstones (
    target text NOT NULL,
    "table" text NOT NULL,
    key bytea NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (target, "table", key)
);
COMMENT ON TABLE {m}.tombstones IS 'Keys deleted while a snapshot was under way; a chunk never revives them';
COMMENT ON COLUMN {m}.tombstones.target IS 'destination schema';
COMMENT ON COLUMN {m}.tombstones."table" IS 'source collection';
COMMENT ON COLUMN {m}.tombstones.key IS 'sha256 of the key''s canonical encoding';
COMMENT ON COLUMN {m}.tombstones.version IS 'version of the delete';

CREATE TABLE {m}.schema_registry (
    target text NOT NULL,
    "table" text NOT NULL,
    version integer NOT NULL,
    definition jsonb NOT NULL,
    hash text NOT NULL,
    change text NOT NULL,
    status text NOT NULL DEFAULT 'applied',
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, "table", version)
);
COMMENT ON TABLE {m}.schema_registry IS 'Every version of every table''s structure; the newest applied one is current';
COMMENT ON COLUMN {m}.schema_registry.target IS 'destination schema';
COMMENT ON COLUMN {m}.schema_registry."table" IS 'source collection';
COMMENT ON COLUMN {m}.schema_registry.version IS 'counts from 1';
COMMENT ON COLUMN {m}.schema_registry.definition IS 'relation, key and the map from field to column';
COMMENT ON COLUMN {m}.schema_registry.hash IS 'sha256 of the definition';
COMMENT ON COLUMN {m}.schema_registry.change IS 'what this version changed';
COMMENT ON COLUMN {m}.schema_registry.status IS 'applied, pending, rejected, rolled back';
COMMENT ON COLUMN {m}.schema_registry.at IS 'when';

CREATE TABLE {m}.dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target text NOT NULL,
    "table" text NOT NULL,
    key bytea NOT NULL,
    document_id jsonb,
    version bigint NOT NULL,
    row jsonb,
    class text NOT NULL,
    message text NOT NULL DEFAULT '',
    attempts integer NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'open',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_open ON {m}.dead_letters (target, "table", key) WHERE state IN ('open', 'waiting');
COMMENT ON TABLE {m}.dead_letters IS 'Rows that could not be written, kept in the transaction that passed them';
COMMENT ON COLUMN {m}.dead_letters.id IS 'dead letter';
COMMENT ON COLUMN {m}.dead_letters.target IS 'destination schema';
COMMENT ON COLUMN {m}.dead_letters."table" IS 'source collection';
COMMENT ON COLUMN {m}.dead_letters.key IS 'sha256 of the key''s canonical encoding';
COMMENT ON COLUMN {m}.dead_letters.document_id IS 'the key as canonical Extended JSON';
COMMENT ON COLUMN {m}.dead_letters.version IS 'version of the change';
COMMENT ON COLUMN {m}.dead_letters.row IS 'the document as canonical Extended JSON';
COMMENT ON COLUMN {m}.dead_letters.class IS 'key_type, poison, or the SQLSTATE that refused the row';
COMMENT ON COLUMN {m}.dead_letters.message IS 'the reason, without row values';
COMMENT ON COLUMN {m}.dead_letters.attempts IS 'how often writing it was tried';
COMMENT ON COLUMN {m}.dead_letters.state IS 'open, waiting, superseded, replayed, discarded';
COMMENT ON COLUMN {m}.dead_letters.created_at IS 'when it was kept';
COMMENT ON COLUMN {m}.dead_letters.updated_at IS 'last change of state';

CREATE TABLE {m}.deletion_audit (
    target text NOT NULL,
    "table" text NOT NULL,
    key bytea NOT NULL,
    document_id jsonb,
    version bigint NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (target, "table", key, version)
);
COMMENT ON TABLE {m}.deletion_audit IS 'Every row that was deleted or marked as deleted';
COMMENT ON COLUMN {m}.deletion_audit.target IS 'destination schema';
COMMENT ON COLUMN {m}.deletion_audit."table" IS 'source collection';
COMMENT ON COLUMN {m}.deletion_audit.key IS 'sha256 of the key''s canonical encoding';
COMMENT ON COLUMN {m}.deletion_audit.document_id IS 'the key as canonical Extended JSON';
COMMENT ON COLUMN {m}.deletion_audit.version IS 'version of the delete';
COMMENT ON COLUMN {m}.deletion_audit.reason IS 'delete, sweep, or the barrier''s kind';
COMMENT ON COLUMN {m}.deletion_audit.at IS 'when it was applied';

CREATE TABLE {m}.sync_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target text NOT NULL,
    instance uuid NOT NULL,
    mode text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    state text NOT NULL DEFAULT 'running',
    detail text NOT NULL DEFAULT ''
);
COMMENT ON TABLE {m}.sync_runs IS 'Each start of a worker and how it ended';
COMMENT ON COLUMN {m}.sync_runs.id IS 'run';
COMMENT ON COLUMN {m}.sync_runs.target IS 'destination schema';
COMMENT ON COLUMN {m}.sync_runs.instance IS 'the process';
COMMENT ON COLUMN {m}.sync_runs.mode IS 'stream, batch or snapshot';
COMMENT ON COLUMN {m}.sync_runs.started_at IS 'start';
COMMENT ON COLUMN {m}.sync_runs.ended_at IS 'end; null while it runs or when it was killed';
COMMENT ON COLUMN {m}.sync_runs.state IS 'running, stopped, done, failed, killed';
COMMENT ON COLUMN {m}.sync_runs.detail IS 'the last error, without secrets';

CREATE TABLE {m}.error_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target text NOT NULL,
    "table" text NOT NULL DEFAULT '',
    class text NOT NULL,
    message text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX error_log_at ON {m}.error_log (target, at);
COMMENT ON TABLE {m}.error_log IS 'Errors that a person should be able to find later';
COMMENT ON COLUMN {m}.error_log.id IS 'entry';
COMMENT ON COLUMN {m}.error_log.target IS 'destination schema';
COMMENT ON COLUMN {m}.error_log."table" IS 'source collection, or empty';
COMMENT ON COLUMN {m}.error_log.class IS 'code of the error';
COMMENT ON COLUMN {m}.error_log.message IS 'one sentence, without secrets';
COMMENT ON COLUMN {m}.error_log.at IS 'when';
