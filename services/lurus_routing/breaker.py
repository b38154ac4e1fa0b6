"""When to leave a provider alone: a pure state machine, time is an argument.

One breaker per provider, credential and model counts transient failures. A
credential that was refused, or a throttle with a time to wait, is a bench: a
moment until which the credential is skipped (see `health`).
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
# When nobody else is left, a breaker or a bench counts no longer than this.
LAST_RESORT_SECONDS = 5.0
# A probe that takes longer (a plain answer may take minutes) does not keep the next one waiting.
PROBE_SECONDS = 60.0
# The number of a call that is no probe.
ORDINARY = 0


class State(StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Closed → open (5 in a row, or half of at least 20 in 30 s) → half-open with one probe.

    Each call is told by `start` whether it is a probe, and reports with that
    number: while the breaker is not closed, calls from before it opened tell nothing.
    """

    in_a_row: int = 0
    opened: float = 0.0
    open_until: float = 0.0
    times_open: int = 0
    is_open: bool = False
    # The probe that is running, and until when it keeps others waiting.
    probe: int = ORDINARY
    probe_until: float = 0.0
    probe_count: int = 0
    outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=WINDOW_MAXIMUM))

    def state(self, now: float) -> State:
        """The state at `now`."""
        if not self.is_open:
            return State.CLOSED
        return State.OPEN if now < self.open_until else State.HALF_OPEN

    def admits(self, now: float, is_last_resort: bool = False) -> bool:
        """Whether a call may pass; asking changes nothing.

        When nobody else can be asked, a probe may be made soon: a provider that
        is back must not stay away for the rest of the 30 s.
        """
        if not self.is_open:
            return True
        until = min(self.open_until, self.opened + LAST_RESORT_SECONDS) if is_last_resort else self.open_until
        return now >= until and not self.is_probed(now)

    def is_probed(self, now: float) -> bool:
        """Whether a probe is running that others wait for."""
        return self.probe != ORDINARY and now < self.probe_until

    def start(self, now: float) -> int:
        """Notes that a call passes; returns the number of its probe, `ORDINARY` if it is none."""
        if not self.is_open:
            return ORDINARY
        self.probe_count += 1
        self.probe, self.probe_until = self.probe_count, now + PROBE_SECONDS
        return self.probe

    def succeed(self, now: float, probe: int = ORDINARY) -> None:
        """Notes an answer; that of a probe closes the breaker."""
        if self.is_open:
            if probe == ORDINARY:
                return
            self.is_open, self.times_open, self.probe = False, 0, ORDINARY
            self.outcomes.clear()
        self.in_a_row = 0
        self.outcomes.append((now, True))

    def fail(self, now: float, probe: int = ORDINARY) -> None:
        """Notes a transient failure; may open the breaker, and opens it again if its probe failed."""
        if self.is_open:
            if probe != ORDINARY and probe == self.probe:
                self._open(now)
            return
        self.in_a_row += 1
        self.outcomes.append((now, False))
        if self.in_a_row >= FAILURES_IN_A_ROW or self._has_half_failed(now):
            self._open(now)

    def abandon(self, probe: int = ORDINARY) -> None:
        """Notes that a call ended without telling anything; if it was the probe, another may be made."""
        if probe == self.probe:
            self.probe = ORDINARY

    def _has_half_failed(self, now: float) -> bool:
        while self.outcomes and self.outcomes[0][0] < now - WINDOW_SECONDS:
            self.outcomes.popleft()
        failures = sum(not succeeded for _, succeeded in self.outcomes)
        return len(self.outcomes) >= WINDOW_MINIMUM and failures >= len(self.outcomes) * WINDOW_SHARE

    def _open(self, now: float) -> None:
        self.is_open = True
        self.times_open += 1
        self.opened = now
        self.open_until = now + min(OPEN_SECONDS * self.times_open, MAX_OPEN_SECONDS)
        self.probe = ORDINARY
        self.in_a_row = 0
