-- When a desktop was removed, and the name it had: its row has another since, so that the name is free. Its versions stay for a
-- while, and are pruned then.
ALTER TABLE series ADD COLUMN removed_ms INTEGER;
ALTER TABLE series ADD COLUMN removed_name TEXT;
