-- Providers, their credentials, models and prices, and what a watcher has to know of their changes.
-- Ids compare byte by byte (COLLATE "C"), so that a page has one order on every machine.

-- One row. Every writer locks it first and counts it up last: revisions are committed in
-- their order, so who has seen one has seen all before it.
CREATE TABLE revision (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    revision bigint NOT NULL,
    -- Tells this database from others that share a Redis.
    installation_id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO revision (revision) VALUES (0);

CREATE TABLE provider (
    provider_id text COLLATE "C" PRIMARY KEY,
    -- lurus.provider.v1.Provider without credentials and times.
    content bytea NOT NULL,
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX provider_revision ON provider (revision);

CREATE TABLE credential (
    provider_id text COLLATE "C" NOT NULL REFERENCES provider ON DELETE CASCADE,
    credential_id text COLLATE "C" NOT NULL,
    position int NOT NULL,
    -- AES-256-GCM under LURUS_CREDENTIAL_KEY, bound to provider_id|credential_id.
    sealed_secret bytea NOT NULL CHECK (length(sealed_secret) > 0),
    last_four text NOT NULL CHECK (length(last_four) <= 4),
    is_disabled boolean NOT NULL,
    PRIMARY KEY (provider_id, credential_id)
);

CREATE TABLE model (
    model_id text COLLATE "C" PRIMARY KEY,
    -- lurus.provider.v1.Model without times.
    content bytea NOT NULL,
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX model_revision ON model (revision);

-- Rates in nano-USD per million tokens. No reference to the provider: a price is history and outlives it.
CREATE TABLE price (
    price_id text COLLATE "C" PRIMARY KEY,
    model text COLLATE "C" NOT NULL,
    -- Empty: for all.
    provider_id text COLLATE "C" NOT NULL,
    effective_time timestamptz NOT NULL,
    input_nano_usd bigint NOT NULL CHECK (input_nano_usd >= 0),
    cache_read_nano_usd bigint NOT NULL CHECK (cache_read_nano_usd >= 0),
    cache_write_5m_nano_usd bigint NOT NULL CHECK (cache_write_5m_nano_usd >= 0),
    cache_write_30m_nano_usd bigint NOT NULL CHECK (cache_write_30m_nano_usd >= 0),
    cache_write_1h_nano_usd bigint NOT NULL CHECK (cache_write_1h_nano_usd >= 0),
    cache_write_12h_nano_usd bigint NOT NULL CHECK (cache_write_12h_nano_usd >= 0),
    output_nano_usd bigint NOT NULL CHECK (output_nano_usd >= 0),
    source text NOT NULL,
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- Two prices from the same moment on would be a guess.
    UNIQUE (model, provider_id, effective_time)
);
CREATE INDEX price_revision ON price (revision);

-- What is gone, for watchers that have seen it. Old rows are deleted: who is that far behind gets the whole set.
CREATE TABLE deletion (
    kind text NOT NULL CHECK (kind IN ('provider', 'model', 'price')),
    id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX deletion_revision ON deletion (revision);

-- Items of the shipped catalogue that were loaded once: a restart does not bring back what an operator deleted.
CREATE TABLE catalogue_item (
    item_id text COLLATE "C" PRIMARY KEY,
    load_time timestamptz NOT NULL DEFAULT now()
);
