-- Rates of long prompts and of what is not tokens: lurus.provider.v1.Price with its tiers and unit
-- rates alone; empty if it has none.
ALTER TABLE price ADD COLUMN surcharges bytea NOT NULL DEFAULT '';
