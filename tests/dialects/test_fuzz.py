"""Random harm to requests and answers: only the documented failures come of it, and nothing is made up.

`LURUS_FUZZ_SECONDS` and `LURUS_FUZZ_SEED` make a longer or another run.
"""

import itertools
import json
import os
import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_common.errors import InvalidRequest, RequestTooLarge, Untranslatable, UpstreamFailed
from lurus_dialects import loose, translate
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.translation import Asked, Losses, Target, ToolName
from lurus_dialects.watch import StreamWatcher
from tests.conformance.requests import codex_request
from tests.support.client_streams import told, told_by_body
from tests.support.mutation import Mutator

from .fuzz_corpus import BODIES, REQUESTS
from .made_streams import MADE
from .streams import GOLDENS, dialect_of, recorded

SECONDS = float(os.environ.get("LURUS_FUZZ_SECONDS", "2"))
SEED = int(os.environ.get("LURUS_FUZZ_SEED", "0"))
# Of one request or answer; what the mutator makes is below 200 KB.
MAX_PYTHON_BYTES = 16 * 2**20
MAX_GROWTH_KIBIBYTES = 200 * 1024
DIALECTS = list(Dialect)
STREAMS = {name: (dialect_of(name), recorded(name)) for name in GOLDENS} | MADE
QUIRKS = (
    ProviderQuirks(),
    ProviderQuirks(has_custom_tools=True, has_mid_system=True, has_developer_role=True, has_tool_parts=True),
    ProviderQuirks(wants_reasoning_back=True, wants_max_tokens=True, has_explicit_cache=True),
    ProviderQuirks(anthropic_version="2026-10-21", no_adaptive_thinking=True, no_auto_cache=True),
)
NAMES = {
    "apply_patch": ToolName("apply_patch", is_wrapped=True),
    "mcp__gh__search": ToolName("search", "mcp__gh"),
    "f": ToolName("f" * 90),
}
PREFIX = {Dialect.ANTHROPIC: "msg_1", Dialect.OPENAI_CHAT: "chatcmpl-1", Dialect.OPENAI_RESPONSES: "resp_1"}


def rounds() -> Iterator[int]:
    """Counts until the time is over, a few rounds at least."""
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        if number > 20 and time.monotonic() > end:
            return
        yield number


def failing(case: bytes, number: int) -> str:
    """Says how to repeat a failure."""
    return f"seed {SEED}, round {number}: {case!r}"


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIBIBYTES


def python_bytes(action: Callable[[], object]) -> int:
    """Returns how many bytes of Python objects an action held at its peak."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def others(dialect: Dialect) -> list[Dialect]:
    """Whom a dialect is translated for; its own clients get its events as they are."""
    return [client for client in DIALECTS if client is not dialect]


def asked(dialect: Dialect) -> Asked:
    """Returns what an answer's writer is told."""
    request = translate.read_request(dialect, json.dumps(REQUESTS[dialect][0]).encode(), Losses())
    return Asked(
        request=request,
        response_id=PREFIX[dialect],
        create_seconds=1763852000,
        includes_usage=True,
        estimated_input_tokens=7,
        provider_id="one",
        upstream_model="up",
    )


