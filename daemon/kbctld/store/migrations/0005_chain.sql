-- The audit as a chain: each event commits to the one before it. See store/chain.py for what is hashed.

INSERT INTO meta VALUES ('database_id', lower(hex(randomblob(16))));

-- The event that recorded a call, the event that says how it ended last, and what was held for it at first.
ALTER TABLE call ADD COLUMN chained_no INTEGER;
ALTER TABLE call ADD COLUMN settled_no INTEGER;
ALTER TABLE call ADD COLUMN held_nano INTEGER NOT NULL DEFAULT 0;

CREATE TABLE chain (
    no    INTEGER PRIMARY KEY,   -- without gaps, but for ranges in chain_gap
    kind  INTEGER NOT NULL,      -- 1 attempt, 2 outcome, 3 both at once, 4 change, 5 key, 6 prune
    ref   INTEGER NOT NULL,      -- the number of the row that it is about
    link  BLOB NOT NULL,         -- SHA-256 of the link before, no, kind, ref, prior and the row
    prior INTEGER,               -- an outcome: the event whose outcome it took the place of
    was   BLOB                   -- an outcome that another one took the place of: what it said
) STRICT;

-- Ranges of the chain that were pruned: where they begin, where they end, and the link to go on with.
CREATE TABLE chain_gap (
    first      INTEGER PRIMARY KEY,
    last       INTEGER NOT NULL,
    link       BLOB NOT NULL,       -- of the last event that was taken away
    first_call INTEGER,             -- the calls whose first event is in it
    last_call  INTEGER,
    prune_no   INTEGER NOT NULL     -- which pruning took it away; an event of kind 6 commits to all of them
) STRICT;
CREATE INDEX chain_gap_prune ON chain_gap (prune_no);
