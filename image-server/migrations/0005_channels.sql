-- A staged move: desktops outside `percent`, and all that do not stand on the version yet while it is paused, follow
-- `previous_version_id`, which is also where a rollback leads.
ALTER TABLE channels ADD COLUMN previous_version_id INTEGER REFERENCES versions (id);
ALTER TABLE channels ADD COLUMN percent INTEGER NOT NULL DEFAULT 100 CHECK (percent BETWEEN 0 AND 100);
ALTER TABLE channels ADD COLUMN paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1));
ALTER TABLE channels ADD COLUMN moved_ms INTEGER NOT NULL DEFAULT 0; -- by our clock; 0: before this was noted
-- For a channel that was taken back: the publisher's word for it, and the newest version it knows of.
ALTER TABLE channels ADD COLUMN rollback_signature TEXT;
ALTER TABLE channels ADD COLUMN rollback_newest INTEGER;

-- Every move and change of a channel, oldest first.
CREATE TABLE channel_moves (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    series_id  INTEGER NOT NULL REFERENCES series (id),
    name       TEXT    NOT NULL,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    percent    INTEGER NOT NULL,
    paused     INTEGER NOT NULL,
    moved_ms   INTEGER NOT NULL
) STRICT;

CREATE INDEX channel_moves_by_channel ON channel_moves (series_id, name);

-- What became of the latest start of each desktop on each golden version.
CREATE TABLE starts (
    series_id  INTEGER NOT NULL REFERENCES series (id), -- the desktop's
    version_id INTEGER NOT NULL REFERENCES versions (id), -- the golden version
    outcome    TEXT    NOT NULL CHECK (outcome IN ('good', 'bad', 'reverted')),
    machine    TEXT    NOT NULL,
    said       TEXT,
    noted_ms   INTEGER NOT NULL,
    PRIMARY KEY (series_id, version_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX starts_by_version ON starts (version_id);
