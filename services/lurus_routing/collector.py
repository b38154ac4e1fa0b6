"""Sees to it that background answers are charged also if nobody comes back for them.

The worker that began one asks its holder from time to time until the answer is
finished. What is still owed when the worker ends is charged by whoever asks for
the answer later, in any worker.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from aiohttp import ClientSession
from prometheus_client import Gauge

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import LurusError
from lurus_dialects.body import BodyUsage, body_usage
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.headers import to_upstream
from lurus_routing import debts
from lurus_routing.affinity import ANSWER, Holders
from lurus_routing.alarm import Alarm
from lurus_routing.catalog import Catalog
from lurus_routing.held import Held
from lurus_routing.settlement import Settlement
from lurus_routing.upstream import MAX_BODY_BYTES, read_body, send

log = logging.getLogger(__name__)

MAX_WATCHED = 10_000
ASKED_AT_ONCE = 8
ASK_SECONDS = 30.0
FIRST_WAIT_SECONDS = 2.0
MAX_WAIT_SECONDS = 60.0
# After this the answer is taken for lost and charged as it was estimated.
GIVE_UP_SECONDS = 86_400.0
_GONE = frozenset({404, 410})

OWED = Gauge("lurus_owed_answers", "Background answers that this worker will charge when they are finished.")


@dataclass(slots=True)
class _Watched:
    held: Held
    since: float
    due: float
    wait_seconds: float


class Collector:
    """Collects what is owed for the background answers of one worker."""

    def __init__(
        self,
        session: ClientSession,
        settlement: Settlement,
        holders: Holders,
        catalog: Callable[[], Catalog | None],
    ) -> None:
        self._session = session
        self._settlement = settlement
        self._holders = holders
        self._catalog = catalog
        self._watched: OrderedDict[str, _Watched] = OrderedDict()
        self._has_work = asyncio.Event()

    def watch(self, name: str, held: Held) -> None:
        """Takes care of an answer from now on."""
        now = time.monotonic()
        self._watched[name] = _Watched(held, now, now + FIRST_WAIT_SECONDS, FIRST_WAIT_SECONDS)
        if len(self._watched) > MAX_WATCHED:
            name, oldest = self._watched.popitem(last=False)
            self._estimate(name, oldest.held)
        OWED.set(len(self._watched))
        self._has_work.set()

    def forget(self, name: str, held: Held) -> None:
        """Nothing is owed for an answer any more."""
        self._watched.pop(name, None)
        OWED.set(len(self._watched))
        if held.debt is not None:
            paid = msgspec.structs.replace(held, debt=None)
            self._holders.keep(held.debt.account_id, ANSWER, name, paid)

    async def run(self) -> None:
        """Asks for what is due, until cancelled."""
        while True:
            if not self._watched:
                self._has_work.clear()
                await self._has_work.wait()
            now = time.monotonic()
            due = [name for name, watched in self._watched.items() if watched.due <= now]
            async with asyncio.TaskGroup() as group:
                for name in due[:ASKED_AT_ONCE]:
                    group.create_task(self._visit(name, self._watched[name]))
            if len(due) <= ASKED_AT_ONCE:
                await asyncio.sleep(FIRST_WAIT_SECONDS / 4)

    async def _visit(self, name: str, watched: _Watched) -> None:
        try:
            if await self.collect(name, watched.held):
                return
        except Exception:
            # One that cannot be read must not keep the others from being charged.
            log.exception("asking for a background answer of %s failed", watched.held.provider_id)
        now = time.monotonic()
        if now - watched.since > GIVE_UP_SECONDS:
            self._estimate(name, watched.held)
        watched.wait_seconds = min(watched.wait_seconds * 2, MAX_WAIT_SECONDS)
        watched.due = now + watched.wait_seconds

    async def collect_finally(self, name: str, held: Held) -> None:
        """Charges an answer that is about to be deleted: as it stands, else as it was estimated."""
        if not await self.collect(name, held):
            self._estimate(name, held)

    async def collect(self, name: str, held: Held) -> bool:
        """Asks the holder once; returns whether nothing is owed any more."""
        debt, catalog = held.debt, self._catalog()
        if debt is None:
            return True
        if catalog is None:
            return False
        candidate = catalog.holder(*held.credential, usage_pb2.DIALECT_OPENAI_RESPONSES, held.upstream_model)
        if candidate is None:
            return False
        alarm = Alarm()
        until = time.monotonic() + ASK_SECONDS
        dialect = Dialect.OPENAI_RESPONSES
        try:
            target = f"{debts.PATH}/{name}"
            headers = to_upstream(dialect, [("accept", "application/json"), ("user-agent", "lurus-switch")])
            response = await send(
                self._session, candidate, dialect, target, headers, b"", until, alarm, "GET"
            )
            try:
                body = await read_body(response, ASK_SECONDS, until, MAX_BODY_BYTES, alarm)
                status = response.status
            finally:
                response.release() if response.content.at_eof() else response.close()
        except LurusError:
            return False
        finally:
            alarm.close()
        if status in _GONE:
            self._estimate(name, held)
            return True
        answer = body_usage(dialect, body, Kind.STORED)
        if status != 200 or not debts.is_finished(answer):
            return False
        self._charge(name, held, answer, catalog)
        return True

    def _charge(self, name: str, held: Held, answer: BodyUsage, catalog: Catalog) -> None:
        if held.debt is not None and answer.final_usage_seen:
            self._settlement.charge(debts.charged(held, held.debt, answer, catalog.prices))
        self.forget(name, held)

    def _estimate(self, name: str, held: Held) -> None:
        catalog = self._catalog()
        if held.debt is not None and catalog is not None:
            log.warning("a background answer of %s is charged as estimated", held.provider_id)
            self._settlement.charge(debts.estimated(held, held.debt, catalog.prices))
        self.forget(name, held)
