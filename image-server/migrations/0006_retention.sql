-- How many versions are kept: the server's own rule has no series.
CREATE TABLE retention (
    id          INTEGER PRIMARY KEY,
    series_id   INTEGER REFERENCES series (id),
    keep_last   INTEGER NOT NULL,
    keep_hourly INTEGER NOT NULL,
    keep_daily  INTEGER NOT NULL,
    keep_weekly INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX retention_by_series ON retention (coalesce(series_id, 0));

-- A pruned version's content is kept no longer; a purged one's manifest is gone as well. The row stays: it is the history.
ALTER TABLE versions ADD COLUMN pruned_ms INTEGER;
ALTER TABLE versions ADD COLUMN purged_ms INTEGER;
-- Bytes of packs and segments that no version had before this one.
ALTER TABLE versions ADD COLUMN stored_bytes INTEGER;

-- What is condemned does not count for commits and uploads any more, can still be read, and is deleted after a grace.
ALTER TABLE packs ADD COLUMN condemned_ms INTEGER;
ALTER TABLE segments ADD COLUMN condemned_ms INTEGER;
ALTER TABLE streams ADD COLUMN condemned_ms INTEGER;

-- Whether some version's `stored_bytes` has it; what was there before that was counted is taken as counted.
ALTER TABLE packs ADD COLUMN is_counted INTEGER NOT NULL DEFAULT 1;
ALTER TABLE segments ADD COLUMN is_counted INTEGER NOT NULL DEFAULT 1;
ALTER TABLE segments ADD COLUMN len_bytes INTEGER NOT NULL DEFAULT 0;

-- The packs a segment's locator names, in whatever namespace: what keeps them. `has_packs` is 0 for segments whose
-- locator is older than this table; the garbage collector reads it then.
ALTER TABLE segments ADD COLUMN has_packs INTEGER NOT NULL DEFAULT 0;
CREATE TABLE segment_packs (
    segment_id INTEGER NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    pack_id    INTEGER NOT NULL REFERENCES packs (id) ON DELETE CASCADE,
    PRIMARY KEY (segment_id, pack_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX segment_packs_by_pack ON segment_packs (pack_id);
