"""Refusals before the edge is full: memory, slots, file descriptors."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lurus_common.errors import Overloaded
from lurus_common.settings import Settings
from lurus_edge import shedding
from lurus_edge.shedding import Shedder, memory_limit, resident_bytes

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
# A connection of its own each time: idle ones may be closed at any moment.
BODY, JSON = b"{}", {"content-type": "application/json", "connection": "close"}
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
WAIT_SECONDS = 20.0
DESCRIPTORS = 60


def refusal(shedder: Shedder, live: int, *headers: tuple[bytes, bytes]) -> Overloaded | None:
    try:
        shedder.check(live, headers)
    except Overloaded as error:
        return error
    return None


class TestSlots:
    def test_a_tenth_is_kept_for_small_requests(self) -> None:
        shedder = Shedder(20)
        small, large = (b"content-length", b"65536"), (b"content-length", b"65537")
        assert [refusal(shedder, live, large) is None for live in (18, 19)] == [True, False]
        assert refusal(shedder, 19) is not None  # nobody knows how large
        assert [refusal(shedder, live, small) is None for live in (19, 20, 21)] == [True, True, False]

    def test_those_refused_together_do_not_come_back_together(self) -> None:
        waits = [
            float(error.metadata["retry_after_seconds"])
            for _ in range(200)
            if (error := refusal(Shedder(1), 2))
        ]
        assert min(waits) >= 1 and max(waits) <= 5
        assert max(waits) - min(waits) > 2


class TestMemory:
    @pytest.mark.parametrize(
        ("percent", "refuses", "closes"),
        [(79, False, False), (80, True, False), (89, True, False), (90, True, True)],
    )
    async def test_the_marks(
        self, in_process_edge: Any, monkeypatch: pytest.MonkeyPatch, percent: int, refuses: bool, closes: bool
    ) -> None:
        monkeypatch.setattr(shedding, "resident_bytes", lambda: percent)
        async with in_process_edge(memory_limit_bytes=100) as edge, _idle(edge) as (reader, writer):
            await asyncio.sleep(3 * shedding.LOOK_SECONDS)
            answer = await _until_status(edge, 503 if refuses else 200)
            assert not refuses or 1 <= int(answer["retry-after"]) <= 5
            if closes:
                assert await asyncio.wait_for(reader.read(), WAIT_SECONDS) == b""
            else:
                writer.write(HEALTH)
                assert b"alive" in await asyncio.wait_for(reader.readuntil(b"}"), WAIT_SECONDS)

    async def test_the_real_memory_counts_and_probes_are_answered(self, make_edge: Any) -> None:
        async with make_edge(memory_limit_bytes=1 << 20) as edge, _idle(edge) as (reader, _):
            await _until_status(edge, 503)
            assert await asyncio.wait_for(reader.read(), WAIT_SECONDS) == b""
            assert (await edge.call("GET", "/health", headers=JSON))[0] == 200
            assert (await edge.call("GET", "/metrics", headers=JSON))[0] == 200
        assert resident_bytes() > 1 << 20

    def test_the_limit_is_that_of_the_settings_else_a_part_of_the_cgroups(self) -> None:
        assert memory_limit(Settings(memory_limit_bytes=5)) == 5
        assert memory_limit(Settings(gateway_workers=4)) == memory_limit(Settings()) // 4


@asynccontextmanager
async def _idle(edge: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that was used and waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.server.port)
    writer.write(HEALTH)
    await reader.readuntil(b"}")
    try:
        yield reader, writer
    finally:
        writer.close()


async def _until_status(edge: Any, expected: int) -> dict[str, str]:
    """Headers of the first chat that was answered so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        status, headers, _ = await edge.call("POST", CHAT, data=BODY, headers=JSON)
        if status == expected:
            return dict(headers)
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.02)


class TestDescriptors:
    @pytest.mark.row("F23")
    async def test_without_descriptors_others_are_served_and_then_all_again(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.edge.crowded_edge",
            str(DESCRIPTORS),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        writers: list[asyncio.StreamWriter] = []
        try:
            port = int(await asyncio.wait_for(process.stdout.readline(), 60))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3 * DESCRIPTORS):
                with contextlib.suppress(OSError):
                    _, crowd = await asyncio.open_connection("127.0.0.1", port)
                    writers.append(crowd)
            assert not await _is_served(port)
            for _ in range(3):
                writer.write(HEALTH)
                assert b"alive" in await asyncio.wait_for(reader.readuntil(b"}"), WAIT_SECONDS)
            for crowd in writers:
                crowd.close()
            deadline = time.monotonic() + WAIT_SECONDS
            while not await _is_served(port):
                assert time.monotonic() < deadline, "it does not recover"
                await asyncio.sleep(0.1)
            writer.close()
        finally:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), WAIT_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _is_served(port: int) -> bool:
    """Whether a new connection gets an answer."""
    writer = None
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            return b"alive" in await reader.readuntil(b"}")
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.close()
