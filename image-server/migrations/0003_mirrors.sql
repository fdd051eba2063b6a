-- Static hosts that hold an image's objects too, in the order in which clients ask them.
CREATE TABLE mirrors (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    series_id INTEGER NOT NULL REFERENCES series (id),
    url       TEXT    NOT NULL,
    UNIQUE (series_id, url)
) STRICT;
