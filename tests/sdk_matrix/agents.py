"""Lets Claude Code and the Codex CLI take a turn through a gateway."""

import asyncio
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.sdk_matrix import anthropic_rules, chat_rules, responses_rules
from tests.sdk_matrix.answers import ENCRYPTED, SIGNATURE, Answer, pieces
from tests.sdk_matrix.clients import NODE_MODULES, claude_command
from tests.sdk_matrix.view import View
from tests.support.scripted_upstream import Exchange, Script, stream

CODEX = NODE_MODULES / ".bin" / "codex"
CLAUDE = claude_command()
TURN_SECONDS = 40.0
STOP_SECONDS = 5.0
CHUNK_BYTES = 65_536
_REQUEST_LINE = re.compile(rb"^POST (/v1/\S+) HTTP/1\.1\r$", re.MULTILINE)


class Tap:
    """A socket in front of a gateway that counts what clients ask it for."""

    def __init__(self, port: int) -> None:
        self._port = port
        # The paths that were posted to, in order, without their queries.
        self.posts: list[str] = []

    @property
    def url(self) -> str:
        """What a client is told for the gateway's address."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pump(reader, back, is_request=True), self._pump(there, writer))
        finally:
            writer.close()
            back.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if is_request:
                    found = [path.decode().partition("?")[0] for path in _REQUEST_LINE.findall(data)]
                    self.posts += [path for path in found if not path.endswith("count_tokens")]
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()


@dataclass(slots=True)
class Turn:
    """What came of a turn of a command-line client."""

    code: int
    output: str
    errors: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of JSON that it printed."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def items(self, kind: str) -> list[dict[str, Any]]:
        """Returns Codex's finished items of a kind."""
        items = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in items if item["type"] == kind]


async def claude_turn(url: str, key: str, model: str, folder: Path, prompt: str = "Go.") -> Turn:
    """Lets Claude Code take one turn in a folder; its output is one line of JSON."""
    assert CLAUDE is not None
    own = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "HOME": str(folder),
        "IS_SANDBOX": "1",
        "PATH": os.environ["PATH"],
    }
    command = [CLAUDE, "-p", prompt, "--model", model, "--output-format", "json", "--allowedTools", "Bash"]
    return await _run(command, own, folder)


async def codex_turn(url: str, key: str, model: str, folder: Path, prompt: str = "Go.") -> Turn:
    """Lets Codex take one turn in a folder; its output is events."""
    home = folder / "codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f"""
model = "{model}"
model_provider = "lurus"

[model_providers.lurus]
name = "Lurus Switch"
base_url = "{url}/v1"
env_key = "LURUS_API_KEY"
wire_api = "responses"
"""
    )
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    own = {**os.environ, "CODEX_HOME": str(home), "LURUS_API_KEY": key}
    return await _run([str(CODEX), "exec", *options, prompt], own, folder)


async def _run(command: Sequence[str], environment: dict[str, str], folder: Path) -> Turn:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
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
    assert process.returncode is not None
    return Turn(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


@dataclass(slots=True)
class Model:
    """Answers the turns of an agent: the so-manieth answer once as many results of tools have come."""

    dialect: str
    answers: Sequence[Answer]
    # Whether the client speaks the dialect itself; then it may say what only it understands.
    is_relayed: bool
    views: list[View] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def script(self) -> Script:
        """Returns what an upstream does."""
        return self._answer

    async def _answer(self, exchange: Exchange) -> None:
        body = exchange.request.json()
        headers = {name: value.decode("latin-1") for name, value in exchange.request.headers}
        self.bodies.append(body)
        if not self.is_relayed:
            self.views.append(_read(self.dialect, body, headers))
        answer = self.answers[min(_result_count(self.dialect, body), len(self.answers) - 1)]
        chunks = pieces(self.dialect, answer, has_usage=True, interleaves=False)
        await stream(chunks, is_ended=answer.fault != "cut")(exchange)

    @property
    def problems(self) -> list[str]:
        """What was wrong with translated requests."""
        return [problem for view in self.views for problem in view.problems]


def _read(dialect: str, body: dict[str, Any], headers: dict[str, str]) -> View:
    if dialect == "A":
        return anthropic_rules.read(body, headers, frozenset({SIGNATURE}))
    if dialect == "C":
        return chat_rules.read(body, is_relayed=False)
    return responses_rules.read(body, frozenset({ENCRYPTED}), is_relayed=False)


def _result_count(dialect: str, body: dict[str, Any]) -> int:
    if dialect == "R":
        return sum(str(item.get("type")).endswith("_call_output") for item in body["input"])
    if dialect == "C":
        return sum(message["role"] == "tool" for message in body["messages"])
    blocks = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
    return sum(block["type"] == "tool_result" for block in blocks)
