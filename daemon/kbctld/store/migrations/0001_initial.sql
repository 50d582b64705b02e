-- Numbered, applied in order, never edited once released.
-- Money is nano-USD (1e-9 USD) and times are nanoseconds since 1970 UTC, both INTEGER.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Counts every change that is not a call, so that a rolled-back database can be told from a current one.
INSERT INTO meta VALUES ('changes', 0);

CREATE TABLE vault_key (
    no             INTEGER PRIMARY KEY,
    key_id         TEXT NOT NULL UNIQUE,
    digest         BLOB NOT NULL UNIQUE,   -- SHA-256 of the vault key; the key itself is nowhere
    ending         TEXT NOT NULL,
    vendors        TEXT NOT NULL,          -- JSON array
    daily_cap_nano INTEGER,
    total_cap_nano INTEGER,
    call_cap_nano  INTEGER,
    allow          TEXT,                   -- JSON array; NULL: every operation whose cost is known
    deny           TEXT NOT NULL,
    label          TEXT NOT NULL,
    tenant         TEXT,
    metadata       TEXT NOT NULL,          -- JSON object
    credential     TEXT,
    created_ns     INTEGER NOT NULL,
    expires_ns     INTEGER,
    revoked_ns     INTEGER,
    frozen         TEXT
) STRICT;
CREATE INDEX vault_key_tenant ON vault_key (tenant) WHERE tenant IS NOT NULL;

CREATE TABLE credential (
    name    TEXT PRIMARY KEY,
    vendor  TEXT NOT NULL,
    version INTEGER NOT NULL,
    set_ns  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE call (
    no                  INTEGER PRIMARY KEY,
    call_id             TEXT NOT NULL,
    ts_ns               INTEGER NOT NULL,
    key_no              INTEGER REFERENCES vault_key (no),
    vendor              TEXT,
    operation           TEXT,
    method              TEXT,
    endpoint            TEXT,
    amount_nano         INTEGER NOT NULL,
    requested_nano      INTEGER,
    currency            TEXT,
    amount_minor        INTEGER,
    status              INTEGER,
    outcome             TEXT NOT NULL,
    replay_of           TEXT,
    policy_check_result TEXT NOT NULL,
    reason              TEXT,
    vendor_request_id   TEXT,
    idempotency_key     TEXT,
    request_digest      BLOB,
    replay_digest       BLOB,
    metadata            TEXT,              -- JSON object; NULL: the key's own
    usage_after_nano    INTEGER,
    latency_us          INTEGER,
    upstream_us         INTEGER,
    upstream            TEXT,              -- set only where the vendor's own origin was overridden
    folded              INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX call_id ON call (call_id);
CREATE INDEX call_ts ON call (ts_ns);
CREATE INDEX call_key ON call (key_no, no);
-- Open holds: what start-up reads back. Small however long the table is.
CREATE INDEX call_open ON call (no) WHERE outcome IN ('pending', 'unknown');

-- What each key has posted per UTC day: balances at start-up without reading every call.
CREATE TABLE spend (
    key_no      INTEGER NOT NULL REFERENCES vault_key (no),
    day         INTEGER NOT NULL,
    posted_nano INTEGER NOT NULL,
    PRIMARY KEY (key_no, day)
) STRICT, WITHOUT ROWID;

-- Objects of a vendor that were counted when they were made, so that later steps count only the excess.
CREATE TABLE object (
    vendor     TEXT NOT NULL,
    credential TEXT NOT NULL,
    object_id  TEXT NOT NULL,
    nano       INTEGER NOT NULL,
    minor      INTEGER NOT NULL,
    currency   TEXT NOT NULL,
    PRIMARY KEY (vendor, credential, object_id)
) STRICT, WITHOUT ROWID;

CREATE VIEW calls AS
SELECT c.call_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', c.ts_ns / 1000000 / 1000.0, 'unixepoch') AS ts,
       k.key_id                                                            AS vault_key_id,
       NULL                                                                AS parent_key_id,
       k.tenant,
       c.vendor,
       c.operation,
       c.method,
       c.endpoint,
       c.amount_nano / 1000000000.0                                        AS amount_usd,
       c.requested_nano / 1000000000.0                                     AS requested_usd,
       c.currency,
       c.amount_minor,
       c.status,
       c.outcome,
       c.replay_of,
       c.policy_check_result,
       c.reason,
       c.vendor_request_id,
       c.idempotency_key,
       k.label                                                             AS agent_run_label,
       coalesce(c.metadata, k.metadata, '{}')                              AS metadata,
       c.usage_after_nano / 1000000000.0                                   AS cap_usage_after_usd,
       c.latency_us / 1000.0                                               AS latency_ms,
       c.upstream_us / 1000.0                                              AS upstream_ms,
       c.upstream,
       c.folded
FROM call AS c
LEFT JOIN vault_key AS k ON k.no = c.key_no;
