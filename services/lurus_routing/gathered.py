"""Plain answers out of streams, of providers that are to be asked for streams only (wire-contract B8).

Nothing is released before the stream has ended in order, so that any failure in
it is one that another candidate may make good.
"""

import time

from aiohttp import ClientResponse

from lurus_common.errors import UpstreamCut, UpstreamFailed
from lurus_dialects import translate
from lurus_dialects.gathered import EventCollector, GatheredStream
from lurus_dialects.translated import TranslatedStream
from lurus_dialects.upstream_errors import FailureClass, stream_error_status
from lurus_routing.call import Call
from lurus_routing.outcome import Answered, Failure, plain_body, refused, shown_headers
from lurus_routing.outgoing import Prepared, Translation
from lurus_routing.upstream import MAX_BODY_BYTES, read_chunk


async def gathered(
    call: Call,
    prepared: Prepared,
    response: ClientResponse,
    headers: list[tuple[str, str]],
    idle_seconds: float,
    deadline: float,
) -> Answered | Failure:
    """Reads a stream to its end and returns the client's plain answer.

    Raises:
        LurusError: it cannot be read to its end.
    """
    translation = prepared.translation
    collector = EventCollector()
    if translation is None:
        own = GatheredStream(prepared.dialect)
        await _read(own, call, response, idle_seconds, deadline)
        stream: GatheredStream | TranslatedStream = own
        body = own.whole() if own.terminal_ok else b""
    else:
        stream = _translated(call, prepared, translation, collector)
        await _read(stream, call, response, idle_seconds, deadline)
        is_whole = bool(collector.events) and collector.events[-1].HasField("finish")
        body = plain_body(call, translation, collector.events) if is_whole else b""
    if stream.error_seen:
        return refused(stream_error_status(stream.error_body), headers, stream.error_body)
    if not body:
        error = UpstreamCut("the provider ended its stream before its answer was complete")
        return Failure(FailureClass.TRANSIENT, error)
    call.answer = stream
    shown = shown_headers(call, prepared, headers, is_streaming=False)
    passed = [(name, value) for name, value in shown if name != "content-type"]
    return Answered(response.status, [("content-type", "application/json"), *passed], body)


async def _read(
    stream: GatheredStream | TranslatedStream,
    call: Call,
    response: ClientResponse,
    idle_seconds: float,
    deadline: float,
) -> None:
    size = 0
    while not stream.is_over:
        chunk = await read_chunk(response, min(time.monotonic() + idle_seconds, deadline), call.alarm)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise UpstreamFailed("the provider's answer is too large")
        if not chunk:
            stream.finish()
            return
        stream.feed(chunk)


def _translated(
    call: Call, prepared: Prepared, translation: Translation, collector: EventCollector
) -> TranslatedStream:
    return TranslatedStream(
        prepared.dialect,
        translate.stream_reader(prepared.dialect, translation.written.tool_names),
        collector,
        call.request_id,
        translation.asked.estimated_input_tokens,
        client=translation.client,
    )
