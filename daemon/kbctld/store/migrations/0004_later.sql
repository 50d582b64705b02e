-- Calls whose true price the vendor tells later: asked for until it is known, or given up.
CREATE TABLE later (
    call_id    TEXT PRIMARY KEY,
    key_no     INTEGER NOT NULL REFERENCES vault_key (no),
    vendor     TEXT NOT NULL,
    credential TEXT NOT NULL,              -- whose account it was made in
    operation  TEXT NOT NULL,
    path       TEXT NOT NULL,              -- where the vendor tells it
    day        INTEGER NOT NULL,           -- UTC day of the hold, which a correction counts in too
    nano       INTEGER NOT NULL,           -- what was posted
    fees_nano  INTEGER NOT NULL,           -- what the price that is told leaves out, at most
    due_ns     INTEGER NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    ended_ns   INTEGER                     -- corrected, or given up
) STRICT;
CREATE INDEX later_due ON later (due_ns) WHERE ended_ns IS NULL;