class TestRequests:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_only_documented_failures_escape(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED)
        read_count = 0
        for number in rounds():
            case = mutator.json_text(REQUESTS[dialect][number % len(REQUESTS[dialect])])
            try:
                read_count += self._translated(dialect, case, QUIRKS[number % len(QUIRKS)])
            except Exception as error:
                raise AssertionError(failing(case, number)) from error
        assert read_count, "nothing came through"

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_memory_is_bounded(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED + 1)
        for number in rounds():
            case = mutator.json_text(REQUESTS[dialect][number % len(REQUESTS[dialect])])
            used = python_bytes(lambda case=case: self._translated(dialect, case, QUIRKS[0]))  # type: ignore[misc]
            assert used < MAX_PYTHON_BYTES + 20 * len(case), failing(case, number)

    def _translated(self, dialect: Dialect, case: bytes, quirks: ProviderQuirks) -> int:
        try:
            request = translate.read_request(dialect, case, Losses())
        except InvalidRequest as error:
            assert error.metadata.get("param") is not None or error.message
            return 0
        except (Untranslatable, RequestTooLarge):
            return 0
        for target in DIALECTS:
            self._write(request, target, quirks)
        return 1

    def _write(self, request: StreamChatRequest, dialect: Dialect, quirks: ProviderQuirks) -> None:
        target = Target(dialect=dialect, upstream_model="m", quirks=quirks, max_output_tokens=1000)
        losses = Losses()
        try:
            written = translate.write_request(request, target, losses, is_streaming=True)
        except (InvalidRequest, Untranslatable, RequestTooLarge):
            return
        body = json.loads(written.body.decode())
        assert body["model"] == "m"
        assert len(losses.warned) <= 32


class TestStreams:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_nothing_is_made_up_and_every_client_can_read_it(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED)
        corpus = [SseParser().feed(stream) for of, stream in STREAMS.values() if of is dialect]
        clients = others(dialect)
        writers = {client: asked(client) for client in clients}
        for number in rounds():
            case = mutator.stream([event.raw for event in corpus[number % len(corpus)]])
            try:
                said = self._checked(dialect, case)
                for client in clients:
                    self._write(client, said, writers[client])
            except Exception as error:
                raise AssertionError(failing(case, number)) from error

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_memory_is_bounded(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED + 1)
        corpus = [SseParser().feed(stream) for of, stream in STREAMS.values() if of is dialect]
        for number in rounds():
            case = mutator.stream([event.raw for event in corpus[number % len(corpus)]])
            used = python_bytes(lambda case=case: list(said_by(dialect, case)))  # type: ignore[misc]
            assert used < MAX_PYTHON_BYTES + 20 * len(case), failing(case, number)

    def _checked(self, dialect: Dialect, case: bytes) -> list[StreamChatResponse]:
        heard = Heard(dialect)
        said = list(said_by(dialect, case, heard))
        check_order(said)
        for event in said:
            kind = event.WhichOneof("event")
            if kind in ("text_delta", "thinking_delta"):
                # A blank line joins the parts of a summary.
                assert heard.has(getattr(event, kind).removeprefix("\n\n")), f"{event} was not sent"
        if said and said[-1].WhichOneof("event") == "finish":
            assert heard.is_finished, "the provider sent no finish"
        return said

    def _write(self, client: Dialect, said: list[StreamChatResponse], known: Asked) -> None:
        writer = translate.stream_writer(client, known)
        parts = []
        for event in said:
            parts.append(b"" if writer.is_over else writer.heartbeat())
            if event.HasField("error"):
                parts.append(writer.error("UPSTREAM_FAILED", event.error.message, "req_1"))
            else:
                parts.append(writer.write(event))
        assert writer.is_over, f"{said[-1:]} did not end the stream"
        understood = told(client, b"".join(parts))
        assert understood.is_complete == (said[-1].WhichOneof("event") == "finish")


class TestRelayed:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_a_watched_stream_is_relayed_whatever_it_is(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED)
        corpus = [SseParser().feed(stream) for of, stream in STREAMS.values() if of is dialect]
        for number in rounds():
            case = mutator.stream([event.raw for event in corpus[number % len(corpus)]])
            watcher = StreamWatcher(dialect)
            try:
                relayed = watcher.feed(case)
                watcher.finish()
            except Exception as error:
                raise AssertionError(failing(case, number)) from error
            assert case.startswith(relayed), failing(case, number)


class TestBodies:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_a_plain_body_is_read_or_an_error(self, dialect: Dialect) -> None:
        mutator = Mutator(SEED)
        writers = {client: asked(client) for client in others(dialect)}
        for number in rounds():
            case = mutator.json_text(BODIES[dialect][number % len(BODIES[dialect])])
            try:
                said = translate.read_body(dialect, case, NAMES)
                check_order(said)
                if said[-1].WhichOneof("event") == "finish":
                    for client, known in writers.items():
                        told_by_body(client, translate.write_body(client, said, known))
            except Exception as error:
                raise AssertionError(failing(case, number)) from error


