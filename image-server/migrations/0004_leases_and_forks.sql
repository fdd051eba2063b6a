-- The desktop a fork began on: a fork is a desktop with a history of its own, whose first version follows one of the other's.
ALTER TABLE series ADD COLUMN fork_of_id INTEGER REFERENCES series (id);

-- The right to write a desktop, held by the machine with this key.
CREATE TABLE leases (
    series_id      INTEGER PRIMARY KEY REFERENCES series (id),
    holder_key     BLOB    NOT NULL CHECK (length(holder_key) = 32),
    machine        TEXT    NOT NULL,
    version_id     INTEGER NOT NULL REFERENCES versions (id), -- what the holder stands on
    since_ms       INTEGER NOT NULL,
    renewed_ms     INTEGER NOT NULL,
    expires_ms     INTEGER NOT NULL,
    wanted_machine TEXT, -- who asks the holder to hand over
    wanted_ms      INTEGER,
    refusal        TEXT  -- why the holder does not
) STRICT;

-- What the operator decided; what is not here has its default.
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
