-- A fork names the desktop it began on, which may be none here: the server was set back to a state from before that one.
-- `fork_of_id`, which could not say so, is not read any more; it stays for programs of before that still run.
ALTER TABLE series ADD COLUMN fork_of TEXT;
UPDATE series SET fork_of = (SELECT origin.name FROM series AS origin WHERE origin.id = series.fork_of_id);
