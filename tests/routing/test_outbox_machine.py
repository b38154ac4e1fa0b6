"""The outbox and its relay on a bus that does what it likes, with crashes, as hypothesis chooses."""

import asyncio
import sqlite3
import tempfile
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from nats.errors import MaxPayloadError
from nats.errors import TimeoutError as BusTimeout
from nats.js.api import PubAck
from nats.js.errors import APIError, NoStreamResponseError

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.ids import new_id
from lurus_routing import outbox as outbox_module
from lurus_routing import outbox_relay
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_relay import OutboxRelay

WAIT_SECONDS = 10.0
BATCH = 4
# What a publish may come to. `lost`: it was stored and the answer is lost.
OUTCOMES = ("ack", "duplicate", "timeout", "lost", "error", "no_stream", "reconnect")
SMALL = {
    "BATCH_EVENTS": BATCH,
    "BACKLOG_EVENTS": 2 * BATCH,
    "SHY_EVENTS": 2,
    "LINGER_SECONDS": 0.0,
    "FIRST_RETRY_SECONDS": 0.002,
    "MAX_RETRY_SECONDS": 0.01,
}
ACTIONS = (
    ("finish",) * 4 + ("burst",) * 3 + ("begin",) * 2 + ("end", "outcomes", "outcomes", "away", "poison")
)
CRASHES = ("crash", "die_unmarked", "die_marked", "stop")


class Crash(Exception):
    """The process ends here."""


class Bus:
    """Stands for the client, its JetStream and the server, of which only the outcome of a publish matters."""

    is_connected = True

    def __init__(self) -> None:
        self.acked: set[str] = set()
        self.stored: set[str] = set()
        self.poison: set[str] = set()
        self.outcomes: deque[str] = deque()
        self.is_away = False

    def jetstream(self) -> "Bus":
        return self

    async def close(self) -> None:
        """Ends nothing."""

    async def publish(self, _subject: str, payload: bytes, *, headers: dict[str, str], **_: Any) -> PubAck:
        name = headers["Nats-Msg-Id"]
        assert UsageEvent.FromString(payload).request_id == name
        outcome = self.outcomes.popleft() if self.outcomes else "ack"
        await asyncio.sleep(0)
        if name in self.poison:
            raise MaxPayloadError
        if self.is_away or outcome == "timeout":
            raise BusTimeout
        if outcome == "reconnect":
            raise asyncio.CancelledError
        if outcome == "no_stream":
            raise NoStreamResponseError
        if outcome == "error":
            raise APIError(code=503, description="full")
        is_duplicate = name in self.stored or outcome == "duplicate"
        self.stored.add(name)
        if outcome == "lost":
            raise BusTimeout
        self.acked.add(name)
        return PubAck("USAGE", len(self.stored), duplicate=is_duplicate)


class MortalOutbox(Outbox):
    """Checks that what is marked was acknowledged, and dies before or after the disk has it."""

    bus: Bus
    death = ""

    async def mark_sent(self, request_ids: Sequence[str]) -> None:
        assert set(request_ids) <= self.bus.acked, "marked before the bus had it"
        if self.death == "die_unmarked":
            raise Crash
        await super().mark_sent(request_ids)
        if self.death == "die_marked":
            raise Crash


