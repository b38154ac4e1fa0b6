"""What the service tidies up beside its calls: reservations whose time ran out.

And it counts what waits for a person.
"""

import asyncio
import logging

from lurus_billing import metrics
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.reservation_store import EXPIRED_AT_ONCE, ReservationStore
from lurus_common.errors import LurusError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0


async def sweep_for_ever(reservations: ReservationStore, letters: DeadLetterStore) -> None:
    """Sweeps until cancelled.

    No money depends on it: an expired reservation holds nothing back, swept or not.
    """
    while True:
        try:
            await sweep(reservations, letters)
        except LurusError as error:
            log.warning("expired reservations are swept later: %s", error.message)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(reservations: ReservationStore, letters: DeadLetterStore) -> int:
    """Marks all reservations whose time has run out, and counts open letters; returns how many it marked."""
    total = 0
    while count := await reservations.expire():
        total += count
        metrics.RESERVATIONS_EXPIRED.inc(count)
        if count < EXPIRED_AT_ONCE:
            break
    for cause, count in (await letters.open_counts()).items():
        metrics.DEAD_LETTERS.labels(cause).set(count)
    return total
