"""Usage events on disk: what survives a kill, a full disk, a bus that is away."""

import asyncio
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import nats
import pytest

from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_common.errors import AccountingUnavailable
from lurus_common.ids import new_id
from lurus_common.settings import Settings, to_environment
from lurus_routing import outbox as outbox_module
from lurus_routing import outbox_file, outbox_relay
from lurus_routing import worker as worker_module
from lurus_routing.leases import KeptLease, KeptLeases
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_file import OutboxLocked
from lurus_switch.embedded import DataDir, EmbeddedBackends
from tests.support.scripted_upstream import plain, stream

from .rig import (
    ANTHROPIC,
    COST,
    PRICE,
    MakeRig,
    Rig,
    begin_events,
    events_of,
    in_process_only,
    plain_answer,
    read_outbox,
    refusal,
    stream_request,
    text_event,
    until,
)

pytestmark = pytest.mark.anyio


def make_event(**fields: Any) -> UsageEvent:
    given = {"request_id": new_id("req"), "account_id": "acct_outbox", "model": "m", **fields}
    event = UsageEvent(**given)
    event.event_time.GetCurrentTime()
    return event


@contextmanager
def no_room_on_disk() -> Iterator[None]:
    """Lets no file of this process grow."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


class TestOutbox:
    async def test_an_intent_becomes_one_final_event(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            event = make_event()
            await outbox.intend(event)
            assert [row[0] for row in await outbox.unsent(10)] == []
            event.cost_nano_usd = 5
            await outbox.finish(event)
            [(request_id, subject, payload)] = await outbox.unsent(10)
            assert (request_id, subject) == (event.request_id, "lurus.v1.usage.acct_outbox")
            assert UsageEvent.FromString(payload).cost_nano_usd == 5
            await outbox.mark_sent([request_id])
            assert await outbox.unsent(10) == []

    async def test_checkpoints_change_intents_only(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            one, two = make_event(), make_event()
            await asyncio.gather(outbox.intend(one), outbox.intend(two))
            await outbox.finish(one)
            for event in (one, two):
                event.cost_nano_usd = 7
            await outbox.checkpoint([(event.SerializeToString(), event.request_id) for event in (one, two)])
            costs = {
                key: event.cost_nano_usd for key, (_, event) in read_outbox(tmp_path / "outbox-w.db").items()
            }
            assert costs == {one.request_id: 0, two.request_id: 7}

    async def test_more_than_memory_holds_comes_from_disk_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "MAX_READY_ROWS", 10)
        async with Outbox(tmp_path, "w", 1000) as outbox:
            ids = []
            for size in (5, 30, 3):  # fits, overflows, comes while the disk is read
                events = [make_event() for _ in range(size)]
                ids += [event.request_id for event in events]
                await asyncio.gather(*(outbox.record(event) for event in events))
            seen: list[str] = []
            while rows := await outbox.unsent(8):
                seen += [row[0] for row in rows]
                late = make_event()
                if len(seen) < 40:
                    ids.append(late.request_id)
                    await asyncio.gather(outbox.record(late), outbox.mark_sent([row[0] for row in rows]))
                else:
                    await outbox.mark_sent([row[0] for row in rows])
            assert sorted(seen) == sorted(ids)
            assert outbox.unsent_count == 0

    async def test_who_stops_waiting_changes_nothing(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            event = make_event()
            await outbox.intend(event)
            future = outbox.finish(event)
            future.cancel()
            await until(lambda: outbox.unsent_count == 1)
            intending = asyncio.create_task(outbox.intend(make_event()))
            await asyncio.sleep(0)
            intending.cancel()
            await outbox.intend(make_event())

    async def test_a_bad_operation_fails_alone(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            event = make_event()
            outcomes = await asyncio.gather(
                outbox.intend(event),
                outbox.intend(event),  # the same id again
                outbox._ask(lambda _: [][0]),
                outbox.intend(make_event()),
                return_exceptions=True,
            )
            assert [type(outcome).__name__ for outcome in outcomes] == [
                "NoneType",
                "AccountingUnavailable",
                "IndexError",
                "NoneType",
            ]
            await outbox.finish(event)
            assert outbox.problem == ""

    async def test_an_intent_and_its_final_may_share_a_transaction(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            event, busy = make_event(), outbox._ask(lambda _: time.sleep(0.1))
            intent = asyncio.ensure_future(outbox.intend(event))
            await asyncio.sleep(0)
            intent.cancel()  # its client has left before it was written
            event.cost_nano_usd = 7
            await outbox.finish(event)
            await busy
            rows = await outbox.unsent(10)
            assert [UsageEvent.FromString(payload).cost_nano_usd for _, _, payload in rows] == [7]

    async def test_more_rows_than_a_statement_takes_are_all_put(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 1000) as outbox:
            busy = outbox._ask(lambda _: time.sleep(0.1))
            events = [make_event() for _ in range(150)]
            await asyncio.gather(busy, *(outbox.intend(event) for event in events))
            await asyncio.gather(*(outbox.finish(event) for event in events))
            assert {row[0] for row in await outbox.unsent(1000)} == {event.request_id for event in events}

    async def test_two_workers_cannot_share_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "LOCK_WAIT_SECONDS", 0.1)
        async with Outbox(tmp_path, "w", 10):
            with pytest.raises(OutboxLocked, match="worker id"):
                async with Outbox(tmp_path, "w", 10):
                    pass
            async with Outbox(tmp_path, "v", 10):
                pass

    async def test_old_sent_events_are_forgotten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Outbox(tmp_path, "w", 10) as outbox:
            events = [make_event(), make_event()]
            for event in events:
                await outbox.record(event)
            await outbox.mark_sent([events[0].request_id])
            await outbox.forget_old()
            assert len(read_outbox(tmp_path / "outbox-w.db")) == 2
            monkeypatch.setattr(outbox_module, "KEEP_SENT_SECONDS", -10)
            await outbox.forget_old()
            assert list(read_outbox(tmp_path / "outbox-w.db")) == [events[1].request_id]

    @pytest.mark.row("F42")
    async def test_a_full_disk_refuses_intents_and_keeps_finals(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "RETRY_SECONDS", 0.02)
        async with Outbox(tmp_path, "w", 10) as outbox:
            event = make_event()
            await outbox.intend(event)
            with no_room_on_disk():
                with pytest.raises(AccountingUnavailable):
                    await outbox.intend(make_event())
                assert "cannot be written" in outbox.problem
                future = outbox.finish(event)
                await asyncio.sleep(0.1)
                assert not future.done()
            await asyncio.wait_for(future, 5)
            assert outbox.problem == ""
            assert outbox.unsent_count == 1

    async def test_a_damaged_file_is_set_aside(self, tmp_path: Path) -> None:
        (tmp_path / "outbox-w.db").write_bytes(b"not a database" * 1000)
        (tmp_path / "outbox-gone.db").write_bytes(b"neither is this" * 1000)
        async with Outbox(tmp_path, "w", 10) as outbox:
            await outbox.record(make_event())
        names = {path.name.partition("-")[2].partition("-")[0] for path in tmp_path.glob("outbox-*.db*")}
        assert names == {"w.db", "w.db.broken", "gone.db"}

    @pytest.mark.parametrize("count", [1, 64, 300])
    async def test_any_number_shares_a_commit(self, tmp_path: Path, count: int) -> None:
        async with Outbox(tmp_path, "w", 1000) as outbox:
            events = [make_event() for _ in range(count)]
            await asyncio.gather(*(outbox.intend(event) for event in events))
            await asyncio.gather(*(outbox.finish(event) for event in events))
            assert len(await outbox.unsent(1000)) == count


class TestDeadWorkers:
    SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path
from lurus_routing.outbox import Outbox
from lurus.usage.v1.usage_pb2 import UsageEvent, Tokens
async def main():
    async with Outbox(Path(sys.argv[1]), sys.argv[2], 1000) as outbox:
        ids = [f"req_0000000000000000000000000{number}" for number in range(4)]
        events = [UsageEvent(request_id=name, account_id="a", worker_id=sys.argv[2]) for name in ids]
        await asyncio.gather(*(outbox.intend(event) for event in events))
        events[1].tokens.output = 7
        events[1].cost_nano_usd = 70
        await outbox.checkpoint([(events[1].SerializeToString(), events[1].request_id)])
        events[2].tokens.output = 9
        events[2].token_source = 1
        await outbox.finish(events[2])
        await outbox.finish(events[3])
        await outbox.mark_sent([events[3].request_id])
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""

    def die(self, directory: Path, worker_id: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", self.SCRIPT, str(directory), worker_id]
        assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL

    def check(self, events: dict[str, tuple[int, UsageEvent]], worker_id: str) -> None:
        first, second, third = (events[f"req_0000000000000000000000000{number}"] for number in range(3))
        assert first[0] == second[0] == third[0] == 1
        lost = usage_pb2.TERMINAL_WORKER_LOST
        assert (first[1].terminal, first[1].token_source, first[1].cost_nano_usd) == (lost, 0, 0)
        assert (second[1].terminal, second[1].token_source) == (lost, usage_pb2.TOKEN_SOURCE_ESTIMATED)
        assert (second[1].tokens.output, second[1].cost_nano_usd) == (7, 70)
        assert second[1].worker_id == worker_id
        assert (third[1].terminal, third[1].token_source, third[1].tokens.output) == (0, 1, 9)

    async def test_a_start_with_many_open_intents_reads_them_in_pages(self, tmp_path: Path) -> None:
        """As after a kill under load: no more than a page of them is in memory, and none is passed over."""
        size, count = 8_000, 4 * outbox_file.ADOPT_PAGE_ROWS + 1
        path = tmp_path / "outbox-w.db"
        payload = make_event(model="m" * size).SerializeToString()
        with closing(outbox_file.open_or_replace(path)) as database:
            rows = [(new_id("req"), "s", payload) for _ in range(count)]
            database.execute("BEGIN")
            database.executemany("INSERT INTO usage VALUES (?, 0, ?, ?, unixepoch())", rows)
            database.execute("COMMIT")
            tracemalloc.start()
            try:
                assert outbox_file.recover(database, "w") == count
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert outbox_file.count(database, outbox_file.FINAL) == count
        assert peak < count * size  # what was read, and what is written of it

    async def test_its_intents_become_estimated_events(self, tmp_path: Path) -> None:
        self.die(tmp_path, "w")
        async with Outbox(tmp_path, "w", 10) as outbox:
            assert outbox.unsent_count == 3
            assert outbox.has_news.is_set()
            self.check(read_outbox(tmp_path / "outbox-w.db"), "w")
            assert len(await outbox.unsent(10)) == 3
        async with Outbox(tmp_path, "w", 10) as outbox:  # nothing happens twice
            assert outbox.unsent_count == 3

    @pytest.mark.row("F43")
    async def test_its_file_is_adopted_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox_module, "ADOPT_SECONDS", 0.02)
        self.die(tmp_path, "dead")
        workers = [Outbox(tmp_path, f"w{number}", 10) for number in range(4)]
        await asyncio.gather(*(worker.__aenter__() for worker in workers))
        looking = [asyncio.create_task(worker.look_after_orphans(lambda leases: None)) for worker in workers]
        try:
            await until(lambda: any(worker.unsent_count for worker in workers))
            assert sorted(worker.unsent_count for worker in workers) == [0, 0, 0, 3]
            [adopter] = [number for number, worker in enumerate(workers) if worker.unsent_count]
            self.check(read_outbox(tmp_path / f"outbox-w{adopter}.db"), f"w{adopter}")
            assert not (tmp_path / "outbox-dead.db").exists()
        finally:
            for look in looking:
                look.cancel()
            for worker in workers:
                await worker.__aexit__(None, None, None)

    @pytest.mark.row("F43")
    async def test_one_that_ends_meanwhile_is_adopted_by_one_that_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "ADOPT_SECONDS", 0.02)
        async with Outbox(tmp_path, "w", 10) as outbox:
            live = UsageEvent(request_id="req_live", account_id="a")
            await outbox.intend(live)
            looking = asyncio.create_task(outbox.look_after_orphans(lambda leases: None))
            await asyncio.to_thread(self.die, tmp_path, "dead")
            await until(lambda: outbox.unsent_count)
            looking.cancel()
            events = read_outbox(tmp_path / "outbox-w.db")
            self.check(events, "w")
            assert events["req_live"][0] == 0  # what we do ourselves goes on
            assert len(await outbox.unsent(10)) == outbox.unsent_count == 3
            assert not (tmp_path / "outbox-dead.db").exists()
            [sent] = tmp_path.glob("sent-dead-*.db")
            assert {state for state, _ in read_outbox(sent).values()} == {2}

    @pytest.mark.row("F43")
    async def test_one_that_is_only_started_again_keeps_what_it_was_lent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would refuse its callers until billing can be asked for another lease."""
        monkeypatch.setattr(outbox_module, "ADOPT_SECONDS", 0.01)
        monkeypatch.setattr(outbox_module, "PATIENCE_LOOKS", 10**6)
        lease = KeptLease("a", "lease_1", 100, time.time_ns(), time.time_ns() + 60 * 10**9)
        async with Outbox(tmp_path, "w", 10) as outbox:
            async with Outbox(tmp_path, "again", 10) as again:
                again.keep_lease(lease)
                await again.record(make_event())
            taken: list[KeptLeases] = []
            looking = asyncio.create_task(outbox.look_after_orphans(taken.append))
            await until(lambda: len(taken) > 5)
            looking.cancel()
            assert not any(found.leases for found in taken) and not outbox.unsent_count
            async with Outbox(tmp_path, "again", 10) as again:
                assert set(again.kept_leases.leases) == {"a"}
                assert again.unsent_count == 1

    async def test_all_that_are_started_again_keep_what_they_were_lent(self, tmp_path: Path) -> None:
        """The first of them finds the others' files without their workers."""
        names = [f"w{number}" for number in range(3)]
        async with AsyncExitStack() as stack:
            for name in names:
                outbox = await stack.enter_async_context(Outbox(tmp_path, name, 10))
                lease = KeptLease("a", f"lease_{name}", 100, time.time_ns(), time.time_ns() + 60 * 10**9)
                outbox.keep_lease(lease)
        for name in names:
            async with Outbox(tmp_path, name, 10) as outbox:
                assert [kept.lease_id for kept in outbox.kept_leases.leases.values()] == [f"lease_{name}"]

    @pytest.mark.row("F43")
    async def test_one_with_many_events_is_adopted_in_pages_also_if_the_adopter_dies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_file, "ADOPT_PAGE_ROWS", 100)
        own, dead = tmp_path / "outbox-w.db", tmp_path / "outbox-dead.db"
        with closing(outbox_file.open_or_replace(dead)) as database:
            rows = [(f"req_{number:026}", number % 2, "lurus.v1.usage.a", b"", 0) for number in range(1_050)]
            database.executemany("INSERT INTO usage VALUES (?, ?, ?, ?, ?)", rows)
        write_all, pages = outbox_file._write_all, []

        def die_at_the_fourth(database: sqlite3.Connection, sql: str, rows: Any) -> int:
            changed = write_all(database, sql, rows)
            pages.append(len(rows))
            if len(pages) == 4:
                raise KeyboardInterrupt
            return changed

        monkeypatch.setattr(outbox_file, "_write_all", die_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            outbox_file.adopt_orphans(own, "w", [dead])
        assert len(read_outbox(own)) == 400
        assert len(read_outbox(dead)) == 750  # the page that was just written is in both
        again = outbox_file.adopt_orphans(own, "w", [dead])
        assert again.event_count == 650
        assert max(pages) == 100
        adopted = read_outbox(own)
        assert set(adopted) == {row[0] for row in rows}
        assert {state for state, _ in adopted.values()} == {1}
        assert not dead.exists()

    async def test_an_event_that_cannot_be_read_stops_nobody(self, tmp_path: Path) -> None:
        async with Outbox(tmp_path, "w", 10):
            pass
        with sqlite3.connect(tmp_path / "outbox-w.db") as database:
            database.execute("INSERT INTO usage VALUES ('req_x', 0, 'lurus.v1.usage.a', x'ffff', 0)")
        database.close()
        async with Outbox(tmp_path, "w", 10) as outbox:
            assert [row[0] for row in await outbox.unsent(10)] == ["req_x"]


class TestInService:
    @in_process_only
    @pytest.mark.row("F42")
    async def test_a_full_disk_stops_calls_before_any_provider(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox_module, "RETRY_SECONDS", 0.02)
        may_end = asyncio.Event()
        events = events_of(ANTHROPIC)
        rig.upstream.script = stream([*events[:-1], may_end, events[-1]])
        running = asyncio.create_task(rig.relay(stream_request(ANTHROPIC)))
        await rig.upstream.until_requests(1)
        with no_room_on_disk():
            error = await refusal(rig.relay())
            assert isinstance(error, AccountingUnavailable)
            may_end.set()
            answer = await asyncio.wait_for(running, 15)  # what runs is finished all the same
        assert answer.body == b"".join(events)
        assert len(rig.upstream.requests) == 1
        assert (await rig.event(answer.request_id)).cost_nano_usd == COST
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).head.status == 200

    @in_process_only
    async def test_a_full_outbox_stops_calls(
        self, monkeypatch: pytest.MonkeyPatch, make_rig: MakeRig
    ) -> None:
        monkeypatch.setattr(worker_module, "FLUSH_SECONDS", 0.1)
        rig = await make_rig(nats_url="nats://127.0.0.1:1", max_outbox_rows=3)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        for _ in range(3):
            await rig.relay()
        for _ in range(3):
            assert isinstance(await refusal(rig.relay()), AccountingUnavailable)
        assert len(rig.rows()) == 3  # refusals do not fill it further
        assert len(rig.upstream.requests) == 3

    @in_process_only
    async def test_a_live_stream_is_checkpointed_four_times_a_second(self, rig: Rig) -> None:
        texts = [text_event(ANTHROPIC, "x" * 40) for _ in range(150)]
        rig.upstream.script = stream(
            [*begin_events(ANTHROPIC), *texts, *events_of(ANTHROPIC)[-3:]], pause_seconds=0.01
        )
        running = asyncio.create_task(rig.relay(stream_request(ANTHROPIC)))
        await rig.upstream.until_requests(1)
        changes: list[tuple[float, int]] = []
        while not running.done():
            for state, event in rig.rows().values():
                if not state and (not changes or changes[-1][1] != event.response_bytes):
                    changes.append((time.monotonic(), event.response_bytes))
                    assert event.token_source != usage_pb2.TOKEN_SOURCE_ESTIMATED
            await asyncio.sleep(0.01)
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(changes)]
        assert len(gaps) >= 2
        assert sorted(gaps)[len(gaps) // 2] < 1


@asynccontextmanager
async def child_worker(settings: Settings) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """Runs a routing service as a child process; gives the process and a stub."""
    environment = {
        **os.environ,
        **to_environment(settings),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    script = Path(__file__).with_name("killed_worker.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=environment, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield process, RoutingServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def messages_of(nats_url: str, account_id: str) -> list[UsageEvent]:
    """What the bus holds for an account."""
    client = await nats.connect(nats_url)
    jetstream = client.jetstream()
    found: list[UsageEvent] = []
    try:
        info = await jetstream.stream_info(bus.STREAM_NAME)
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            message = await jetstream.get_msg(bus.STREAM_NAME, sequence)
            if message.subject == f"{bus.SUBJECT_PREFIX}.{account_id}" and message.data:
                found.append(UsageEvent.FromString(message.data))
    finally:
        await client.close()
    return found


@in_process_only
async def test_a_killed_worker_is_settled_once_by_its_successor(
    settings: Settings, kind: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(settings, kind)
    rig.provider.prices.append(PRICE)
    texts = [text_event(ANTHROPIC, "x" * 40) for _ in range(5)]
    rig.upstream.scripts = [stream([*begin_events(ANTHROPIC), *texts, 30.0])]
    async with rig.upstream, rig.other:
        rig.use(one={})
        await rig.billing_server.start()
        await rig.provider_server.start()
        chosen = msgspec.structs.replace(
            settings,
            billing_address=f"127.0.0.1:{rig.billing_server.port}",
            provider_address=f"127.0.0.1:{rig.provider_server.port}",
        )
        async with child_worker(chosen) as (process, stub):
            rig.stub = stub
            await rig.until_ready()
            call = stub.Relay(rig.request(stream_request(ANTHROPIC)))
            received = 0
            async for response in call:
                received += response.data.count(b"text_delta")
                if received == 5:
                    break
            await until(lambda: any(event.tokens.output for _, event in rig.rows().values()))
            [(request_id, (state, _))] = rig.rows().items()
            assert state == 0
            process.kill()
            await process.wait()
        async with rig.running():
            event = await rig.event(request_id)
            assert event.terminal == usage_pb2.TERMINAL_WORKER_LOST
            assert event.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
            assert (event.tokens.input, event.tokens.cache_read, event.tokens.output) == (10, 1000, 50)
            assert event.cost_nano_usd > 0
            await until(lambda: rig.rows()[request_id][0] == 2)
        async with rig.running():  # once more: nothing is left to do
            assert rig.rows()[request_id][0] == 2
    events = await messages_of(nats_url, rig.account_id)
    assert [event.request_id for event in events] == [request_id]


class TestBus:
    @in_process_only
    @pytest.mark.row("F26")
    async def test_without_a_bus_events_wait_and_are_sent_once(
        self, make_rig: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bus, "PUBLISH_SECONDS", 0.3)
        monkeypatch.setattr(outbox_relay, "MAX_RETRY_SECONDS", 0.3)
        data_dir = tmp_path / "bus"
        server = EmbeddedBackends(DataDir(data_dir), names=("nats",))
        url = server.urls.nats_url
        rig = await make_rig(nats_url=url)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        sent = [(await rig.relay()).request_id for _ in range(5)]
        assert {state for state, _ in rig.rows().values()} == {1}
        async with server:
            await until(lambda: {state for state, _ in rig.rows().values()} == {2}, 20)
            sent += [(await rig.relay()).request_id for _ in range(5)]
        sent += [(await rig.relay()).request_id for _ in range(5)]  # it is away again
        await asyncio.sleep(0.5)  # so that some are published in vain
        async with EmbeddedBackends(DataDir(data_dir), names=("nats",)) as server:
            assert server.urls.nats_url == url
            await until(lambda: {state for state, _ in rig.rows().values()} == {2}, 20)
            events = await messages_of(url, rig.account_id)
        assert sorted(event.request_id for event in events) == sorted(sent)

    @in_process_only
    async def test_a_bus_without_its_stream_gets_one(self, make_rig: MakeRig, tmp_path: Path) -> None:
        async with EmbeddedBackends(DataDir(tmp_path / "bus"), names=("nats",)) as server:
            rig = await make_rig(nats_url=server.urls.nats_url)
            rig.upstream.script = plain(plain_answer(ANTHROPIC))
            await rig.relay()
            await until(lambda: {state for state, _ in rig.rows().values()} == {2})
            client = await nats.connect(server.urls.nats_url)
            await client.jetstream().delete_stream(bus.STREAM_NAME)
            await rig.relay()
            await until(lambda: {state for state, _ in rig.rows().values()} == {2})
            await client.close()

    @in_process_only
    async def test_all_is_sent_before_a_stop(self, settings: Settings, kind: str, nats_url: str) -> None:
        rig = Rig(settings, kind)
        async with rig.upstream, rig.other:
            rig.use(one={})
            rig.upstream.script = plain(plain_answer(ANTHROPIC))
            async with rig.running():
                for _ in range(3):
                    await rig.relay()
        assert {state for state, _ in rig.rows().values()} == {2}
        assert len(await messages_of(nats_url, rig.account_id)) == 3
