-- What a key, or all keys of an account by default, demand of providers.

-- lurus.billing.v1.Demands; empty is none.
ALTER TABLE account ADD COLUMN demands bytea NOT NULL DEFAULT '';
ALTER TABLE key ADD COLUMN demands bytea NOT NULL DEFAULT '';
