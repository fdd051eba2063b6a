-- Times are milliseconds since 1970 UTC. Ids of objects are the 32 bytes of a SHA-256, keys the 32 bytes of an
-- Ed25519 public key. A row is written only after the object it speaks of is durable in the object store.

CREATE TABLE users (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL
) STRICT;

-- The token itself is nowhere: only its SHA-256.
CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER NOT NULL REFERENCES users (id),
    role         TEXT    NOT NULL CHECK (role IN ('admin', 'publisher', 'user')),
    label        TEXT,
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER,
    revoked_ms   INTEGER,
    last_used_ms INTEGER
) STRICT;

-- Made by the first accepted write, which decides the owner.
CREATE TABLE namespaces (
    id         INTEGER PRIMARY KEY,
    kind       TEXT    NOT NULL CHECK (kind IN ('image', 'user')),
    name       TEXT    NOT NULL,
    owner_id   INTEGER NOT NULL REFERENCES users (id),
    created_ms INTEGER NOT NULL,
    UNIQUE (kind, name)
) STRICT;

CREATE TABLE packs (
    id              INTEGER PRIMARY KEY,
    namespace_id    INTEGER NOT NULL REFERENCES namespaces (id),
    pack            BLOB    NOT NULL CHECK (length(pack) = 32),
    len_bytes       INTEGER NOT NULL,
    chunk_size_log2 INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    UNIQUE (namespace_id, pack)
) STRICT;

-- Where each chunk of a namespace lies; the first pack that brought it. `pack_id` is a row of `packs`, but no declared
-- reference: that would need an index of one more entry per chunk, and whoever removes a pack knows its chunks from its
-- footer.
CREATE TABLE chunks (
    namespace_id INTEGER NOT NULL,
    chunk        BLOB    NOT NULL,
    pack_id      INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL,
    frame_len    INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, chunk)
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    id              INTEGER PRIMARY KEY,
    namespace_id    INTEGER NOT NULL REFERENCES namespaces (id),
    segment         BLOB    NOT NULL CHECK (length(segment) = 32),
    chunk_size_log2 INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    UNIQUE (namespace_id, segment)
) STRICT;

-- Other namespaces that hold chunks of a segment: what keeps those chunks alive.
CREATE TABLE segment_sources (
    segment_id   INTEGER NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    PRIMARY KEY (segment_id, namespace_id)
) STRICT, WITHOUT ROWID;

-- A named series of versions: the one of an image, or one of a user's desktops. Its head is its greatest sequence.
CREATE TABLE series (
    id            INTEGER PRIMARY KEY,
    namespace_id  INTEGER NOT NULL REFERENCES namespaces (id),
    name          TEXT    NOT NULL,
    publisher_key BLOB    CHECK (length(publisher_key) = 32), -- images only: the one key that may sign
    created_ms    INTEGER NOT NULL,
    UNIQUE (namespace_id, name)
) STRICT;

-- UNIQUE (series_id, sequence) is the compare-and-swap of a commit: one version per step, whatever races.
CREATE TABLE versions (
    id              INTEGER PRIMARY KEY,
    series_id       INTEGER NOT NULL REFERENCES series (id),
    manifest        BLOB    NOT NULL UNIQUE CHECK (length(manifest) = 32),
    sequence        INTEGER NOT NULL,
    parent          BLOB    CHECK (length(parent) = 32),
    created_ms      INTEGER NOT NULL, -- by the maker's clock
    committed_ms    INTEGER NOT NULL, -- by ours
    machine         TEXT    NOT NULL,
    note            TEXT,
    signature       TEXT    NOT NULL, -- the line that is stored beside the manifest
    size_bytes      INTEGER NOT NULL, -- of all its disks
    base_version_id INTEGER REFERENCES versions (id),
    base_channel    TEXT,
    UNIQUE (series_id, sequence)
) STRICT;

CREATE INDEX versions_by_base ON versions (base_version_id) WHERE base_version_id IS NOT NULL;

CREATE TABLE channels (
    series_id  INTEGER NOT NULL REFERENCES series (id),
    name       TEXT    NOT NULL,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    PRIMARY KEY (series_id, name)
) STRICT, WITHOUT ROWID;
