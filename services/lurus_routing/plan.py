"""The order in which providers are asked. Pure: rows, health, time and chance come in."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lurus_routing.candidate import Candidate
from lurus_routing.health import Health


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

    def keep_first(self, reason: str) -> None:
        """Leaves out all candidates but the one that is asked first."""
        self.skipped += [Skip(candidate, reason) for candidate in self.candidates[1:]]
        del self.candidates[1:]

    def skip_first(self, reason: str) -> None:
        """Leaves out the candidate that would be asked first."""
        self.skipped.append(Skip(self.candidates.pop(0), reason))


def make_plan(
    matches: Sequence[Candidate], health: Health, now: float, session: str, chance: Callable[[], float]
) -> Plan:
    """Orders candidates by level, then relays before translations, then by weighted affinity to a session.

    Without a session weighted chance stands for the affinity.
    The same session meets the same candidate first as long as it is healthy,
    whichever worker asks: no state is shared for that.
    """
    usable, skipped = _divide(matches, health, now, is_last_resort=False)
    is_last_resort = not usable
    if is_last_resort:
        usable, skipped = _divide(matches, health, now, is_last_resort=True)
    if len(usable) > 1:
        usable.sort(key=lambda candidate: _rank(candidate, session, chance))
    return Plan(usable, skipped, is_last_resort)


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


def _rank(candidate: Candidate, session: str, chance: Callable[[], float]) -> tuple[int, bool, float]:
    return candidate.level, not candidate.is_relay, _distance(candidate, session, chance)


def _distance(candidate: Candidate, session: str, chance: Callable[[], float]) -> float:
    """Weighted rendezvous: the share of sessions that a candidate is nearest to is its weight."""
    point = _point(session, candidate) if session else chance()
    return -math.log(max(point, 1e-300)) / candidate.weight


def _point(session: str, candidate: Candidate) -> float:
    text = f"{session}\0{candidate.provider_id}\0{candidate.credential_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
