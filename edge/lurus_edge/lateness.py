"""How many requests may be live while the event loop is late: a machine without a clock of its own.

The loop takes all that waits in each of its turns, so how late it is is also how
long a request waits before anybody has seen it. A loop may be late for reasons of
its neighbours, too, who have the processor: then it has little to do itself, and
sleeps between two turns. One with more to do than it can never sleeps.
"""

import math
from typing import Final

# A burst, a collection or a stop of the machine is over before so many looks more and so long a time.
FIRST_LOOKS: Final = 3
FIRST_SECONDS: Final = 0.5
# Of a limit that there is already: it has shown that there is too much to do.
NEXT_LOOKS: Final = 2
NEXT_SECONDS: Final = 0.1
# What a limit leaves of the live requests: those that go on must become fewer for the loop to be on time.
KEPT_PART: Final = 0.95
# By which part a limit grows in each second in which the loop is on time.
GROWTH: Final = 0.5
# A limit of which less than half is used for so long is none.
UNUSED_SECONDS: Final = 1.0
# A loop that sleeps for more than this part of the time has time to spare.
IDLE_PART: Final = 0.1
# A longer pause between two looks says nothing of what has been in it.
MAX_STEP_SECONDS: Final = 0.2


class LatenessLimit:
    """Decides from looks at the event loop. Attribute `value`: so many may be live; infinite for no limit.

    Those that are live go on in any case. What is refused while there are more
    than `value` keeps the wait of all others near the target.

    Args:
        target_seconds: of lateness; beyond it is too much. 0 for no limit at all.
        floor: so many may always be live, however late the loop is.
    """

    def __init__(self, target_seconds: float, floor: int) -> None:
        self.value = math.inf
        self.floor = floor
        self.is_on = target_seconds > 0
        self._target_seconds = target_seconds
        self._late_looks = 0
        self._late_since = 0.0
        self._idle_then = 0.0
        self._used_at = -math.inf
        self._looked_at = -math.inf

    def look(self, now: float, late_seconds: float, idle_seconds: float, live_count: int) -> None:
        """Takes note of one look.

        Args:
            now: seconds of a clock that never goes back.
            late_seconds: by which the loop was late.
            idle_seconds: for which the loop has slept since some moment, always the same.
            live_count: requests that are being answered.
        """
        if not self.is_on:
            return
        step_seconds = min(now - self._looked_at, MAX_STEP_SECONDS)
        self._looked_at = now
        if late_seconds > self._target_seconds:
            self._be_late(now, idle_seconds, live_count)
            return
        self._late_looks = 0
        if self.value < math.inf:
            self._be_on_time(now, late_seconds, live_count, step_seconds)

    def _be_late(self, now: float, idle_seconds: float, live_count: int) -> None:
        if not self._late_looks:
            self._late_since, self._idle_then = now, idle_seconds
        self._late_looks += 1
        is_first = self.value == math.inf
        looks, seconds = (FIRST_LOOKS, FIRST_SECONDS) if is_first else (NEXT_LOOKS, NEXT_SECONDS)
        past_seconds = now - self._late_since
        if self._late_looks <= looks or past_seconds < seconds:
            return
        self._late_looks = 0
        if live_count > self.floor and idle_seconds - self._idle_then < IDLE_PART * past_seconds:
            self._used_at = now
            self.value = max(self.floor, min(self.value, live_count * KEPT_PART))

    def _be_on_time(self, now: float, late_seconds: float, live_count: int, step_seconds: float) -> None:
        """Widens the limit while there is time to spare, and lifts one that is of no use."""
        if live_count > self.value / 2:
            self._used_at = now
        if now - self._used_at >= UNUSED_SECONDS:
            self.value = math.inf
        elif late_seconds <= self._target_seconds / 2:
            self.value *= 1 + GROWTH * step_seconds
