-- By what a call can be found again at the vendor, where its row does not say it.
CREATE TABLE trace (
    call_id   TEXT PRIMARY KEY,
    ts_ns     INTEGER NOT NULL,            -- as in its row
    content   BLOB,                        -- of what it asked for, where the vendor's list is searched by that
    fees_nano INTEGER NOT NULL,            -- what a price that is told later leaves out, at most
    accounts  TEXT                         -- JSON of the headers that moved it to another account
) STRICT, WITHOUT ROWID;
CREATE INDEX trace_content ON trace (content, ts_ns) WHERE content IS NOT NULL;
