-- What each machine that writes a desktop was last heard to stand on, whether or not it holds the lease: what it wrote
-- since can be made a version only as long as that one is kept.
CREATE TABLE standings (
    series_id  INTEGER NOT NULL REFERENCES series (id),
    holder_key BLOB    NOT NULL CHECK (length(holder_key) = 32),
    version_id INTEGER NOT NULL REFERENCES versions (id),
    seen_ms    INTEGER NOT NULL,
    PRIMARY KEY (series_id, holder_key)
) STRICT, WITHOUT ROWID;

INSERT INTO standings SELECT series_id, holder_key, version_id, renewed_ms FROM leases;

-- The garbage collector asks for these batch by batch; there are few of them among many.
CREATE INDEX segments_condemned ON segments (condemned_ms) WHERE condemned_ms IS NOT NULL;
CREATE INDEX packs_condemned ON packs (condemned_ms) WHERE condemned_ms IS NOT NULL;
CREATE INDEX streams_condemned ON streams (condemned_ms) WHERE condemned_ms IS NOT NULL;
CREATE INDEX segments_without_packs ON segments (id) WHERE has_packs = 0;
