"""What the real Codex does while it waits, and when it is refused a websocket (wire-contract G11, G16)."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.conformance.rig import HEARTBEAT_SECONDS, Gateway
from tests.conformance.streams import begin, deltas, end, whole
from tests.support.scripted_upstream import stream

CODEX = Path(__file__).parents[1] / "clients" / "node_modules" / ".bin" / "codex"
TURN_SECONDS = 60.0
IDLE_SECONDS = 2 * HEARTBEAT_SECONDS
SILENCE_SECONDS = 5 * HEARTBEAT_SECONDS
_REQUEST_LINE = re.compile(rb"^(GET|POST) (/\S+) HTTP/1\.1\r$", re.MULTILINE)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CODEX.exists(), reason="the Codex CLI is not installed: npm was not here"),
]


@asynccontextmanager
async def watched(port: int) -> AsyncIterator[tuple[int, list[tuple[float, str]]]]:
    """A port in front of another one, and what is asked there, with monotonic times."""
    asked: list[tuple[float, str]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_request: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                if is_request:
                    lines = _REQUEST_LINE.findall(data)
                    asked.extend((time.monotonic(), b" ".join(line).decode()) for line in lines)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back, True), pump(there, writer, False))

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


async def turn(folder: Path, config: str, **environment: str) -> str:
    """Lets Codex take a turn, and returns what it printed; fails if it failed."""
    home = folder / "codex"
    home.mkdir()
    (home / "config.toml").write_text(config)
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    process = await asyncio.create_subprocess_exec(
        str(CODEX),
        "exec",
        *options,
        "Go.",
        env={**os.environ, "CODEX_HOME": str(home), **environment},
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), TURN_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, output.decode() + errors.decode()
    return output.decode()


@pytest.mark.parametrize("upstream", ["A", "R"])
async def test_S19_codex_waits_as_long_as_heartbeats_come(
    gateway: Gateway, tmp_path: Path, upstream: str
) -> None:
    events = [*begin(upstream), *deltas(upstream, "all "), SILENCE_SECONDS]
    events += [*deltas(upstream, "done", first=1), *end(upstream, "all ", "done")]
    provider = await gateway.add(upstream, script=stream(events))
    config = f"""
model = "{provider.model}"
model_provider = "lurus"

[model_providers.lurus]
name = "Lurus Switch"
base_url = "{gateway.mesh.base_url}/v1"
env_key = "LURUS_API_KEY"
wire_api = "responses"
stream_idle_timeout_ms = {int(IDLE_SECONDS * 1000)}
"""
    output = await turn(tmp_path, config, LURUS_API_KEY=gateway.key)
    assert "all done" in output
    # It has not given up in between.
    assert len(provider.upstream.requests) == 1


async def test_H21_codex_falls_back_from_websockets_at_once(gateway: Gateway, tmp_path: Path) -> None:
    provider = await gateway.add("R", script=stream(whole("R", "all done")))
    async with watched(gateway.port) as (port, asked):
        config = f"""
model = "{provider.model}"
openai_base_url = "http://127.0.0.1:{port}/v1"
"""
        output = await turn(tmp_path, config, CODEX_API_KEY=gateway.key, OPENAI_API_KEY=gateway.key)
    assert "all done" in output
    tries = [(when, line) for when, line in asked if line.endswith("/v1/responses")]
    lines = [line for _, line in tries]
    if lines[0] != "GET /v1/responses":
        pytest.skip("this Codex does not try a websocket first")
    posted = lines.index("POST /v1/responses")
    assert tries[posted][0] - tries[0][0] < 1
