"""Asks candidates in turn until one answers. After the first event nobody else is asked."""

import math
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from aiohttp import ClientResponse, ClientSession

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import (
    InvalidRequest,
    LurusError,
    NoHealthyProvider,
    Untranslatable,
    UpstreamCredentialRejected,
    UpstreamFailed,
    UpstreamTimeout,
)
from lurus_dialects import loose, translate
from lurus_dialects.body import BodyUsage, body_usage
from lurus_dialects.counting import count_answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import of_translated_answer, to_client, upstream_request_id
from lurus_dialects.translated import TranslatedStream, TypedWriter, state_tokens, typed_body
from lurus_dialects.upstream_errors import (
    FailureClass,
    failure_class,
    report,
    stream_error_status,
    translated_error,
    upstream_error,
)
from lurus_dialects.watch import StreamWatcher
from lurus_routing import metrics
from lurus_routing.call import Call, duration
from lurus_routing.candidate import Candidate
from lurus_routing.health import Health, Permit
from lurus_routing.outgoing import Outgoing, Prepared, Translation
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
MAX_LOSSY_PATH_CHARACTERS = 128
MAX_LOSSY_CHARACTERS = 2000
_ODD = re.compile(r"[^!-+\--~]")


@dataclass(slots=True)
class Answered:
    """An answer that may be released: its head, and a whole body or the begin of a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    # Set for a stream only; its response is the call's then.
    watcher: StreamWatcher | TranslatedStream | None = None


@dataclass(slots=True)
class _Failure:
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


class Attempts:
    """Asks providers on behalf of calls."""

    def __init__(self, session: ClientSession, health: Health) -> None:
        self._session = session
        self._health = health

    async def answer(self, call: Call, outgoing: Outgoing) -> Answered:
        """Returns the first answer, or a candidate's refusal in a form that the client may see.

        Raises:
            UpstreamFailed, UpstreamTimeout, UpstreamCredentialRejected: nobody answered.
            NoHealthyProvider: since the plan was made, every candidate has fallen ill.
            Untranslatable, InvalidRequest: nobody else can be asked this.
        """
        failures: list[_Failure] = []
        refusal: LurusError | None = None
        queue = deque(call.plan.candidates)
        has_retried = False
        while queue and len(call.attempts) < MAX_ATTEMPTS:
            candidate = queue.popleft()
            try:
                prepared = outgoing.prepare(candidate)
            except (Untranslatable, InvalidRequest) as error:
                refusal = refusal or error
                continue
            permit = self._health.begin(candidate, time.monotonic(), call.plan.is_last_resort)
            if permit is None:
                continue
            if failures:
                metrics.FAILOVERS.labels(call.attempts[-1].provider_id).inc()
            outcome = await self._attempt(call, candidate, permit, outgoing, prepared)
            if isinstance(outcome, Answered):
                return outcome
            failures.append(outcome)
            if outcome.kind is FailureClass.CALLER:
                break
            if not queue and not has_retried and isinstance(outcome.error, ConnectionLost):
                # A pooled connection that the provider had closed: it never saw the request.
                has_retried = True
                queue.append(candidate)
        if refusal is not None and not failures:
            raise refusal
        return self._refusal(call, outgoing.client, failures)

    def _refusal(self, call: Call, client: Dialect | None, failures: Sequence[_Failure]) -> Answered:
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
        status, headers, body = failure.status, failure.headers, failure.body
        if client is None:
            raise report(status, body, headers, failure.retry_after_seconds).error()
        if failure.dialect is client:
            shown = upstream_error(client, status, headers, body, call.request_id)
        else:
            wait = failure.retry_after_seconds
            shown = translated_error(client, status, headers, body, call.request_id, wait)
        return Answered(shown.status, shown.headers, shown.body)

    async def _attempt(
        self, call: Call, candidate: Candidate, permit: Permit, outgoing: Outgoing, prepared: Prepared
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
        outcome = await self._try(call, candidate, outgoing, prepared, attempt)
        attempt.total_duration.CopyFrom(duration(time.monotonic() - started))
        self._report(candidate, permit, outgoing, outcome)
        if isinstance(outcome, _Failure):
            attempt.error_reason = outcome.error.reason
            outcome.dialect = prepared.dialect
            self._health.end(permit)
        return outcome

    async def _try(
        self,
        call: Call,
        candidate: Candidate,
        outgoing: Outgoing,
        prepared: Prepared,
        attempt: usage_pb2.Attempt,
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
                prepared.dialect,
                prepared.target,
                prepared.headers,
                prepared.body,
                deadline,
                call.alarm,
            )
            attempt.http_status = response.status
            outcome = await self._read_begin(call, candidate, outgoing, prepared, response, deadline)
        except LurusError as error:
            outcome = _Failure(FailureClass.TRANSIENT, error)
        if isinstance(outcome, _Failure) or outcome.watcher is None:
            call.close_upstream()
            call.response = None
        if isinstance(outcome, Answered):
            attempt.first_event_duration.CopyFrom(duration(time.monotonic() - started))
        return outcome

    async def _read_begin(
        self,
        call: Call,
        candidate: Candidate,
        outgoing: Outgoing,
        prepared: Prepared,
        response: ClientResponse,
        deadline: float,
    ) -> Answered | _Failure:
        headers = header_pairs(response.headers.items())
        call.upstream_request_id = upstream_request_id(headers)
        if not 200 <= response.status < 300:
            return _refused(response.status, headers, await read_error(response, call.alarm))
        if outgoing.is_streaming and response.content_type == EVENT_STREAM:
            return await _begin_stream(call, outgoing, prepared, response, headers, deadline)
        body = await read_body(response, candidate.idle_seconds, deadline, MAX_BODY_BYTES, call.alarm)
        if outgoing.counts_only:
            return _counted(prepared, response.status, headers, body)
        return _whole(call, outgoing, prepared, response.status, headers, body)

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
    prepared: Prepared,
    response: ClientResponse,
    headers: list[tuple[str, str]],
    deadline: float,
) -> Answered | _Failure:
    watcher = _watcher(call, outgoing, prepared)
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
    passed = _shown_headers(call, prepared, headers, is_streaming=True)
    return Answered(response.status, passed, released, watcher)


def _watcher(call: Call, outgoing: Outgoing, prepared: Prepared) -> StreamWatcher | TranslatedStream:
    translation = prepared.translation
    if translation is None:
        return StreamWatcher(prepared.dialect, outgoing.strips_usage)
    asked, client = translation.asked, translation.client
    return TranslatedStream(
        prepared.dialect,
        translate.stream_reader(prepared.dialect, translation.written.tool_names),
        TypedWriter() if client is None else translate.stream_writer(client, asked),
        call.request_id,
        asked.estimated_input_tokens,
    )


def _shown_headers(
    call: Call, prepared: Prepared, headers: list[tuple[str, str]], *, is_streaming: bool
) -> list[tuple[str, str]]:
    """The provider's headers that the client gets, and which fields were lost."""
    if prepared.translation is None:
        return to_client(headers)
    call.lossy_fields = prepared.translation.lossy_fields
    passed = of_translated_answer(headers, is_streaming=is_streaming)
    if lossy := lossy_header(call.lossy_fields):
        passed.append(("x-lurus-lossy", lossy))
    return passed


