"""Tells Lago of all usage: a consumer of its own, which nobody else waits for.

Lago takes an event once: its key is our request id, with the time of the event, which is the same however
often it is sent. Kept in PostgreSQL, Lago refuses a repeat, and with it the whole batch it is in; kept in
ClickHouse, it takes a repeat of the same id and time for the same event.
Source: getlago.com/docs/api-reference/events, batch of usage events.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from nats.aio.client import Client
from prometheus_client import Counter

from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_billing.ledger import is_idle_event
from lurus_common import bus
from lurus_common.consumer import ParkedEvent, UsageConsumer
from lurus_common.errors import DependencyUnavailable
from lurus_common.status import Dependency

log = logging.getLogger(__name__)

DURABLE = "lago"
# The most that Lago takes in one call.
BATCH_EVENTS = 100
LINGER_SECONDS = 0.5
CALL_SECONDS = 20.0
# What Lago asks to wait is waited for, up to this.
MAX_WAIT_SECONDS = 60.0
MAX_ANSWER_BYTES = 1024 * 1024
NANO_USD_PER_CENT = 10_000_000
NANOSECONDS = 1_000_000_000
_KNOWN = "value_already_exist"

SENT = Counter("lurus_lago_sent_events", "Usage events that Lago has, repeats included.")
REPEATED = Counter("lurus_lago_repeated_events", "Usage events that Lago had already.")

Park = Callable[[ParkedEvent], Awaitable[None]]


class LagoRefused(Exception):
    """Lago will not take this event as it is; the message says why."""


class LagoClient:
    """Sends events, each once as far as Lago is concerned.

    Args:
        session: of this process.
        url: of Lago, without `/api/v1`.
        api_key: of the organization.
        metric_code: of the billable metric.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str, metric_code: str) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/api/v1/events/batch"
        self._headers = {"authorization": f"Bearer {api_key}"}
        self._metric_code = metric_code
        self._resume = 0.0
        # Why Lago takes nothing; empty if it does, or nothing was sent yet.
        self.problem = ""

    async def send(self, events: Sequence[UsageEvent]) -> None:
        """Returns when Lago has all events; those of refused requests that used nothing are left out.

        Raises:
            LagoRefused: if it refuses one. Others of the batch may have been taken.
            DependencyUnavailable: if it is not known whether it has them.
        """
        found = [event_of(event, self._metric_code) for event in events if not is_idle_event(event)]
        for begin in range(0, len(found), BATCH_EVENTS):
            await self._send(found[begin : begin + BATCH_EVENTS])

    async def _send(self, events: Sequence[Mapping[str, Any]]) -> None:
        status, answer = await self._call(events)
        if status < HTTPStatus.MULTIPLE_CHOICES:
            SENT.inc(len(events))
        elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise self._away("it refuses LURUS_LAGO_API_KEY")
        elif status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise self._away(f"it answers with HTTP status {status}")
        elif len(events) > 1:
            # One that is known or wrong has kept out all of them.
            for event in events:
                await self._send([event])
        elif _KNOWN in answer:
            SENT.inc()
            REPEATED.inc()
        else:
            raise LagoRefused(f"HTTP status {status}: {answer[:500]}")
        self.problem = ""

    async def _call(self, events: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
        await asyncio.sleep(max(0.0, self._resume - time.monotonic()))
        try:
            async with asyncio.timeout(CALL_SECONDS):
                async with self._session.post(
                    self._url, json={"events": events}, headers=self._headers, allow_redirects=False
                ) as response:
                    answer = await response.content.read(MAX_ANSWER_BYTES)
                    self._resume = time.monotonic() + _wait_seconds(response.headers.get("retry-after", ""))
                    return response.status, answer.decode(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(type(error).__name__) from error

    def _away(self, problem: str) -> DependencyUnavailable:
        self.problem = problem
        return DependencyUnavailable(f"Lago did not take usage: {problem}", dependency="lago")


class LagoExport:
    """Connects when the bus is there, and tells Lago what comes.

    Args:
        nats_url: of the bus.
        client: of Lago.
        park: keeps what Lago refuses for a person.
        ack_wait_seconds: after so long the bus delivers again what is not acknowledged.
    """

    def __init__(self, nats_url: str, client: LagoClient, park: Park, ack_wait_seconds: float) -> None:
        self._nats_url = nats_url
        self._lago = client
        self._park = park
        self._ack_wait_seconds = ack_wait_seconds
        self._client: Client | None = None
        self._consumer: UsageConsumer | None = None

    def describe(self, row: Dependency) -> None:
        """Brings up to date whether Lago takes what it is told, and how far it is behind."""
        if self._lago.problem:
            row.fail(self._lago.problem)
        else:
            bus.describe(row, self._client)
        if self._consumer is not None:
            self._consumer.describe(row)

    async def run(self) -> None:
        """Exports until `stop`; the batch at hand is sent and acknowledged first."""
        self._client = await bus.connect(self._nats_url, DURABLE)
        try:
            self._consumer = UsageConsumer(
                self._client.jetstream(),
                DURABLE,
                self._lago.send,
                self._park,
                (LagoRefused,),
                batch_events=BATCH_EVENTS,
                linger_seconds=LINGER_SECONDS,
                ack_wait_seconds=self._ack_wait_seconds,
            )
            await self._consumer.run()
        finally:
            await self._client.close()

    def stop(self) -> bool:
        """Lets `run` return; False if it is still looking for the bus and has to be cancelled."""
        if self._consumer is None:
            return False
        self._consumer.stop()
        return True


def event_of(event: UsageEvent, metric_code: str) -> Mapping[str, Any]:
    """Returns an event in Lago's shape; its values are strings, as Lago's own contract wants them."""
    time_ns = event.event_time.ToNanoseconds()
    tokens = {field.name: getattr(event.tokens, field.name) for field in Tokens.DESCRIPTOR.fields}
    return {
        "transaction_id": event.request_id,
        "external_subscription_id": event.account_id,
        "code": metric_code,
        "timestamp": f"{time_ns // NANOSECONDS}.{time_ns % NANOSECONDS // 1_000_000:03}",
        "precise_total_amount_cents": _cents(event.cost_nano_usd),
        "properties": {
            "key_id": event.key_id,
            "model": event.model,
            "provider_id": event.provider_id,
            "cost_nano_usd": str(event.cost_nano_usd),
            **{f"{name}_tokens": str(count) for name, count in tokens.items() if count},
        },
    }


def _cents(nano_usd: int) -> str:
    return f"{nano_usd // NANO_USD_PER_CENT}.{nano_usd % NANO_USD_PER_CENT:07}"


def _wait_seconds(retry_after: str) -> float:
    try:
        return min(max(0.0, float(retry_after)), MAX_WAIT_SECONDS)
    except ValueError:
        return 0.0
