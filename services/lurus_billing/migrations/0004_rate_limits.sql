-- How much a key, and all keys of an account together, may ask for in a moment. 0 means no limit.

ALTER TABLE account
    ADD COLUMN requests_per_minute bigint NOT NULL DEFAULT 0 CHECK (requests_per_minute >= 0),
    ADD COLUMN tokens_per_minute bigint NOT NULL DEFAULT 0 CHECK (tokens_per_minute >= 0),
    ADD COLUMN concurrent_requests bigint NOT NULL DEFAULT 0 CHECK (concurrent_requests >= 0);

ALTER TABLE key
    ADD COLUMN requests_per_minute bigint NOT NULL DEFAULT 0 CHECK (requests_per_minute >= 0),
    ADD COLUMN tokens_per_minute bigint NOT NULL DEFAULT 0 CHECK (tokens_per_minute >= 0),
    ADD COLUMN concurrent_requests bigint NOT NULL DEFAULT 0 CHECK (concurrent_requests >= 0);