class OutboxMachine(RuleBasedStateMachine):
    """One worker that ends and starts again, on one directory and one bus."""

    runner: asyncio.Runner
    bus: Bus

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.bus = Bus()
        type(self).bus = self.bus
        self.finals: set[str] = set()
        self.live: list[UsageEvent] = []
        self.run(self.start())

    def run(self, work: Any) -> None:
        self.runner.run(work)

    async def start(self) -> None:
        MortalOutbox.bus = self.bus
        self.outbox = MortalOutbox(Path(self.directory.name), "w", 1000)
        await self.outbox.__aenter__()
        self.relay = OutboxRelay(self.outbox, "", "w")
        self.task = asyncio.create_task(self.relay.run())

    async def end(self) -> None:
        """Whatever is begun is given up, as by a kill: only the disk goes on."""
        self.task.cancel()
        [error] = await asyncio.gather(self.task, return_exceptions=True)
        assert isinstance(error, Crash | asyncio.CancelledError), error
        await self.outbox.__aexit__()
        self.finals |= {event.request_id for event in self.live}  # become estimated ones
        self.live.clear()

    @rule(
        action=st.sampled_from(ACTIONS),
        count=st.integers(1, 3 * BATCH),
        outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=3 * BATCH),
    )
    def act(self, action: str, count: int, outcomes: list[str]) -> None:
        self.run(self._act(action, count, outcomes))

    async def _act(self, action: str, count: int, outcomes: list[str]) -> None:
        if action == "finish":
            await self._record(1)
        elif action == "burst":
            await self._record(count)
        elif action == "poison":
            # More than a batch of them, sometimes, and all before what comes later.
            await self._record(count, is_poison=True)
        elif action == "begin":
            self.live.append(make_event())
            await self.outbox.intend(self.live[-1])
        elif action == "end" and self.live:
            event = self.live.pop()
            self.finals.add(event.request_id)
            await self.outbox.finish(event)
        elif action == "outcomes":
            self.bus.outcomes.extend(outcomes)
        elif action == "away":
            self.bus.is_away = not self.bus.is_away
        await asyncio.sleep(0.002 if count % 2 else 0)

    async def _record(self, count: int, is_poison: bool = False) -> None:
        for _ in range(count):
            event = make_event()
            self.finals.add(event.request_id)
            if is_poison:
                self.bus.poison.add(event.request_id)
            await self.outbox.record(event)

    @rule(kind=st.sampled_from(CRASHES), count=st.integers(1, 3 * BATCH))
    def crash(self, kind: str, count: int) -> None:
        self.run(self._crash(kind, count))

    async def _crash(self, kind: str, count: int) -> None:
        self.outbox.death = kind
        await self._record(count)
        if kind.startswith("die") and not self.bus.is_away:
            await asyncio.wait([self.task], timeout=0.05)
        elif kind == "stop":
            await self.relay.flush(0.01)
        await self.end()
        self.check()
        await self.start()

    def check(self) -> None:
        """Every row that anybody was promised is there, and is marked only if the bus has it."""
        with closing(sqlite3.connect(Path(self.directory.name) / "outbox-w.db")) as database:
            rows = dict(database.execute("SELECT request_id, state FROM usage").fetchall())
        assert self.finals <= rows.keys()
        assert {name for name, state in rows.items() if state == 2} <= self.bus.acked

    def teardown(self) -> None:
        try:
            self.run(self._until_sent())
            self.check()
            assert self.finals == self.bus.stored
        finally:
            self.run(self.end())
            self.directory.cleanup()

    async def _until_sent(self) -> None:
        """Nothing waits for ever: with a bus that is well all is sent, first what is fit to be."""
        self.bus.is_away = False
        self.bus.outcomes.clear()
        while self.live:
            event = self.live.pop()
            self.finals.add(event.request_id)
            await self.outbox.finish(event)
        for _ in range(2):
            async with asyncio.timeout(WAIT_SECONDS):
                while self.outbox.unsent_count > len(self.bus.poison):
                    await asyncio.sleep(0.001)
            self.bus.poison.clear()
        async with asyncio.timeout(WAIT_SECONDS):
            while self.outbox.unsent_count:
                await asyncio.sleep(0.001)


def make_event() -> UsageEvent:
    event = UsageEvent(request_id=new_id("req"), account_id="acct_machine", model="m")
    event.event_time.GetCurrentTime()
    return event


def test_nothing_is_lost_or_marked_too_early_whatever_the_bus_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(outbox_relay, name, value)
    monkeypatch.setattr(outbox_module, "MAX_READY_ROWS", 4 * BATCH)

    async def connect(*_: object) -> Bus:
        return OutboxMachine.bus

    async def nothing(_: object) -> None:
        """Finds a stream."""

    monkeypatch.setattr(bus, "connect", connect)
    monkeypatch.setattr(bus, "ensure_stream", nothing)
    with asyncio.Runner() as OutboxMachine.runner:
        run_state_machine_as_test(
            OutboxMachine,
            settings=settings(
                max_examples=15,
                stateful_step_count=15,
                deadline=None,
                # What fails by waiting would take minutes to be made smaller.
                phases=(Phase.reuse, Phase.generate),
                suppress_health_check=list(HealthCheck),
            ),
        )
