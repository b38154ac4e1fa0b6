-- Reservations, corrections, the events behind receipts, letters that are dealt with, and a word to
-- those who watch a budget.

-- Money set aside by callers. Changed only under the lock of the account's ledger_account row, but
-- for the sweeper's step from open to expired, which nothing depends on: what counts is the time.
-- Rows stay: a settlement is never refused, however late it is.
CREATE TABLE reservation (
    -- Also the id of the transfer that settles it. Begins with `rsv_`, as no other transfer does.
    reservation_id text COLLATE "C" PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL REFERENCES account,
    reserved_nano_usd bigint NOT NULL CHECK (reserved_nano_usd >= 0),
    lifetime_microseconds bigint NOT NULL CHECK (lifetime_microseconds > 0),
    -- As in the contract: 1 open, 2 settled, 3 released, 4 expired.
    state smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 4),
    -- What it cost in the end.
    settled_nano_usd bigint CHECK (settled_nano_usd >= 0),
    -- By this database's clock; after it nothing is set aside any more.
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 2) = (settled_nano_usd IS NOT NULL))
);
CREATE INDEX reservation_open_by_account ON reservation (account_id, expire_time) WHERE state = 1;
CREATE INDEX reservation_open_by_time ON reservation (expire_time) WHERE state = 1;

ALTER TABLE transfer ADD COLUMN corrects_transaction_id text COLLATE "C" REFERENCES transfer;
CREATE INDEX transfer_by_corrected ON transfer (corrects_transaction_id, create_time)
    WHERE corrects_transaction_id IS NOT NULL;

-- The events that were booked, for receipts and for pricing again; written with their transfers.
-- Without what only the request log needs. No foreign key: an operator may thin this table out.
CREATE TABLE usage_event (
    request_id text COLLATE "C" PRIMARY KEY,
    payload bytea NOT NULL
);

ALTER TABLE dead_letter
    ADD COLUMN resolve_time timestamptz,
    ADD COLUMN resolution text NOT NULL DEFAULT '';
CREATE INDEX dead_letter_open ON dead_letter (dead_letter_id) WHERE resolve_time IS NULL;

-- Whatever changes what an account may spend says so, once a transaction, to those who watch it.
CREATE FUNCTION tell_budget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('lurus_billing_budgets', NEW.account_id);
    RETURN NULL;
END $$;
CREATE FUNCTION tell_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('lurus_billing_budgets', NEW.ledger_account_id);
    RETURN NULL;
END $$;
CREATE TRIGGER account_tells AFTER UPDATE ON account FOR EACH ROW EXECUTE FUNCTION tell_budget();
CREATE TRIGGER quota_tells AFTER INSERT OR UPDATE ON quota FOR EACH ROW EXECUTE FUNCTION tell_budget();
CREATE TRIGGER lease_tells AFTER INSERT OR UPDATE ON lease FOR EACH ROW EXECUTE FUNCTION tell_budget();
CREATE TRIGGER reservation_tells AFTER INSERT OR UPDATE ON reservation
    FOR EACH ROW EXECUTE FUNCTION tell_budget();
CREATE TRIGGER ledger_account_tells AFTER UPDATE ON ledger_account
    FOR EACH ROW WHEN (NEW.ledger_account_id LIKE 'acct\_%') EXECUTE FUNCTION tell_balance();