class Heard:
    """What a provider really sent, however it was broken."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._texts: list[str] = []
        self._joined = ""
        self.is_finished = False

    def take(self, name: bytes, data: bytes) -> None:
        """Notes one event."""
        self.is_finished |= self._dialect is Dialect.OPENAI_CHAT and data.strip() == b"[DONE]"
        value = loose.decode(data.decode("utf-8", "replace").encode())
        self._texts += _strings(value)
        if isinstance(value, dict | list):
            self._texts.append(json.dumps(value, separators=(",", ":")))
        if isinstance(value, dict):
            self.is_finished |= _is_finish(self._dialect, name.decode("utf-8", "replace"), value)

    def has(self, text: str) -> bool:
        """Whether a text was sent; a character that came in two halves is looked for by its surroundings."""
        self._joined = self._joined or _clean("\x1e".join(self._texts))
        pieces = "".join(letter if letter < "\U00010000" else "\ufffd" for letter in text).split("\ufffd")
        return all(piece in self._joined for piece in pieces)


def _clean(text: str) -> str:
    """Returns a text without surrogates, halved or whole."""
    return "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff" or letter > "\uffff" else letter for letter in text
    )


def _strings(value: Any) -> list[str]:
    found: list[str] = []
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            found.append(top)
        elif isinstance(top, list):
            stack += top
        elif isinstance(top, dict):
            stack += top.values()
    return found


def _is_finish(dialect: Dialect, name: str, value: dict[str, Any]) -> bool:
    kinds = {name, str(value.get("type"))}
    if dialect is Dialect.ANTHROPIC:
        return bool(kinds & {"message_delta", "message_stop"})
    if dialect is Dialect.OPENAI_CHAT:
        choices = value.get("choices")
        return isinstance(choices, list) and any(
            isinstance(c, dict) and c.get("finish_reason") not in (None, "") for c in choices
        )
    return bool(kinds & {"response.completed", "response.incomplete"})


def said_by(dialect: Dialect, case: bytes, heard: Heard | None = None) -> Iterator[StreamChatResponse]:
    """Returns what a reader says of a stream."""
    parser, reader = SseParser(), translate.stream_reader(dialect, NAMES)
    try:
        events = parser.feed(case)
    except UpstreamFailed:
        events = []
    last = parser.finish()
    for event in [*events, *([last] if last is not None else [])]:
        if event.data:
            if heard is not None:
                heard.take(event.name, event.data)
            yield from reader.read(event.name, event.data)
    yield from reader.end()


def check_order(said: list[StreamChatResponse]) -> None:
    """Fails if the events of an answer are not those that writers may rely on."""
    open_blocks: dict[int, int] = {}
    count = 0
    kinds = [event.WhichOneof("event") for event in said]
    assert kinds[-1] in ("finish", "error")
    assert not {"finish", "error"} & set(kinds[:-1]), "something came after the end"
    spoken = [kind for kind in kinds if kind != "vendor_event"]
    assert "start" not in spoken[1:], "a second start, or a late one"
    for event, kind in zip(said, kinds, strict=True):
        if kind == "block_start":
            assert event.block_index == count
            open_blocks[count] = event.block_start.kind
            count += 1
        elif kind in ("text_delta", "thinking_delta", "arguments_delta", "thinking_seal", "citation"):
            assert event.block_index in open_blocks, f"{event} stands in no open block"
        elif kind in ("block_end", "tool_call"):
            del open_blocks[event.block_index]
    assert kinds[-1] == "error" or not open_blocks, "a block has no end"


def test_the_corpus_itself_is_understood() -> None:
    for dialect, stream in STREAMS.values():
        check_order(list(said_by(dialect, stream)))
    assert codex_request() in REQUESTS[Dialect.OPENAI_RESPONSES]
