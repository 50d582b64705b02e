-- What a call asked for, and the earlier one that had asked for the same: read back at the start.

ALTER TABLE vault_key ADD COLUMN duplicates TEXT DEFAULT 'flag/10m';

ALTER TABLE call ADD COLUMN fingerprint BLOB;
ALTER TABLE call ADD COLUMN duplicate_of TEXT;
CREATE INDEX call_fingerprint ON call (ts_ns) WHERE fingerprint IS NOT NULL;
CREATE INDEX call_duplicate ON call (no) WHERE duplicate_of IS NOT NULL;

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
       c.folded,
       c.duplicate_of
FROM call AS c
LEFT JOIN vault_key AS k ON k.no = c.key_no
LEFT JOIN vault_key AS p ON p.no = k.parent_no;
