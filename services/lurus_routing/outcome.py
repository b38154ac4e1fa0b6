"""What an attempt comes to: the begin of an answer that may be released, or a failure."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from aiohttp import ClientResponse

from lurus.routing.v1.chat_pb2 import StreamChatResponse
from lurus_common.errors import LurusError, UpstreamCredentialRejected, UpstreamFailed, UpstreamTimeout
from lurus_dialects import loose, translate
from lurus_dialects.body import BodyUsage, body_usage
from lurus_dialects.counting import count_answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.headers import of_translated_answer, to_client
from lurus_dialects.translated import TranslatedStream, lost_event_count, state_tokens
from lurus_dialects.translation import AnswerWriter
from lurus_dialects.typed import TypedWriter
from lurus_dialects.upstream_errors import FailureClass, failure_class, stream_error_status
from lurus_dialects.watch import StreamWatcher
from lurus_routing.call import Call
from lurus_routing.outgoing import Outgoing, Prepared, Translation
from lurus_routing.stored import with_relative_urls
from lurus_routing.upstream import read_chunk

MAX_LOSSY_PATH_CHARACTERS = 128
MAX_LOSSY_CHARACTERS = 2000
# After a translated begin without content. A provider that thinks for long must not keep its client waiting.
BEGIN_SECONDS = 0.2
_ODD = re.compile(r"[^!-+\--~]")


@dataclass(slots=True)
class Answered:
    """An answer that may be released: its head, and a whole body or the begin of a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    # Set for a stream only; its response is the call's then.
    watcher: StreamWatcher | TranslatedStream | None = None
    # The body follows as it comes; its response is the call's then.
    is_passed_on: bool = False


@dataclass(slots=True)
class Failure:
    """An attempt that failed before its first event."""

    kind: FailureClass
    error: LurusError
    status: int = 0
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    # Of the provider.
    dialect: Dialect | None = None

    @property
    def retry_after_seconds(self) -> float:
        """What the provider asks to wait; infinite if it says nothing."""
        return _retry_after(self.headers, time.time())

    @property
    def states_wait(self) -> bool:
        """Whether the provider asks to wait for some time."""
        return math.isfinite(self.retry_after_seconds)


async def begin_stream(
    call: Call,
    outgoing: Outgoing,
    prepared: Prepared,
    response: ClientResponse,
    headers: list[tuple[str, str]],
    deadline: float,
) -> Answered | Failure:
    watcher = _watcher(call, outgoing, prepared)
    try:
        released = await _begin(call, response, watcher, deadline)
    except LurusError:
        call.note_failed_usage(watcher)
        raise
    if watcher.error_seen and not watcher.content_seen:
        call.note_failed_usage(watcher)
        status = stream_error_status(watcher.error_body)
        return refused(status, headers, watcher.error_body)
    call.answer = watcher
    passed = shown_headers(call, prepared, headers, is_streaming=True)
    return Answered(response.status, passed, released, watcher)


async def _begin(
    call: Call, response: ClientResponse, watcher: StreamWatcher | TranslatedStream, deadline: float
) -> bytes:
    """Returns what may be released first."""
    released = b""
    while not released:
        chunk = await read_chunk(response, deadline, call.alarm)
        released = watcher.feed(chunk) if chunk else watcher.finish()
        if not chunk and not released:
            raise UpstreamFailed("the provider's stream is empty")
    if isinstance(watcher, TranslatedStream):
        released += await _news(call, response, watcher, deadline)
    return released


async def _news(call: Call, response: ClientResponse, watcher: TranslatedStream, deadline: float) -> bytes:
    """Waits a moment after a mere begin: a refusal often follows it, and then another may still be asked."""
    released = b""
    until = min(deadline, time.monotonic() + BEGIN_SECONDS)
    while not (watcher.content_seen or watcher.is_over) and time.monotonic() < until:
        try:
            chunk = await read_chunk(response, until, call.alarm)
        except UpstreamTimeout:
            break
        released += watcher.feed(chunk) if chunk else watcher.finish()
        if not chunk:
            break
    return released


def _watcher(call: Call, outgoing: Outgoing, prepared: Prepared) -> StreamWatcher | TranslatedStream:
    translation = prepared.translation
    if translation is None:
        return StreamWatcher(prepared.dialect, outgoing.strips_usage)
    asked = translation.asked
    if translation.client is None:
        writer: AnswerWriter = TypedWriter(asked, call.request_id, translation.lossy_fields)
    else:
        writer = translate.stream_writer(translation.client, asked)
    reader = translate.stream_reader(prepared.dialect, translation.written.tool_names)
    return TranslatedStream(
        prepared.dialect,
        reader,
        writer,
        call.request_id,
        asked.estimated_input_tokens,
        client=translation.client,
    )


