"""What the routing service counts. Label values are few: no account, key, request or client-chosen name."""

from prometheus_client import Counter, Gauge, Histogram

TOKEN_KINDS = ("input", "cache_read", "cache_write", "output")
FIRST_EVENT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

REQUESTS = Counter("lurus_requests", "Finished requests.", ["dialect", "terminal"])
ATTEMPTS = Counter("lurus_attempts", "Calls to providers.", ["provider", "outcome"])
FAILOVERS = Counter("lurus_failovers", "Requests that went on to the next candidate.", ["provider"])
TOKENS = Counter("lurus_tokens", "Tokens used.", ["provider", "kind"])
COST = Counter("lurus_cost_nano_usd", "What accounts pay, in nano-USD.", ["provider"])
UNPRICED = Counter("lurus_unpriced_requests", "Requests whose model has no price.", ["provider"])
SUSPECT = Counter("lurus_suspect_usage", "Usage reports with counts that cannot be true.", ["provider"])
BROKEN = Counter("lurus_broken_events", "Events of providers that could not be read.", ["provider"])
FIRST_EVENT = Histogram(
    "lurus_first_event_seconds", "From arrival to the first byte.", ["provider"], buckets=FIRST_EVENT_BUCKETS
)
LIVE = Gauge("lurus_live_requests", "Requests that are being served.")
