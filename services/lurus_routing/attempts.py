"""Asks candidates in turn until one answers. After the first event nobody else is asked."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from aiohttp import ClientResponse, ClientSession

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import (
    LurusError,
    NoHealthyProvider,
    UpstreamCredentialRejected,
    UpstreamFailed,
    UpstreamTimeout,
)
from lurus_dialects import loose
from lurus_dialects.body import body_usage
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_client, upstream_request_id
from lurus_dialects.upstream_errors import FailureClass, failure_class, stream_error_status, upstream_error
from lurus_dialects.watch import StreamWatcher
from lurus_routing import metrics
from lurus_routing.call import Call, duration
from lurus_routing.candidate import Candidate
from lurus_routing.health import Health, Permit
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

    @property
    def retry_after_seconds(self) -> float:
        """What the provider asks to wait; infinite if it says nothing."""
        return _retry_after(self.headers, time.time())


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
        """Returns the first answer, or a candidate's refusal in a form that the client may see.

        Raises:
            UpstreamFailed, UpstreamTimeout, UpstreamCredentialRejected: nobody answered.
            NoHealthyProvider: since the plan was made, every candidate has fallen ill.
        """
        failures: list[_Failure] = []
        queue = deque(call.plan.candidates)
        has_retried = False
        while queue and len(call.attempts) < MAX_ATTEMPTS:
            candidate = queue.popleft()
            permit = self._health.begin(candidate, time.monotonic(), call.plan.is_last_resort)
            if permit is None:
                continue
            if failures:
                metrics.FAILOVERS.labels(call.attempts[-1].provider_id).inc()
            outcome = await self._attempt(call, candidate, permit, outgoing, bodies)
            if isinstance(outcome, Answered):
                return outcome
            failures.append(outcome)
            if outcome.kind is FailureClass.CALLER:
                break
            if not queue and not has_retried and isinstance(outcome.error, ConnectionLost):
                # A pooled connection that the provider had closed: it never saw the request.
                has_retried = True
                queue.append(candidate)
        return self._refusal(call, outgoing.dialect, failures)

    def _refusal(self, call: Call, dialect: Dialect, failures: Sequence[_Failure]) -> Answered:
        if not failures:
            raise no_healthy_provider(self._health, call.plan.candidates, call.plan.is_last_resort)
        failure = failures[-1]
        if all(failure.kind is FailureClass.THROTTLE for failure in failures):
            failure = min(failures, key=lambda failure: failure.retry_after_seconds)
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
        self, call: Call, candidate: Candidate, permit: Permit, outgoing: Outgoing, bodies: BodyFor
    ) -> Answered | _Failure:
        started = time.monotonic()
        call.candidate, call.permit = candidate, permit
        attempt = usage_pb2.Attempt(
            provider_id=candidate.provider_id,
            credential_id=candidate.credential_id,
            upstream_model=candidate.upstream_model,
        )
        call.attempts.append(attempt)
        # Cancelled in here, the call ends its permit and closes its response itself.
        outcome = await self._try(call, candidate, outgoing, bodies(candidate), attempt)
        attempt.total_duration.CopyFrom(duration(time.monotonic() - started))
        self._report(candidate, permit, outgoing, outcome)
        if isinstance(outcome, _Failure):
            attempt.error_reason = outcome.error.reason
            self._health.end(permit)
        return outcome

    async def _try(
        self, call: Call, candidate: Candidate, outgoing: Outgoing, body: bytes, attempt: usage_pb2.Attempt
    ) -> Answered | _Failure:
        started = time.monotonic()
        # A plain answer may take minutes before its first byte.
        deadline = started + (
            candidate.first_event_seconds if outgoing.is_streaming else outgoing.total_seconds
        )
        outcome: Answered | _Failure
        try:
            call.response = response = await send(
                self._session,
                candidate,
                outgoing.dialect,
                outgoing.target,
                outgoing.headers,
                body,
                deadline,
                call.alarm,
            )
            attempt.http_status = response.status
            outcome = await self._read_begin(call, candidate, outgoing, response, deadline)
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
            return _refused(response.status, headers, await read_error(response, call.alarm))
        if outgoing.is_streaming and response.content_type == EVENT_STREAM:
            return await _begin_stream(call, outgoing, response, headers, deadline)
        body = await read_body(response, candidate.idle_seconds, deadline, MAX_BODY_BYTES, call.alarm)
        if outgoing.counts_only:
            return _counted(response.status, headers, body)
        return _whole(call, outgoing, response.status, headers, body)

    def _report(
        self, candidate: Candidate, permit: Permit, outgoing: Outgoing, outcome: Answered | _Failure
    ) -> None:
        now = time.monotonic()
        if isinstance(outcome, Answered):
            self._health.succeed(permit, now)
            metrics.ATTEMPTS.labels(candidate.provider_id, "answered").inc()
            return
        metrics.ATTEMPTS.labels(candidate.provider_id, outcome.kind.value).inc()
        if outcome.kind is FailureClass.CREDENTIAL:
            self._health.refuse_credential(candidate.key[:2], now, outcome.status)
        elif outcome.kind is FailureClass.THROTTLE:
            seconds = outcome.retry_after_seconds
            self._health.throttle(candidate.key[:2], now, None if math.isinf(seconds) else seconds)
        if outcome.kind is FailureClass.TRANSIENT and not outgoing.counts_only:
            self._health.fail(permit, now)
        else:
            self._health.abandon(permit)


def no_healthy_provider(
    health: Health, candidates: Sequence[Candidate], is_last_resort: bool
) -> NoHealthyProvider:
    """Returns the error that says so, with the time after which the first of them may be asked again."""
    now = time.monotonic()
    seconds = min(health.wait_seconds(candidate.key, now, is_last_resort) for candidate in candidates)
    return NoHealthyProvider(
        "every provider of this model is resting after failures", retry_after_seconds=round(seconds, 1)
    )


async def _begin_stream(
    call: Call,
    outgoing: Outgoing,
    response: ClientResponse,
    headers: list[tuple[str, str]],
    deadline: float,
) -> Answered | _Failure:
    watcher = StreamWatcher(outgoing.dialect, outgoing.strips_usage)
    released = b""
    while not released:
        chunk = await read_chunk(response, deadline, call.alarm)
        released = watcher.feed(chunk) if chunk else watcher.finish()
        if not chunk and not released:
            return _Failure(FailureClass.TRANSIENT, UpstreamFailed("the provider's stream is empty"))
    if watcher.error_seen and not watcher.content_seen:
        status = stream_error_status(watcher.error_body)
        return _refused(status, headers, watcher.error_body)
    call.answer = watcher
    return Answered(response.status, to_client(headers), released, watcher)


def _refused(status: int, headers: list[tuple[str, str]], body: bytes) -> _Failure:
    kind = failure_class(status, body, headers)
    error: LurusError = UpstreamFailed(f"the provider answered {status}")
    if kind is FailureClass.CREDENTIAL:
        error = UpstreamCredentialRejected("the provider refused the gateway's credential")
    return _Failure(kind, error, status, headers, body)


def _whole(
    call: Call, outgoing: Outgoing, status: int, headers: list[tuple[str, str]], body: bytes
) -> Answered | _Failure:
    found = body_usage(outgoing.dialect, body)
    if found.is_error:
        return _refused(stream_error_status(found.error_body), headers, body)
    if not found.is_answer or outgoing.is_streaming:
        # A stream was asked for: one object instead would leave the client waiting for its events.
        return _nonsense(headers)
    call.answer = found
    return Answered(status, to_client(headers), body)


def _counted(status: int, headers: list[tuple[str, str]], body: bytes) -> Answered | _Failure:
    count = loose.decode(body)
    if not isinstance(count, dict) or not isinstance(count.get("input_tokens"), int):
        return _nonsense(headers)
    return Answered(status, to_client(headers), body)


def _nonsense(headers: list[tuple[str, str]]) -> _Failure:
    error = UpstreamFailed("the provider answered with something else than was asked for")
    return _Failure(FailureClass.TRANSIENT, error, 502, headers, b"")


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
