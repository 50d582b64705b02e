-- Policies, tenants, derived keys, operator tokens, and balances per scope instead of per key.

ALTER TABLE vault_key ADD COLUMN parent_no INTEGER REFERENCES vault_key (no);
ALTER TABLE vault_key ADD COLUMN policy TEXT;                       -- the tier whose limits were copied
ALTER TABLE vault_key ADD COLUMN said TEXT NOT NULL DEFAULT '{}';   -- JSON: what was said beside the policy
ALTER TABLE vault_key ADD COLUMN override INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vault_key ADD COLUMN rules TEXT NOT NULL DEFAULT '[]';  -- JSON array of parameter rules
ALTER TABLE vault_key ADD COLUMN daily_requests INTEGER;
ALTER TABLE vault_key ADD COLUMN rate TEXT;
ALTER TABLE vault_key ADD COLUMN loop TEXT;
ALTER TABLE vault_key ADD COLUMN on_loop TEXT;
ALTER TABLE vault_key ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vault_key ADD COLUMN paused TEXT;
CREATE INDEX vault_key_parent ON vault_key (parent_no) WHERE parent_no IS NOT NULL;
CREATE INDEX vault_key_policy ON vault_key (policy) WHERE policy IS NOT NULL AND revoked_ns IS NULL;
CREATE INDEX vault_key_live ON vault_key (no, expires_ns) WHERE revoked_ns IS NULL;

-- The whole segments of every label: what a filter or a revocation by label finds keys by.
CREATE TABLE label_segment (
    segment TEXT NOT NULL,
    key_no  INTEGER NOT NULL REFERENCES vault_key (no),
    PRIMARY KEY (segment, key_no)
) STRICT, WITHOUT ROWID;
WITH RECURSIVE piece (key_no, segment, rest) AS (
    SELECT no, NULL, label || '/' FROM vault_key
    UNION ALL
    SELECT key_no, substr(rest, 1, instr(rest, '/') - 1), substr(rest, instr(rest, '/') + 1)
    FROM piece WHERE rest != ''
)
INSERT OR IGNORE INTO label_segment SELECT segment, key_no FROM piece WHERE segment != '';

-- What each scope (a key's own id, or tenant:<name>) has posted and let through per UTC day.
CREATE TABLE balance (
    scope       TEXT NOT NULL,
    day         INTEGER NOT NULL,
    posted_nano INTEGER NOT NULL DEFAULT 0,
    requests    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, day)
) STRICT, WITHOUT ROWID;
INSERT INTO balance
SELECT k.key_id, s.day, s.posted_nano, 0 FROM spend AS s JOIN vault_key AS k ON k.no = s.key_no;
INSERT INTO balance
SELECT 'tenant:' || k.tenant, s.day, sum(s.posted_nano), 0
FROM spend AS s JOIN vault_key AS k ON k.no = s.key_no WHERE k.tenant IS NOT NULL GROUP BY 1, 2;
INSERT INTO balance
SELECT k.key_id, c.ts_ns / 86400000000000, 0, count(*)
FROM call AS c JOIN vault_key AS k ON k.no = c.key_no WHERE c.policy_check_result = 'allowed' GROUP BY 1, 2
ON CONFLICT (scope, day) DO UPDATE SET requests = excluded.requests;
INSERT INTO balance
SELECT 'tenant:' || k.tenant, c.ts_ns / 86400000000000, 0, count(*)
FROM call AS c JOIN vault_key AS k ON k.no = c.key_no
WHERE c.policy_check_result = 'allowed' AND k.tenant IS NOT NULL GROUP BY 1, 2
ON CONFLICT (scope, day) DO UPDATE SET requests = excluded.requests;
DROP TABLE spend;

-- What goes with a secret and is none, such as an account's SID.
ALTER TABLE credential ADD COLUMN fields TEXT NOT NULL DEFAULT '{}';

CREATE TABLE policy (
    name   TEXT PRIMARY KEY,
    limits TEXT NOT NULL,          -- JSON, as on the wire
    set_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tenant (
    name           TEXT PRIMARY KEY,
    daily_cap_nano INTEGER,
    total_cap_nano INTEGER,
    call_cap_nano  INTEGER,
    daily_requests INTEGER,
    rate           TEXT,
    set_ns         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    no         INTEGER PRIMARY KEY,
    token_id   TEXT NOT NULL UNIQUE,
    digest     BLOB NOT NULL UNIQUE,   -- SHA-256 of the token; the token itself is nowhere
    scope      TEXT NOT NULL,
    note       TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER,
    revoked_ns INTEGER
) STRICT;

-- What operators, and agents with their own key, changed.
CREATE TABLE change (
    no      INTEGER PRIMARY KEY,
    ts_ns   INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL              -- JSON object
) STRICT;
CREATE INDEX change_subject ON change (subject, no);

-- Open holds, by key: what the first use of a key after a start reads back.
DROP INDEX call_open;
CREATE INDEX call_open ON call (key_no, no) WHERE outcome IN ('pending', 'unknown');

DROP VIEW calls;
CREATE VIEW calls AS
SELECT c.call_id,
       strftime('%Y-%m-%dT%H:%M:%fZ', c.ts_ns / 1000000 / 1000.0, 'unixepoch') AS ts,
       k.key_id                                                            AS vault_key_id,
       p.key_id                                                            AS parent_key_id,
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
LEFT JOIN vault_key AS k ON k.no = c.key_no
LEFT JOIN vault_key AS p ON p.no = k.parent_no;

-- Three tiers to begin with; the operator's to change or remove.
INSERT INTO policy VALUES ('starter', '{"daily_usd_cap":500}', 0);
INSERT INTO policy VALUES ('growth', '{"daily_usd_cap":5000}', 0);
INSERT INTO policy VALUES ('enterprise', '{"daily_usd_cap":50000}', 0);