def shown_headers(
    call: Call, prepared: Prepared, headers: list[tuple[str, str]], *, is_streaming: bool
) -> list[tuple[str, str]]:
    """The provider's headers that the client gets, and which fields were lost."""
    if prepared.translation is None:
        call.lossy_fields = list(prepared.replaced_fields)
        passed = to_client(headers)
    else:
        call.lossy_fields = prepared.translation.lossy_fields
        passed = of_translated_answer(headers, is_streaming=is_streaming)
    if not call.lossy_fields:
        return passed
    if lossy := lossy_header(call.lossy_fields):
        passed.append(("x-lurus-lossy", lossy))
    return passed


def refused(status: int, headers: list[tuple[str, str]], body: bytes) -> Failure:
    kind = failure_class(status, body, headers)
    error: LurusError = UpstreamFailed(f"the provider answered {status}")
    if kind is FailureClass.CREDENTIAL:
        error = UpstreamCredentialRejected("the provider refused the gateway's credential")
    return Failure(kind, error, status, headers, body)


def whole_answer(
    call: Call,
    outgoing: Outgoing,
    prepared: Prepared,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
) -> Answered | Failure:
    found = body_usage(prepared.dialect, body, outgoing.kind)
    if found.is_error:
        return refused(stream_error_status(found.error_body), headers, body)
    if not found.is_answer or outgoing.is_streaming:
        # A stream was asked for: one object instead would leave the client waiting for its events.
        return _nonsense(headers)
    if prepared.translation is not None:
        translated = _translated_body(call, prepared.dialect, prepared.translation, found, body)
        if translated is None:
            call.note_failed_usage(found)
            return _nonsense(headers)
        body = translated
    if outgoing.kind is Kind.BATCHES:
        body = with_relative_urls(body)
    call.answer = found
    return Answered(status, shown_headers(call, prepared, headers, is_streaming=False), body)


def _translated_body(
    call: Call, dialect: Dialect, translation: Translation, found: BodyUsage, body: bytes
) -> bytes | None:
    """Returns a provider's answer as the client's, None if it is none after all."""
    events = translate.read_body(dialect, body, translation.written.tool_names)
    if not events or not events[-1].HasField("finish"):
        return None
    state_tokens(events[-1].finish, found, translation.asked.estimated_input_tokens)
    if translation.client is not None:
        found.lost_event_count += lost_event_count(translation.client, events)
    return plain_body(call, translation, events)


def plain_body(call: Call, translation: Translation, events: Sequence[StreamChatResponse]) -> bytes:
    """Returns the client's plain answer, of a typed caller frames; `events` end with `finish`."""
    if translation.client is None:
        writer = TypedWriter(translation.asked, call.request_id, translation.lossy_fields)
        return b"".join([writer.write(event) for event in events])
    return translate.write_body(translation.client, events, translation.asked)


def lossy_header(paths: Sequence[str]) -> str:
    """Returns the value of `x-lurus-lossy`. A client's own words may be in it: what is odd is replaced."""
    plain = [_ODD.sub("?", path)[:MAX_LOSSY_PATH_CHARACTERS] for path in paths]
    return ",".join(plain)[:MAX_LOSSY_CHARACTERS]


def counted(
    prepared: Prepared, status: int, headers: list[tuple[str, str]], body: bytes
) -> Answered | Failure:
    count = loose.decode(body)
    if not isinstance(count, dict) or not isinstance(count.get("input_tokens"), int):
        return _nonsense(headers)
    if prepared.translation is not None:
        body = count_answer(prepared.translation.client, count["input_tokens"])
        return Answered(status, of_translated_answer(headers, is_streaming=False), body)
    return Answered(status, to_client(headers), body)


def _nonsense(headers: list[tuple[str, str]]) -> Failure:
    error = UpstreamFailed("the provider answered with something else than was asked for")
    return Failure(FailureClass.TRANSIENT, error, 502, headers, b"")


def _retry_after(headers: Sequence[tuple[str, str]], now: float) -> float:
    """Seconds that a provider asks to wait, infinite if it says nothing that can be read."""
    for name, value in headers:
        try:
            if name == "retry-after-ms":
                seconds = float(value) / 1000
            elif name == "retry-after":
                is_number = value.strip().replace(".", "", 1).isdigit()
                seconds = float(value) if is_number else parsedate_to_datetime(value).timestamp() - now
            else:
                continue
        except (ValueError, OverflowError):
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return math.inf
