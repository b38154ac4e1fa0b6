-- One row per finished request. Delivery is at least once, so rows with the
-- same sort key are one request: reads say FINAL, and nothing adds rows up
-- before. `event_time` is the event's own, never the time of the insert, since a
-- repeat is recognised in its own partition only. On a cluster only the ENGINE
-- lines differ (ReplicatedReplacingMergeTree), and there the token of an insert
-- recognises a repeated batch. Here it must not: without replication the engine
-- notes the token before the rows, so that a crash between the two would make
-- it drop the batch when it comes again.
CREATE TABLE IF NOT EXISTS usage_events
(
    account_id              String,
    event_time              DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    request_id              String,
    -- 1 as it came; a row that replaces it, such as a request priced later, has a higher one.
    version                 UInt32,

    key_id                  String,
    session_id              String,
    dialect                 LowCardinality(String),
    is_streaming            Bool,
    model                   LowCardinality(String),
    provider_id             LowCardinality(String),
    credential_id           LowCardinality(String),
    upstream_model          LowCardinality(String),
    attempt_count           Int32,

    terminal                LowCardinality(String),
    http_status             Int32,
    error_reason            LowCardinality(String),
    stop_reason             LowCardinality(String),
    first_event_micros      Nullable(Int64),
    total_micros            Nullable(Int64),
    request_bytes           Int64,
    response_bytes          Int64,

    token_source            LowCardinality(String),
    input_tokens            Int64,
    cache_read_tokens       Int64,
    cache_write_5m_tokens   Int64,
    cache_write_30m_tokens  Int64,
    cache_write_1h_tokens   Int64,
    cache_write_12h_tokens  Int64,
    output_tokens           Int64,
    reasoning_tokens        Int64,
    cost_nano_usd           Int64,
    price_id                LowCardinality(String),
    is_unpriced             Bool,
    worker_id               LowCardinality(String),

    -- All of it: lurus.usage.v1.UsageEvent, serialized.
    event                   String CODEC(ZSTD),
    event_bytes             Int64,
    insert_time             DateTime('UTC') DEFAULT now(),

    INDEX event_time_range event_time TYPE minmax GRANULARITY 1,
    INDEX request_id_bloom request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX session_id_bloom session_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(event_time)
ORDER BY (account_id, toDate(event_time), request_id)
TTL toDateTime(event_time) + INTERVAL 365 DAY
-- An insert that was confirmed survives a power cut. Rows carry whole events,
-- so granules of 1024 spare reading thousands to show one.
SETTINGS
    ttl_only_drop_parts = 1,
    index_granularity = 1024,
    fsync_after_insert = 1,
    fsync_part_directory = 1;

-- Messages that could not be read or stored, for a person to look at.
CREATE TABLE IF NOT EXISTS dead_letter
(
    stream_sequence         Int64,
    subject                 String,
    payload                 String CODEC(ZSTD),
    reason                  String,
    insert_time             DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree
ORDER BY (stream_sequence, subject)
SETTINGS
    fsync_after_insert = 1,
    fsync_part_directory = 1;
