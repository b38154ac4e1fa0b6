"""Asks resting providers for their list of models, which uses no tokens, whether they answer again.

An answer lets a breaker's one probe pass at once, and lifts the bench of a
credential that was refused as unknown (401). It closes no breaker: who gives a list need
not answer calls. It lifts no other bench: a list is given without money, without
rights and amid a throttle as well.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import aiohttp
from aiohttp import ClientSession, ClientTimeout

from lurus_routing import metrics
from lurus_routing.catalog import Catalog, ProbeTarget
from lurus_routing.health import CredentialKey, Health, RouteKey
from lurus_routing.upstream import credential_header

MAX_PROBES_AT_ONCE = 8
CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 8.0
ANTHROPIC_VERSION = "2023-06-01"


class Prober:
    """Looks after the resting routes of one worker.

    Args:
        session: for calls to providers.
        health: of the worker.
        catalog: gives the catalog of now, None if there is none yet.
        seconds: how often, at most; half of it at least.
    """

    def __init__(
        self, session: ClientSession, health: Health, catalog: Callable[[], Catalog | None], seconds: float
    ) -> None:
        self._session = session
        self._health = health
        self._catalog = catalog
        self._seconds = seconds

    async def run(self) -> None:
        """Probes until cancelled. Jittered, so that workers do not ask together."""
        while True:
            await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))  # noqa: S311  # no secret hangs on it
            await self.probe_all()

    async def probe_all(self) -> None:
        """Asks each credential that has rested for a while, once."""
        catalog = self._catalog()
        if catalog is None:
            return
        due: dict[CredentialKey, list[RouteKey]] = {}
        for key in self._health.resting(time.monotonic(), self._seconds / 2):
            due.setdefault(key[:2], []).append(key)
        targets = [(keys, target) for name, keys in due.items() if (target := catalog.probe_target(*name))]
        random.shuffle(targets)  # those left out now are asked another time
        async with asyncio.TaskGroup() as group:
            for keys, target in targets[:MAX_PROBES_AT_ONCE]:
                group.create_task(self._probe(keys, target))

    async def _probe(self, keys: Iterable[RouteKey], target: ProbeTarget) -> None:
        answers = False
        with suppress(aiohttp.ClientError, OSError, ValueError):
            answers = await self._ask(target)
        metrics.PROBES.labels(target.provider_id, "answered" if answers else "failed").inc()
        if answers:
            now = time.monotonic()
            for key in keys:
                self._health.wake(key, now)

    async def _ask(self, target: ProbeTarget) -> bool:
        async with self._session.get(
            f"{target.base_url}/v1/models",
            headers=[
                credential_header(target.dialect, target.secret),
                ("anthropic-version", ANTHROPIC_VERSION),
                ("accept", "application/json"),
            ],
            timeout=ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
            allow_redirects=False,
        ) as response:
            return response.status == 200
