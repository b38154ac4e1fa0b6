"""When the only candidate is asked once more, and after how long. Pure: chance comes in."""

import math
from collections.abc import Callable

from lurus_common.errors import UpstreamTimeout
from lurus_dialects.upstream_errors import FailureClass
from lurus_routing.outcome import Failure
from lurus_routing.upstream import ConnectionLost

# Retries at once: a share of the calls that run, so that retries never feed an overload.
BUDGET_SHARE = 0.2
MIN_BUDGET = 3
# Full jitter: anything up to this, so that those who failed together do not come back together.
MAX_JITTER_SECONDS = 0.25
# A provider that wants more time than this is not waited for: the client is told.
MAX_WAIT_SECONDS = 2.0
# Clients obey a wait of up to a minute, and make up their own in place of a longer one.
MAX_TOLD_SECONDS = 60.0
_TRANSIENT_STATUSES = frozenset({408, 409})


def budget(live_count: int) -> int:
    """Returns how many retries may run while so many calls run."""
    return max(MIN_BUDGET, int(live_count * BUDGET_SHARE))


def retry_wait(failure: Failure, http_status: int, chance: Callable[[], float]) -> float | None:
    """Returns the seconds after which a failed call may be made again at the same candidate, or None.

    A provider that fell silent or broke off in its answer may have done the
    work, and been paid for it: it is not asked again.

    Args:
        failure: how the call failed.
        http_status: with which it was answered, 0 if it was not.
        chance: gives numbers from 0 to 1.
    """
    if isinstance(failure.error, ConnectionLost):
        return 0.0  # A pooled connection that the provider had closed: it never saw the request.
    jitter = chance() * MAX_JITTER_SECONDS
    if failure.kind is FailureClass.THROTTLE:
        wait = failure.retry_after_seconds
        return wait + jitter if math.isfinite(wait) and wait <= MAX_WAIT_SECONDS else None
    is_transient = http_status >= 500 or http_status in _TRANSIENT_STATUSES
    was_refused = not http_status and not isinstance(failure.error, UpstreamTimeout)
    if failure.kind is FailureClass.TRANSIENT and (is_transient or was_refused):
        return jitter
    return None


def capped(failure: Failure) -> list[tuple[str, str]]:
    """Returns a provider's headers with a wait that clients obey."""
    if not failure.states_wait or failure.retry_after_seconds <= MAX_TOLD_SECONDS:
        return list(failure.headers)
    others = [pair for pair in failure.headers if pair[0] not in ("retry-after", "retry-after-ms")]
    return [*others, ("retry-after", f"{MAX_TOLD_SECONDS:.0f}")]
