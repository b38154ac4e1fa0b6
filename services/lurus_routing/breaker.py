"""When to leave a provider alone: a pure state machine, time is an argument.

One breaker per provider, credential and model counts transient failures. A
credential that was refused, or a throttle with a time to wait, is a bench: a
moment until which the credential is skipped.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 30.0
WINDOW_MINIMUM = 20
WINDOW_SHARE = 0.5
WINDOW_MAXIMUM = 1000
OPEN_SECONDS = 30.0
MAX_OPEN_SECONDS = 300.0
# A probe that never reports back (its worker task died) frees the slot after this.
PROBE_SECONDS = 120.0


class State(StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Closed → open (5 in a row, or half of at least 20 in 30 s) → half-open with one probe."""

    in_a_row: int = 0
    open_until: float = 0.0
    times_open: int = 0
    is_open: bool = False
    probe_until: float = 0.0
    outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=WINDOW_MAXIMUM))

    def state(self, now: float) -> State:
        """The state at `now`."""
        if not self.is_open:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def admits(self, now: float) -> bool:
        """Whether a call may pass; asking changes nothing."""
        if not self.is_open:
            return True
        return now >= self.open_until and now >= self.probe_until

    def start(self, now: float) -> None:
        """Notes that a call passes; in half-open it is the one probe."""
        if self.is_open:
            self.probe_until = now + PROBE_SECONDS

    def succeed(self, now: float) -> None:
        """Notes an answer: closes the breaker."""
        self.in_a_row = 0
        if self.is_open:
            self.is_open, self.times_open, self.probe_until = False, 0, 0.0
            self.outcomes.clear()
        self.outcomes.append((now, True))

    def fail(self, now: float) -> None:
        """Notes a transient failure; may open the breaker."""
        self.in_a_row += 1
        self.outcomes.append((now, False))
        if self.is_open or self.in_a_row >= FAILURES_IN_A_ROW or self._half_failed(now):
            self._open(now)

    def abandon(self) -> None:
        """Notes that a call ended without telling anything: the probe is free again."""
        self.probe_until = 0.0

    def _half_failed(self, now: float) -> bool:
        while self.outcomes and self.outcomes[0][0] < now - WINDOW_SECONDS:
            self.outcomes.popleft()
        failures = sum(not succeeded for _, succeeded in self.outcomes)
        return len(self.outcomes) >= WINDOW_MINIMUM and failures >= len(self.outcomes) * WINDOW_SHARE

    def _open(self, now: float) -> None:
        self.is_open = True
        self.times_open += 1
        self.open_until = now + min(OPEN_SECONDS * self.times_open, MAX_OPEN_SECONDS)
        self.probe_until = 0.0
        self.in_a_row = 0
