-- What an account pays beside its prices, and ways to find requests that are to be priced again.

ALTER TABLE account
    -- Factor on every price, in millionths; 0 means 1000000.
    ADD COLUMN price_multiplier_ppm bigint NOT NULL DEFAULT 0
        CHECK (price_multiplier_ppm BETWEEN 0 AND 1000000000),
    -- lurus.billing.v1.SettlementPolicy; empty is its defaults.
    ADD COLUMN settlement_policy bytea NOT NULL DEFAULT '';

CREATE INDEX transfer_by_model ON transfer (model, event_time, transaction_id) WHERE kind = 1;
CREATE INDEX transfer_unpriced ON transfer (model, event_time) WHERE is_unpriced;
