"""The order in which providers are asked. Pure: rows, health, time and chance come in."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lurus_routing.candidate import Candidate
from lurus_routing.health import BREAKER_OPEN, BREAKER_PROBED, Health, RouteKey
from lurus_routing.latency import band

MAX_SKIPS = 100
_EJECTED = frozenset({BREAKER_OPEN, BREAKER_PROBED})

# Nearer than any other.
_AT_HOME = -1.0


@dataclass(frozen=True, slots=True)
class Skip:
    """A candidate that is not asked, and why."""

    candidate: Candidate
    reason: str


@dataclass(slots=True)
class Plan:
    """Whom to ask, in order, and whom not."""

    candidates: list[Candidate]
    skipped: list[Skip]
    # Nobody was usable, so benches count for a short time only.
    is_last_resort: bool = False
    # Those whose breakers are open, asked last: so many of a model's providers are never given up at once.
    reserve: frozenset[RouteKey] = frozenset()
    # Mean seconds to the first event, where the order went by them; None where nothing is known.
    latencies: Mapping[RouteKey, float | None] = field(default_factory=dict)

    def keep_first(self, reason: str) -> None:
        """Leaves out all candidates but the one that is asked first."""
        self.skipped += [Skip(candidate, reason) for candidate in self.candidates[1:]]
        del self.candidates[1:]

    def skip_first(self, reason: str) -> None:
        """Leaves out the candidate that would be asked first."""
        self.skip(self.candidates.pop(0), reason)

    def skip(self, candidate: Candidate, reason: str) -> None:
        """Notes a candidate that is not asked after all."""
        if len(self.skipped) < MAX_SKIPS:
            self.skipped.append(Skip(candidate, reason))


def make_plan(
    matches: Sequence[Candidate],
    health: Health,
    now: float,
    session: str,
    chance: Callable[[], float],
    moved_to: tuple[str, str] | None = None,
    *,
    by_latency: bool = False,
) -> Plan:
    """Orders candidates by level, then relays before translations, then by weighted affinity to a session.

    Without a session weighted chance stands for the affinity.
    The same session meets the same candidate first as long as it is healthy,
    whichever worker asks. One that a failover has moved stays with the
    credential `moved_to`, among candidates of one level. With `by_latency` this
    holds among those that are about as fast as the fastest of their level; the
    slower ones follow, the fastest first.
    """
    usable, skipped = _divide(matches, health, now, is_last_resort=False)
    reserve = _reserve(matches, usable, skipped, health, now) if skipped else []
    is_last_resort = not usable and not reserve
    if is_last_resort:
        usable, skipped = _divide(matches, health, now, is_last_resort=True)
    latencies = {row.key: health.latency(row.key, now) for row in usable} if by_latency else {}
    if len(usable) > 1:
        _sort(usable, session, chance, latencies, moved_to)
    if reserve:
        _sort(reserve, session, chance, {}, moved_to)
        kept = {candidate.key for candidate in reserve}
        skipped = [skip for skip in skipped if skip.candidate.key not in kept]
        usable += reserve
    keys = frozenset(candidate.key for candidate in reserve)
    return Plan(usable, skipped, is_last_resort, keys, latencies)


def first_choice(
    matches: Sequence[Candidate], session: str, moved_to: tuple[str, str] | None = None
) -> Candidate:
    """Returns whom a session would meet first if all were healthy."""

    def rank(candidate: Candidate) -> tuple[tuple[int, bool], float]:
        return _group(candidate), _distance(candidate, session, lambda: 1.0, moved_to)

    return min(matches, key=rank)


def _divide(
    matches: Sequence[Candidate], health: Health, now: float, is_last_resort: bool
) -> tuple[list[Candidate], list[Skip]]:
    usable: list[Candidate] = []
    skipped: list[Skip] = []
    for candidate in matches:
        reason = health.skip_reason(candidate, now, is_last_resort)
        if reason:
            skipped.append(Skip(candidate, reason))
        else:
            usable.append(candidate)
    return usable, skipped


def _reserve(
    matches: Sequence[Candidate],
    usable: Sequence[Candidate],
    skipped: Sequence[Skip],
    health: Health,
    now: float,
) -> list[Candidate]:
    """Returns candidates that are asked in spite of their breakers, after all others.

    At most half of a model's providers may be ejected: when more of them fail,
    the fault may be ours, and those that have rested longest are asked again.
    """
    provider_count = len({candidate.provider_id for candidate in matches})
    alive = {candidate.provider_id for candidate in usable}
    ejected: dict[str, list[Candidate]] = {}
    for skip in skipped:
        if skip.reason in _EJECTED and skip.candidate.provider_id not in alive:
            ejected.setdefault(skip.candidate.provider_id, []).append(skip.candidate)
    surplus = len(ejected) - provider_count // 2
    if provider_count < 2 or surplus <= 0:
        return []
    rested = sorted(ejected, key=lambda name: (min(health.rested_since(c.key) for c in ejected[name]), name))
    kept = [candidate for name in rested[:surplus] for candidate in ejected[name]]
    return [candidate for candidate in kept if not health.skip_reason(candidate, now, is_reserve=True)]


def _sort(
    candidates: list[Candidate],
    session: str,
    chance: Callable[[], float],
    latencies: Mapping[RouteKey, float | None],
    moved_to: tuple[str, str] | None,
) -> None:
    fastest: dict[tuple[int, bool], float] = {}
    for candidate in candidates:
        mean = latencies.get(candidate.key)
        if mean is not None:
            group = _group(candidate)
            fastest[group] = min(mean, fastest.get(group, mean))

    def rank(candidate: Candidate) -> tuple[tuple[int, bool], float, float]:
        group = _group(candidate)
        slowness = band(latencies.get(candidate.key), fastest.get(group, 0.0))
        return group, slowness, _distance(candidate, session, chance, moved_to)

    candidates.sort(key=rank)


def _group(candidate: Candidate) -> tuple[int, bool]:
    return candidate.level, not candidate.is_relay


def _distance(
    candidate: Candidate, session: str, chance: Callable[[], float], moved_to: tuple[str, str] | None
) -> float:
    """Weighted rendezvous: a candidate is nearest to its share of the weights of all sessions."""
    if candidate.key[:2] == moved_to:
        return _AT_HOME
    point = _point(session, candidate) if session else chance()
    return -math.log(max(point, 1e-300)) / candidate.share


def _point(session: str, candidate: Candidate) -> float:
    text = f"{session}\0{candidate.provider_id}\0{candidate.credential_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
