"""What the edge counts. Children are cached, since `labels()` costs more than the count itself."""

from prometheus_client import Counter, Gauge, Histogram

from lurus_dialects.dialect import Dialect

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REQUESTS = Counter("lurus_edge_requests_total", "Requests answered, by status.", ["dialect", "status"])
FIRST_BYTES = Histogram(
    "lurus_edge_first_byte_seconds",
    "From a request's head to the head of its answer.",
    ["dialect"],
    buckets=SECONDS,
)
LIVE_REQUESTS = Gauge("lurus_edge_live_requests", "Requests that are being answered.", ["dialect"])
LIVE_STREAMS = Gauge("lurus_edge_live_streams", "Event streams that are being sent.", ["dialect"])
DISCONNECTS = Counter(
    "lurus_edge_disconnects_total", "Clients that left before the end of the answer.", ["dialect"]
)
REFUSED = Counter("lurus_edge_refused_total", "Requests refused before they were complete.", ["status"])


class DialectMetrics:
    """The children of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._requests: dict[int, Counter] = {}
        self.first_byte = FIRST_BYTES.labels(dialect.value)
        # Read when somebody asks: counting up and down costs each request more.
        self.live_requests = self.live_streams = 0
        LIVE_REQUESTS.labels(dialect.value).set_function(lambda: self.live_requests)
        LIVE_STREAMS.labels(dialect.value).set_function(lambda: self.live_streams)
        self.disconnects = DISCONNECTS.labels(dialect.value)

    def count(self, status: int) -> None:
        """Counts one answer."""
        child = self._requests.get(status)
        if child is None:
            child = self._requests[status] = REQUESTS.labels(self._dialect.value, str(status))
        child.inc()
