"""One choice of a plan."""

from dataclasses import dataclass, field

from lurus_common.matching import WILDCARD
from lurus_dialects.dialect import Dialect
from lurus_dialects.params import Param
from lurus_dialects.translation import Target


@dataclass(frozen=True, slots=True)
class Candidate:
    """A credential of a provider that serves the model."""

    provider_id: str
    credential_id: str
    secret: str = field(repr=False)
    base_url: str
    upstream_model: str
    rule: str
    level: int
    weight: int
    # Its part of its provider's weight: the others of that provider have the rest.
    share: float
    tags: frozenset[str]
    connect_seconds: float
    first_event_seconds: float
    # The same where the model thinks first.
    thinking_seconds: float
    idle_seconds: float
    # From the begin of a stream's attempt to its end, and from the arrival of a plain request.
    stream_total_seconds: float
    unary_total_seconds: float
    has_stream_options: bool
    cost_multiplier_ppm: int
    # Calls at once to its provider; 0 means no limit.
    max_concurrency: int
    # What its breaker is known by: provider, credential, upstream model.
    key: tuple[str, str, str]
    # How it can be asked, best first; of a relay the only one is the client's own dialect.
    targets: tuple[Target, ...] = field(repr=False, compare=False)
    # The client's bytes pass as they are; else the request is translated.
    is_relay: bool
    # It is asked for streams also for plain answers.
    wants_streams: bool = False
    # Its stream is read on when the client has left.
    is_drained: bool = False
    # What is left out of requests, or written into them.
    params: tuple[Param, ...] = field(default=(), repr=False, compare=False)
    # What it serves beside its dialects: `lurus.provider.v1.ExtraEndpoint`.
    extra_endpoints: frozenset[int] = frozenset()

    @property
    def names_model(self) -> bool:
        """Whether its provider says that it has this very model, rather than any."""
        return self.rule not in ("", WILDCARD)

    @property
    def dialect(self) -> Dialect:
        """In which it is asked, if the request can be said in it."""
        return self.targets[0].dialect
