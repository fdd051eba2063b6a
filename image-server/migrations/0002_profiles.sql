-- Objects of boot streams.
CREATE TABLE streams (
    id           INTEGER PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    stream       BLOB    NOT NULL CHECK (length(stream) = 32),
    len_bytes    INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    UNIQUE (namespace_id, stream)
) STRICT;

-- Boot profiles of versions. The one with the greatest id is the version's; older ones stay readable for clients that
-- were pointed to them.
CREATE TABLE profiles (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    profile    BLOB    NOT NULL CHECK (length(profile) = 32),
    signature  TEXT    NOT NULL, -- the line that is stored beside the profile
    created_ms INTEGER NOT NULL,
    UNIQUE (version_id, profile)
) STRICT;
