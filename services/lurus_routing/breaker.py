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
# For so long a call that has told nothing yet keeps others from a provider on trial: by then the connection
# has been made or refused, and one that thinks for long keeps nobody waiting.
TRIAL_SECONDS = 6.0
# The number of a call of which nothing hangs.
ORDINARY = 0


class State(StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Closed → open (5 in a row, or half of at least 20 in 30 s) → half-open with one probe.

    Each call gets a number from `start` and reports with it: while the breaker
    is not closed, calls from before it opened tell nothing.

    A closed breaker that has seen no answer yet, or a failure since the last
    one, is on trial: only so many calls may wait for an answer as there are
    failures left until it opens. So a dead provider is asked five times, not
    once by each of the two hundred calls that come at the same moment.
    """

    in_a_row: int = 0
    has_answered: bool = False
    opened: float = 0.0
    open_until: float = 0.0
    times_open: int = 0
    is_open: bool = False
    # The probe that is running, and until when it keeps others waiting.
    probe: int = ORDINARY
    probe_until: float = 0.0
    # Calls numbered so far, and when it opened last.
    call_count: int = 0
    count_at_opening: int = 0
    was_woken: bool = False
    # Numbered calls that have told nothing yet, and until when they count.
    waiting: dict[int, float] = field(default_factory=dict)
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

    def has_room(self, now: float) -> bool:
        """Whether one more call may wait for an answer; always, unless it is on trial or open."""
        if not self.is_open and self.has_answered and not self.in_a_row:
            return True
        waiting = sum(now < until for until in self.waiting.values())
        return waiting < FAILURES_IN_A_ROW - self.in_a_row

    def is_probed(self, now: float) -> bool:
        """Whether a probe is running that others wait for."""
        return self.probe != ORDINARY and now < self.probe_until

    def start(self, now: float, is_reserve: bool = False) -> int:
        """Notes that a call passes; returns its number, `ORDINARY` if nothing hangs on it.

        Args:
            now: monotonic seconds.
            is_reserve: the breaker would not admit it, but its provider is kept in reserve.
        """
        if not self.is_open and self.has_answered and not self.in_a_row:
            return ORDINARY
        self.call_count += 1
        number = self.call_count
        if self.is_open and not is_reserve:
            self.probe, self.probe_until = number, now + PROBE_SECONDS
        elif len(self.waiting) < FAILURES_IN_A_ROW or self._forget_late(now):
            self.waiting[number] = now + TRIAL_SECONDS
        return number

    def succeed(self, now: float, number: int = ORDINARY) -> None:
        """Notes an answer; that of a call from after it opened closes the breaker."""
        self.waiting.pop(number, None)
        if self.is_open:
            if number <= self.count_at_opening:
                return
            self.is_open, self.times_open, self.probe, self.was_woken = False, 0, ORDINARY, False
            self.outcomes.clear()
        self.has_answered = True
        self.in_a_row = 0
        self.waiting.clear()
        self.outcomes.append((now, True))

    def fail(self, now: float, number: int = ORDINARY) -> None:
        """Notes a transient failure; may open the breaker, and opens it again if its probe failed."""
        self.waiting.pop(number, None)
        if self.is_open:
            if number != ORDINARY and number == self.probe:
                self._open(now)
            return
        self.in_a_row += 1
        self.outcomes.append((now, False))
        if self.in_a_row >= FAILURES_IN_A_ROW or self._has_half_failed(now):
            self._open(now)

    def abandon(self, number: int = ORDINARY) -> None:
        """Notes that a call ended without telling anything; if it was the probe, another may be made."""
        self.waiting.pop(number, None)
        if number == self.probe:
            self.probe = ORDINARY

    def wake(self, now: float) -> bool:
        """Lets the next probe pass at once, since the provider answers otherwise; returns whether it did.

        Once after it opened: if that probe fails, the provider answers lists
        and not calls, and the breaker keeps its time.
        """
        if not self.is_open or self.was_woken or now >= self.open_until:
            return False
        self.open_until, self.was_woken = now, True
        return True

    def _forget_late(self, now: float) -> bool:
        """Makes room for a call by forgetting those that waited too long; returns whether there is some."""
        self.waiting = {number: until for number, until in self.waiting.items() if now < until}
        return len(self.waiting) < FAILURES_IN_A_ROW

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
        self.count_at_opening = self.call_count
        self.waiting.clear()
