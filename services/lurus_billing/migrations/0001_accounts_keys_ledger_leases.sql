-- Accounts, keys, the double-entry ledger, quotas, leases and what was set aside.
-- Every amount is a bigint of nano-USD. Ids compare byte by byte (COLLATE "C"), so
-- that pages and locks have one order on every machine.

CREATE TABLE account (
    account_id text COLLATE "C" PRIMARY KEY,
    display_name text NOT NULL,
    credit_limit_nano_usd bigint NOT NULL CHECK (credit_limit_nano_usd >= 0),
    offline_policy smallint NOT NULL,
    time_zone text NOT NULL,
    is_closed boolean NOT NULL DEFAULT false,
    -- True if usage came for an account that nobody had created; see ledger.py.
    is_unknown boolean NOT NULL DEFAULT false,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE quota (
    account_id text COLLATE "C" PRIMARY KEY REFERENCES account,
    daily_limit_nano_usd bigint NOT NULL CHECK (daily_limit_nano_usd >= 0),
    monthly_limit_nano_usd bigint NOT NULL CHECK (monthly_limit_nano_usd >= 0),
    total_limit_nano_usd bigint NOT NULL CHECK (total_limit_nano_usd >= 0)
);

-- Keys. What is stored of a secret is its HMAC under the pepper and its first characters.

CREATE TABLE key (
    key_id text COLLATE "C" PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL REFERENCES account,
    verifier bytea NOT NULL UNIQUE CHECK (length(verifier) = 32),
    secret_prefix text NOT NULL CHECK (length(secret_prefix) <= 8),
    display_name text NOT NULL,
    allowed_models text[] NOT NULL,
    expire_time timestamptz,
    revoke_time timestamptz,
    -- Of the last change that the routing service must know.
    revision bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX key_by_revision ON key (revision, key_id);
CREATE INDEX key_by_account ON key (account_id, key_id);

-- One row. Whoever changes a key or a grant counts it up first and so holds it until the
-- commit: revisions become visible in their order, and a reader that has seen one has
-- missed none before it.
CREATE TABLE revision (
    is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    value bigint NOT NULL
);
INSERT INTO revision (value) VALUES (0);

-- The ledger. Customers' accounts and the house's own; every transfer moves an amount from
-- the debited to the credited one.

CREATE TABLE ledger_account (
    ledger_account_id text COLLATE "C" PRIMARY KEY,
    balance_nano_usd bigint NOT NULL DEFAULT 0,
    -- Sum of the usage booked, for quotas.
    used_nano_usd bigint NOT NULL DEFAULT 0,
    -- Number of the last transfer of this account.
    sequence bigint NOT NULL DEFAULT 0
);
INSERT INTO ledger_account (ledger_account_id) VALUES ('house:usage'), ('house:cash'), ('house:adjustment');

CREATE TABLE transfer (
    -- The request id for usage, else what the caller chose.
    transaction_id text COLLATE "C" PRIMARY KEY,
    -- The customer's side, whichever it is, and the number of the transfer there: 1, 2, 3, …
    account_id text COLLATE "C" NOT NULL REFERENCES account,
    sequence bigint NOT NULL,
    debit_account_id text COLLATE "C" NOT NULL REFERENCES ledger_account,
    credit_account_id text COLLATE "C" NOT NULL REFERENCES ledger_account,
    amount_nano_usd bigint NOT NULL CHECK (amount_nano_usd >= 0),
    balance_after_nano_usd bigint NOT NULL,
    kind smallint NOT NULL,
    -- SHA-256 of what asked for it: another content under the same id is an alarm.
    body_sha bytea NOT NULL CHECK (length(body_sha) = 32),
    description text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    -- Only for usage.
    event_time timestamptz,
    key_id text,
    model text,
    price_id text,
    is_unpriced boolean NOT NULL DEFAULT false,
    token_source smallint NOT NULL DEFAULT 0,
    lease_id text,
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_5m_tokens bigint,
    cache_write_30m_tokens bigint,
    cache_write_1h_tokens bigint,
    cache_write_12h_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    CHECK (debit_account_id <> credit_account_id),
    CHECK (account_id IN (debit_account_id, credit_account_id))
);
CREATE UNIQUE INDEX transfer_by_account ON transfer (account_id, sequence);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: correct the ledger with another transfer', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER transfer_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_account_stays BEFORE DELETE OR TRUNCATE ON ledger_account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Every statement on the balances must leave their sum as it was, and new accounts start
-- at 0: so the sum over all ledger accounts is always 0.
CREATE FUNCTION require_balanced_update() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change numeric;
BEGIN
    SELECT (SELECT coalesce(sum(balance_nano_usd), 0) FROM after)
         - (SELECT coalesce(sum(balance_nano_usd), 0) FROM before) INTO change;
    IF change <> 0 THEN
        RAISE EXCEPTION 'the ledger would be off by % nano-USD', change
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_account_balanced AFTER UPDATE ON ledger_account
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION require_balanced_update();

CREATE FUNCTION require_empty_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.balance_nano_usd <> 0 OR NEW.used_nano_usd <> 0 OR NEW.sequence <> 0 THEN
        RAISE EXCEPTION 'a ledger account starts at 0' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ledger_account_starts_empty BEFORE INSERT ON ledger_account
    FOR EACH ROW EXECUTE FUNCTION require_empty_account();

-- Usage by quarter of an hour: every time zone's day begins at one.
CREATE TABLE usage_bucket (
    account_id text COLLATE "C" NOT NULL REFERENCES account,
    start_time timestamptz NOT NULL,
    amount_nano_usd bigint NOT NULL,
    PRIMARY KEY (account_id, start_time)
);

-- What is lent to workers. Changed only under the lock of the account's ledger_account row.
CREATE TABLE lease (
    lease_id text COLLATE "C" PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL REFERENCES account,
    worker_id text NOT NULL,
    granted_nano_usd bigint NOT NULL CHECK (granted_nano_usd > 0),
    settled_nano_usd bigint NOT NULL DEFAULT 0,
    -- What the worker said it spent when it returned the lease; null while it is open.
    declared_spent_nano_usd bigint CHECK (declared_spent_nano_usd >= 0),
    -- After this nothing of it is outstanding any more.
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lease_by_account ON lease (account_id, expire_time);

-- Events for a person: those that cannot be read or booked, and those that repeat an id
-- with another content.
CREATE TABLE dead_letter (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cause text NOT NULL CHECK (cause IN ('parked', 'conflict')),
    -- The stream's for parked events, 0 for conflicts.
    stream_sequence bigint NOT NULL,
    subject text NOT NULL,
    request_id text NOT NULL,
    payload bytea NOT NULL,
    payload_sha bytea NOT NULL,
    reason text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- The payload too: a bus that was set up anew counts from 1 again.
    UNIQUE (cause, stream_sequence, request_id, payload_sha)
);
