"""What the routing service counts. Label values are few: no account, key, request or client-chosen name."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from lurus.usage.v1 import usage_pb2
from lurus_dialects.dialect import Dialect
from lurus_routing.breaker import State

TOKEN_KINDS = ("input", "cache_read", "cache_write", "output")
FIRST_EVENT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

REQUESTS = Counter("lurus_requests", "Finished requests.", ["dialect", "terminal"])
ATTEMPTS = Counter("lurus_attempts", "Calls to providers.", ["provider", "outcome"])
FAILOVERS = Counter("lurus_failovers", "Requests that went on to the next candidate.", ["provider"])
TOKENS = Counter("lurus_tokens", "Tokens used.", ["provider", "kind"])
COST = Counter("lurus_cost_nano_usd", "What accounts pay, in nano-USD.", ["provider"])
UNPRICED = Counter("lurus_unpriced_requests", "Requests whose model has no price.", ["provider"])
SUSPECT = Counter("lurus_suspect_usage", "Usage reports with counts that cannot be true.", ["provider"])
ABSURD = Counter(
    "lurus_absurd_usage",
    "Answers whose usage no model reaches; charged by an estimate instead.",
    ["provider"],
)
BROKEN = Counter("lurus_broken_events", "Events of providers that could not be read.", ["provider"])
LOST_EVENTS = Counter(
    "lurus_lost_events", "Events of providers that a client of another dialect cannot be told.", ["provider"]
)
LOST_FIELDS = Counter(
    "lurus_lost_fields",
    "Fields of requests that the provider's dialect could not take; `warned` were named to the client.",
    ["client", "provider_dialect", "kind"],
)
DEFECTS = Counter(
    "lurus_defects",
    "Answers that the gateway itself could not go on with; the log says why, with the request's id.",
    ["client", "provider_dialect"],
)
FIRST_EVENT = Histogram(
    "lurus_first_event_seconds", "From arrival to the first byte.", ["provider"], buckets=FIRST_EVENT_BUCKETS
)
BREAKERS = Gauge(
    "lurus_breakers",
    "Breakers that are not closed: `open`, or `half_open` while a probe runs.",
    ["provider", "state"],
)
BREAKER_TRANSITIONS = Counter(
    "lurus_breaker_transitions", "Breakers that have changed to a state.", ["provider", "state"]
)
BENCHES = Counter(
    "lurus_benches", "Credentials that were benched: refused, or throttled.", ["provider", "reason"]
)
RETRIES = Counter("lurus_retries", "Calls made again to the only candidate.", ["provider"])
PROBES = Counter(
    "lurus_probes", "Lists of models that resting providers were asked for.", ["provider", "result"]
)
LIVE = Gauge("lurus_live_requests", "Requests that are being served.")


class ProviderMetrics:
    """The children of one provider: looking them up costs more than counting."""

    def __init__(self, provider_id: str) -> None:
        self.answered = ATTEMPTS.labels(provider_id, "answered")
        self.tokens = [TOKENS.labels(provider_id, kind) for kind in TOKEN_KINDS]
        self.cost = COST.labels(provider_id)
        self.unpriced = UNPRICED.labels(provider_id)
        self.suspect = SUSPECT.labels(provider_id)
        self.absurd = ABSURD.labels(provider_id)
        self.broken = BROKEN.labels(provider_id)
        self.lost = LOST_EVENTS.labels(provider_id)
        self.first_event = FIRST_EVENT.labels(provider_id)


@lru_cache(maxsize=1000)
def of_provider(provider_id: str) -> ProviderMetrics:
    """Returns what is counted of a provider."""
    return ProviderMetrics(provider_id)


@lru_cache(maxsize=100)
def requests_of(dialect: str, terminal: int) -> Counter:
    """Returns the child of `REQUESTS` for a dialect and a `Terminal`."""
    name = usage_pb2.Terminal.Name(usage_pb2.Terminal.ValueType(terminal))
    return REQUESTS.labels(dialect, name.removeprefix("TERMINAL_").lower())


def count_defect(client: Dialect | None, provider: Dialect) -> None:
    """Counts an answer that failed of a defect of ours; `client` is None for typed callers."""
    DEFECTS.labels(client.value if client else "typed", provider.value).inc()


def count_breaker(provider_id: str, before: State, after: State | None) -> None:
    """Counts a breaker's change of state; None if it was forgotten."""
    if before is not State.CLOSED:
        BREAKERS.labels(provider_id, before.value).dec()
    if after is None:
        return
    if after is not State.CLOSED:
        BREAKERS.labels(provider_id, after.value).inc()
    BREAKER_TRANSITIONS.labels(provider_id, after.value).inc()


def count_losses(client: Dialect | None, provider: Dialect, silent_count: int, warned_count: int) -> None:
    """Counts what a translation could not carry over; `client` is None for typed callers."""
    for kind, count in (("silent", silent_count), ("warned", warned_count)):
        if count:
            LOST_FIELDS.labels(client.value if client else "typed", provider.value, kind).inc(count)
