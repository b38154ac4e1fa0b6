"""Streams of accounts' budgets: as they are, then each time they have changed.

PostgreSQL names the account that has changed by NOTIFY. Each stream then reads
its account anew, so a notification too many or too few loses nothing; a slow
poll sees what only time changes: a day that begins, a lease that expires.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing.budget_store import BudgetStore
from lurus_common.errors import Overloaded

# As the triggers of the migrations name it.
CHANNEL = "lurus_billing_budgets"
POLL_SECONDS = 5.0
# Under load an account changes with every batch; a stream tells of it this often at most.
PAUSE_SECONDS = 0.1


class BudgetWatch:
    """Wakes the streams of one process, each by its account.

    Args:
        budgets: where they look.
    """

    def __init__(self, budgets: BudgetStore) -> None:
        self._budgets = budgets
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._is_closing = False

    def heard(self, account_id: str | None) -> None:
        """Takes a notification that an account has changed; None if any may have."""
        accounts = list(self._watchers) if account_id is None else [account_id]
        for name in accounts:
            for changed in self._watchers.get(name, ()):
                changed.set()

    def close(self) -> None:
        """Ends all streams."""
        self._is_closing = True
        self.heard(None)

    async def responses(self, account_id: str) -> AsyncIterator[pb.WatchBudgetResponse]:
        """Yields the budget of an account, then again each time it differs from the last.

        Raises:
            NotFound: if there is no such account.
            Overloaded: when the service stops.
            DependencyUnavailable: if PostgreSQL is away.
        """
        shown: pb.WatchBudgetResponse | None = None
        with self._watching(account_id) as changed:
            while not self._is_closing:
                # Before the read, so that a change during it ends the wait.
                changed.clear()
                found = await self._budgets.both(account_id)
                if found != shown:
                    yield found
                    shown = found
                    await asyncio.sleep(PAUSE_SECONDS)
                await _wait(changed)
        raise Overloaded("the service is stopping; watch another one")

    @contextmanager
    def _watching(self, account_id: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._watchers[account_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[account_id].discard(changed)
            if not self._watchers[account_id]:
                del self._watchers[account_id]


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(POLL_SECONDS):
            await changed.wait()
    except TimeoutError:
        pass
