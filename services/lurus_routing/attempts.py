"""Asks candidates in turn until one answers. After the first event nobody else is asked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import ClientResponse, ClientSession

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import LurusError, UpstreamCredentialRejected, UpstreamFailed, UpstreamTimeout
from lurus_dialects.body import body_usage
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_client, upstream_request_id
from lurus_dialects.upstream_errors import FailureClass, failure_class, stream_error_status, upstream_error
from lurus_dialects.watch import StreamWatcher
from lurus_routing import metrics
from lurus_routing.call import Call, duration
from lurus_routing.health import Health
from lurus_routing.plan import Candidate
from lurus_routing.upstream import (
    MAX_BODY_BYTES,
    ConnectionLost,
    header_pairs,
    read_body,
    read_chunk,
    read_error,
    send,
)

MAX_ATTEMPTS = 3
EVENT_STREAM = "text/event-stream"


@dataclass(slots=True)
class Answered:
    """An answer that may be released: its head, and a whole body or the begin of a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    # Set for a stream only; its response is the call's then.
    watcher: StreamWatcher | None = None


@dataclass(slots=True)
class _Failure:
    """An attempt that failed before its first event."""

    kind: FailureClass
    error: LurusError
    status: int = 0
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent, whoever it is sent to; the model's name is put in for each candidate."""

    dialect: Dialect
    target: str
    headers: list[tuple[str, str]]
    is_streaming: bool
    strips_usage: bool
    total_seconds: float
    # Count requests tell nothing about a model's health and are never charged.
    counts_only: bool = False


# Gives the body for a candidate: the client's bytes with the model's name replaced.
BodyFor = Callable[[Candidate], bytes]