def _refused(status: int, headers: list[tuple[str, str]], body: bytes) -> _Failure:
    kind = failure_class(status, body, headers)
    error: LurusError = UpstreamFailed(f"the provider answered {status}")
    if kind is FailureClass.CREDENTIAL:
        error = UpstreamCredentialRejected("the provider refused the gateway's credential")
    return _Failure(kind, error, status, headers, body)


def _whole(
    call: Call,
    outgoing: Outgoing,
    prepared: Prepared,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
) -> Answered | _Failure:
    found = body_usage(prepared.dialect, body)
    if found.is_error:
        return _refused(stream_error_status(found.error_body), headers, body)
    if not found.is_answer or outgoing.is_streaming:
        # A stream was asked for: one object instead would leave the client waiting for its events.
        return _nonsense(headers)
    if prepared.translation is not None:
        translated = _translated_body(prepared.dialect, prepared.translation, found, body)
        if translated is None:
            return _nonsense(headers)
        body = translated
    call.answer = found
    return Answered(status, _shown_headers(call, prepared, headers, is_streaming=False), body)


def _translated_body(
    dialect: Dialect, translation: Translation, found: BodyUsage, body: bytes
) -> bytes | None:
    """Returns a provider's answer as the client's, None if it is none after all."""
    events = translate.read_body(dialect, body, translation.written.tool_names)
    if not events or not events[-1].HasField("finish"):
        return None
    state_tokens(events[-1].finish, found, translation.asked.estimated_input_tokens)
    if translation.client is None:
        return typed_body(events)
    return translate.write_body(translation.client, events, translation.asked)


def lossy_header(paths: Sequence[str]) -> str:
    """Returns the value of `x-lurus-lossy`. A client's own words may be in it: what is odd is replaced."""
    plain = [_ODD.sub("?", path)[:MAX_LOSSY_PATH_CHARACTERS] for path in paths]
    return ",".join(plain)[:MAX_LOSSY_CHARACTERS]


def _counted(
    prepared: Prepared, status: int, headers: list[tuple[str, str]], body: bytes
) -> Answered | _Failure:
    count = loose.decode(body)
    if not isinstance(count, dict) or not isinstance(count.get("input_tokens"), int):
        return _nonsense(headers)
    if prepared.translation is not None:
        body = count_answer(prepared.translation.client, count["input_tokens"])
        return Answered(status, of_translated_answer(headers, is_streaming=False), body)
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
