"""A stream on its way from the provider to the client, event by event.

The bytes pass as they are. Added are heartbeats while the provider is silent,
and the error event of a stream that cannot be completed. Before the terminal
event is released, the usage row is durable.
"""

import logging
import time
from collections.abc import AsyncIterator

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InternalError, LurusError, UpstreamCut, UpstreamFailed, UpstreamTimeout
from lurus_common.settings import Settings
from lurus_dialects.translated import TranslatedStream
from lurus_dialects.upstream_errors import stream_error_status
from lurus_dialects.watch import StreamWatcher
from lurus_routing import metrics
from lurus_routing.call import Call
from lurus_routing.health import Health
from lurus_routing.outcome import Answered
from lurus_routing.settlement import Settlement
from lurus_routing.upstream import read_chunk

log = logging.getLogger(__name__)

# After the terminal event a provider may still close its stream in order.
AFTER_END_SECONDS = 1.0


class Release:
    """What may be released of one stream, piece by piece."""

    def __init__(
        self,
        call: Call,
        begin: bytes,
        watcher: StreamWatcher | TranslatedStream,
        settings: Settings,
        health: Health,
        settlement: Settlement,
    ) -> None:
        if call.candidate is None or call.response is None:
            raise AssertionError("a stream has its candidate and its response")
        self._call = call
        self._begin = begin
        self._watcher = watcher
        self._response = call.response
        self._client = call.endpoint.dialect if call.endpoint is not None else None
        self._idle_seconds = call.candidate.idle_seconds
        self._heartbeat_seconds = settings.heartbeat_seconds
        self._total_until = call.attempt_start + call.candidate.stream_total_seconds
        self._health = health
        self._settlement = settlement
        self._heard = self._released = time.monotonic()
        self._is_ended = False

    async def next(self) -> bytes:
        """Returns what may be released next, empty at the end.

        Who stops waiting loses nothing: what has not been returned is still there.
        """
        call = self._call
        call.waits_for_client_since = None
        released, self._begin = self._begin, b""
        while not released and not self._is_ended:
            released = await self._advance()
        if released:
            call.note_release(len(released))
        if call.settled is None and (self._is_ended or self._watcher.is_over):
            self._note_end()
            await self._settlement.settle_durably(call)
        self._released = call.waits_for_client_since = time.monotonic()
        return released

    async def read_on(self) -> None:
        """Reads to the answer's end without releasing anything: its client has left.

        Raises:
            UpstreamTimeout: the provider is silent for too long.
            UpstreamFailed: the connection broke.
        """
        self._call.waits_for_client_since = None
        watcher = self._watcher
        while not watcher.is_over:
            until = min(time.monotonic() + self._idle_seconds, self._total_until)
            chunk = await read_chunk(self._response, until, self._call.alarm)
            if not chunk:
                watcher.finish()
                return
            watcher.feed(chunk)

    def _note_end(self) -> None:
        """The provider has ended its answer, in its own words."""
        call, watcher = self._call, self._watcher
        call.terminal = finished(watcher.stop_reason)
        if watcher.error_seen:
            call.terminal = usage_pb2.TERMINAL_UPSTREAM_ERROR
            call.error_reason = UpstreamFailed.reason
            if call.permit is not None and stream_error_status(watcher.error_body) >= 500:
                self._health.fail(call.permit, time.monotonic())

    async def _advance(self) -> bytes:
        """Reads once. Returns what that allows to release, perhaps nothing."""
        watcher = self._watcher
        try:
            until = self._silent_until()
            # Nothing may follow the terminal event, not even a heartbeat.
            beat = until if watcher.is_over else self._released + self._heartbeat_seconds
            try:
                chunk = await read_chunk(self._response, min(beat, until), self._call.alarm)
            except UpstreamTimeout:
                if time.monotonic() >= until:
                    raise
                # Also if there is nothing to say: the next one is due only then.
                self._released = time.monotonic()
                return watcher.heartbeat()
            if chunk:
                self._heard = time.monotonic()
                return watcher.feed(chunk)
            return await self._end()
        except LurusError as error:
            self._is_ended = True
            return b"" if watcher.is_over else await self._break(self._call.cut_by or error)
        except Exception:
            # A defect of ours. The client is told in its own dialect all the same, and pays for what it got.
            log.exception("answering %s failed", self._call.request_id)
            metrics.count_defect(self._client, watcher.dialect)
            self._is_ended = True
            return b"" if watcher.is_over else await self._break(InternalError("internal error"))

    def _silent_until(self) -> float:
        """Returns until when the provider may say nothing, in the loop's clock."""
        silence = AFTER_END_SECONDS if self._watcher.is_over else self._idle_seconds
        return min(self._heard + silence, self._total_until)

    async def _end(self) -> bytes:
        """The provider has closed its stream. Returns what may be released yet."""
        watcher = self._watcher
        was_over = watcher.is_over
        tail = watcher.finish()
        self._is_ended = True
        if was_over:
            return b""
        if watcher.is_over or watcher.terminal_ok:
            return tail
        cut = UpstreamCut("the provider ended its stream before its answer was complete")
        return tail + await self._break(cut)

    async def _break(self, error: LurusError) -> bytes:
        """Settles a stream that cannot be completed; returns the event that says so."""
        call = self._call
        is_timeout = isinstance(error, UpstreamTimeout)
        call.terminal = usage_pb2.TERMINAL_TIMEOUT if is_timeout else usage_pb2.TERMINAL_TRUNCATED
        call.error_reason = error.reason
        now = time.monotonic()
        is_ours = call.cut_by is not None or isinstance(error, InternalError)
        if call.permit is not None and not is_ours and now < self._total_until and call.settled is None:
            self._health.fail(call.permit, now)
        event = self._watcher.stream_error(error.reason, error.message, call.request_id)
        await self._settlement.settle_durably(call)
        return event


async def whole(call: Call, answered: Answered, settings: Settings) -> AsyncIterator[bytes]:
    """Gives an answer that is no stream: at once, or one that may have any size as it comes.

    Raises:
        UpstreamTimeout, UpstreamFailed: it broke off.
    """
    if not answered.is_passed_on:
        yield answered.body
        return
    response, candidate = call.response, call.candidate
    if response is None or candidate is None:
        raise AssertionError("what is passed on has its candidate and its response")
    call.terminal = usage_pb2.TERMINAL_CLIENT_GONE
    total_until = call.start + settings.stream_total_seconds
    try:
        while True:
            until = min(time.monotonic() + candidate.idle_seconds, total_until)
            chunk = await read_chunk(response, until, call.alarm)
            if not chunk:
                break
            call.note_release(len(chunk))
            call.waits_for_client_since = time.monotonic()
            yield chunk
            call.waits_for_client_since = None
    except LurusError as error:
        raise call.cut_by or error from error
    call.terminal = usage_pb2.TERMINAL_COMPLETE


def finished(stop_reason: str) -> "usage_pb2.Terminal.ValueType":
    """Returns how an answer ended that its provider has finished."""
    is_incomplete = stop_reason in _INCOMPLETE_REASONS
    return usage_pb2.TERMINAL_INCOMPLETE if is_incomplete else usage_pb2.TERMINAL_COMPLETE


_INCOMPLETE_REASONS = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "content_filter",
        "refusal",
        "model_context_window_exceeded",
    }
)
