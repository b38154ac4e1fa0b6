-- Reconciliation reads usage by when its requests were finished.
CREATE INDEX transfer_by_event_time ON transfer (event_time) WHERE event_time IS NOT NULL;