class Attempts:
    """Asks providers on behalf of calls."""

    def __init__(self, session: ClientSession, health: Health) -> None:
        self._session = session
        self._health = health

    async def answer(self, call: Call, outgoing: Outgoing, bodies: BodyFor) -> Answered:
        """Returns the first answer, or the last candidate's refusal in a form that the client may see.

        Raises:
            UpstreamFailed, UpstreamTimeout, UpstreamCredentialRejected: nobody answered.
        """
        failure: _Failure | None = None
        queue = call.plan.candidates[:MAX_ATTEMPTS]
        retried = False
        while queue:
            candidate = queue.pop(0)
            outcome = await self._attempt(call, candidate, outgoing, bodies(candidate))
            if isinstance(outcome, Answered):
                return outcome
            failure = outcome
            if failure.kind is FailureClass.CALLER:
                break
            if not queue and not retried and isinstance(failure.error, ConnectionLost):
                # A pooled connection that the provider had closed: it never saw the request.
                queue, retried = [candidate], True
            elif queue:
                metrics.FAILOVERS.labels(candidate.provider_id).inc()
        return self._refusal(call, outgoing.dialect, failure)

    def _refusal(self, call: Call, dialect: Dialect, failure: _Failure | None) -> Answered:
        if failure is None:
            raise UpstreamFailed("no candidate was asked", attempt_count=0)
        call.terminal = usage_pb2.TERMINAL_UPSTREAM_ERROR
        call.error_reason = failure.error.reason
        if isinstance(failure.error, UpstreamTimeout):
            call.terminal = usage_pb2.TERMINAL_TIMEOUT
        if not failure.status:
            failure.error.metadata["attempt_count"] = str(len(call.attempts))
            raise failure.error
        shown = upstream_error(dialect, failure.status, failure.headers, failure.body, call.request_id)
        return Answered(shown.status, shown.headers, shown.body)

    async def _attempt(
        self, call: Call, candidate: Candidate, outgoing: Outgoing, body: bytes
    ) -> Answered | _Failure:
        started = time.monotonic()
        call.candidate = candidate
        attempt = usage_pb2.Attempt(
            provider_id=candidate.provider_id,
            credential_id=candidate.credential_id,
            upstream_model=candidate.upstream_model,
        )
        call.attempts.append(attempt)
        self._health.start(candidate.key, started)
        has_reported = False
        try:
            outcome = await self._try(call, candidate, outgoing, body, attempt)
            attempt.total_duration.CopyFrom(duration(time.monotonic() - started))
            self._report(candidate, outgoing, outcome, attempt)
            has_reported = True
            return outcome
        finally:
            if not has_reported:  # the client left
                self._health.abandon(candidate.key)

    async def _try(
        self, call: Call, candidate: Candidate, outgoing: Outgoing, body: bytes, attempt: usage_pb2.Attempt
    ) -> Answered | _Failure:
        started = time.monotonic()
        # A plain answer may take minutes before its first byte.
        seconds = candidate.first_event_seconds if outgoing.is_streaming else outgoing.total_seconds
        try:
            call.response = response = await send(
                self._session, candidate, outgoing.dialect, outgoing.target, outgoing.headers, body, seconds
            )
            attempt.http_status = response.status
            outcome = await self._read_begin(call, candidate, outgoing, response, started + seconds)
        except LurusError as error:
            outcome = _Failure(FailureClass.TRANSIENT, error)
        if isinstance(outcome, _Failure) or outcome.watcher is None:
            call.close_upstream()
            call.response = None
        if isinstance(outcome, Answered):
            attempt.first_event_duration.CopyFrom(duration(time.monotonic() - started))
        return outcome

    async def _read_begin(
        self, call: Call, candidate: Candidate, outgoing: Outgoing, response: ClientResponse, deadline: float
    ) -> Answered | _Failure:
        headers = header_pairs(response.headers.items())
        call.upstream_request_id = upstream_request_id(headers)
        if not 200 <= response.status < 300:
            body = await read_error(response, candidate.idle_seconds)
            return _refused(response.status, headers, body)
        if outgoing.is_streaming and response.content_type == EVENT_STREAM:
            return await self._begin_stream(call, candidate, outgoing, response, headers, deadline)
        body = await read_body(response, candidate.idle_seconds, deadline, MAX_BODY_BYTES)
        return _whole(call, outgoing, response.status, headers, body)

    async def _begin_stream(
        self,
        call: Call,
        candidate: Candidate,
        outgoing: Outgoing,
        response: ClientResponse,
        headers: list[tuple[str, str]],
        deadline: float,
    ) -> Answered | _Failure:
        watcher = StreamWatcher(outgoing.dialect, outgoing.strips_usage)
        released = b""
        while not released:
            chunk = await read_chunk(response, deadline)
            released = watcher.feed(chunk) if chunk else watcher.finish()
            if not chunk and not released:
                return _Failure(FailureClass.TRANSIENT, UpstreamFailed("the provider's stream is empty"))
        if watcher.error_seen and not watcher.content_seen:
            status = stream_error_status(watcher.error_body)
            return _refused(status, headers, watcher.error_body)
        call.answer, call.is_answered = watcher, True
        return Answered(response.status, to_client(headers), released, watcher)

    def _report(
        self,
        candidate: Candidate,
        outgoing: Outgoing,
        outcome: Answered | _Failure,
        attempt: usage_pb2.Attempt,
    ) -> None:
        now = time.monotonic()
        if isinstance(outcome, Answered):
            self._health.succeed(candidate.key, now)
            metrics.ATTEMPTS.labels(candidate.provider_id, "answered").inc()
            return
        attempt.error_reason = outcome.error.reason
        metrics.ATTEMPTS.labels(candidate.provider_id, outcome.kind.value).inc()
        if outcome.kind is FailureClass.CREDENTIAL:
            self._health.refuse_credential(candidate.key[:2], now, outcome.status)
        elif outcome.kind is FailureClass.THROTTLE:
            self._health.throttle(candidate.key[:2], now, _retry_after(outcome.headers))
        if outcome.kind is FailureClass.TRANSIENT and not outgoing.counts_only:
            self._health.fail(candidate.key, now)
        else:
            self._health.abandon(candidate.key)


def _refused(status: int, headers: list[tuple[str, str]], body: bytes) -> _Failure:
    kind = failure_class(status, body, headers)
    error: LurusError = UpstreamFailed(f"the provider answered {status}")
    if kind is FailureClass.CREDENTIAL:
        error = UpstreamCredentialRejected("the provider refused the gateway's credential")
    return _Failure(kind, error, status, headers, body)


def _whole(
    call: Call, outgoing: Outgoing, status: int, headers: list[tuple[str, str]], body: bytes
) -> Answered | _Failure:
    if outgoing.counts_only:
        return Answered(status, to_client(headers), body)
    found = body_usage(outgoing.dialect, body)
    if found.is_error:
        return _refused(stream_error_status(found.error_body), headers, body)
    if not found.is_answer or outgoing.is_streaming:
        # A stream was asked for: one object instead would leave the client waiting for its events.
        error = UpstreamFailed("the provider answered with something else than was asked for")
        return _Failure(FailureClass.TRANSIENT, error, 502, headers, b"")
    call.answer, call.is_answered = found, True
    return Answered(status, to_client(headers), body)


def _retry_after(headers: Sequence[tuple[str, str]]) -> float | None:
    for name, value in headers:
        try:
            if name == "retry-after-ms":
                return float(value) / 1000
            if name == "retry-after":
                return float(value)
        except ValueError:
            continue
    return None
