-- When it was found that a pack, or a segment or its locator, cannot be read whole any more. What is lost does not count for uploads, so
-- that whoever has its content sends it again; versions that need it stay, and may be committed on.
ALTER TABLE packs ADD COLUMN lost_ms INTEGER;
ALTER TABLE segments ADD COLUMN lost_ms INTEGER;
CREATE INDEX packs_lost ON packs (lost_ms) WHERE lost_ms IS NOT NULL;
CREATE INDEX segments_lost ON segments (lost_ms) WHERE lost_ms IS NOT NULL;
