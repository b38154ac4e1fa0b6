"""The order in which providers are asked. Pure: rows, health, time and chance come in."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lurus_routing.health import Health

DEFAULT_LEVEL = 1
DEFAULT_WEIGHT = 100


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
    connect_seconds: float
    first_event_seconds: float
    idle_seconds: float
    has_stream_options: bool
    cost_multiplier_ppm: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What its breaker is known by."""
        return self.provider_id, self.credential_id, self.upstream_model


@dataclass(frozen=True, slots=True)
class Skip:
    """A candidate that is not asked, and why."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask, in order, and whom not."""

    candidates: list[Candidate]
    skipped: list[Skip]


def make_plan(
    matches: Sequence[Candidate], health: Health, now: float, session: str, chance: Callable[[], float]
) -> Plan:
    """Orders candidates by level, then by weighted affinity to a session, else by weighted chance.

    The same session meets the same candidate first as long as it is healthy,
    whichever worker asks: no state is shared for that.
    """
    usable: list[Candidate] = []
    skipped: list[Skip] = []
    for candidate in matches:
        reason = health.skip_reason(candidate.key, now, is_sole=len(matches) == 1)
        if reason:
            skipped.append(Skip(candidate, reason))
        else:
            usable.append(candidate)
    if len(usable) > 1:
        usable.sort(key=lambda candidate: (candidate.level, _distance(candidate, session, chance)))
    return Plan(usable, skipped)


def _distance(candidate: Candidate, session: str, chance: Callable[[], float]) -> float:
    """Weighted rendezvous: the share of sessions that a candidate is nearest to is its weight."""
    point = _point(session, candidate) if session else chance()
    return -math.log(max(point, 1e-300)) / candidate.weight


def _point(session: str, candidate: Candidate) -> float:
    text = f"{session}\0{candidate.provider_id}\0{candidate.credential_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
