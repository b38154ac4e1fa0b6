"""Asks candidates in turn until one answers. After the first event nobody else is asked."""

import asyncio
import codecs
import logging
import math
import random
import time
from collections import deque
from collections.abc import Sequence

from aiohttp import ClientResponse, ClientSession

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import (
    InternalError,
    InvalidRequest,
    LurusError,
    NoHealthyProvider,
    Overloaded,
    Untranslatable,
    UpstreamTimeout,
)
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_client, upstream_request_id
from lurus_dialects.upstream_errors import (
    FailureClass,
    blames_form,
    report,
    translated_error,
    upstream_error,
)
from lurus_routing import metrics
from lurus_routing.call import Call, duration
from lurus_routing.candidate import Candidate
from lurus_routing.gathered import gathered
from lurus_routing.health import ON_TRIAL, Health, Permit
from lurus_routing.outcome import Answered, Failure, begin_stream, counted, refused, whole_answer
from lurus_routing.outgoing import Outgoing, Prepared
from lurus_routing.retry import MAX_TOLD_SECONDS, budget, capped, retry_wait
from lurus_routing.stored import is_passed_on
from lurus_routing.upstream import (
    MAX_BODY_BYTES,
    ConnectionLost,
    header_pairs,
    read_body,
    read_error,
    send,
)

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
EVENT_STREAM = "text/event-stream"


class Attempts:
    """Asks providers on behalf of calls."""

    def __init__(self, session: ClientSession, health: Health) -> None:
        self._session = session
        self._health = health
        self._retry_count = 0

    async def answer(self, call: Call, outgoing: Outgoing) -> Answered:
        """Returns the first answer, or a candidate's refusal in a form that the client may see.

        Raises:
            UpstreamFailed, UpstreamTimeout, UpstreamCredentialRejected: nobody answered.
        Overloaded: this process cannot call anybody now.
            NoHealthyProvider: since the plan was made, every candidate has fallen ill.
            Untranslatable, InvalidRequest: nobody else can be asked this.
        """
        failures: list[Failure] = []
        refusal: LurusError | None = None
        queue = deque(call.plan.candidates)
        held_back: list[Candidate] = []
        while (queue or held_back) and len(call.attempts) < MAX_ATTEMPTS:
            candidate = queue.popleft() if queue else held_back.pop(0)
            try:
                prepared = await outgoing.prepare(candidate)
            except (Untranslatable, InvalidRequest) as error:
                refusal = refusal or error
                continue
            permit = self._begin(call, candidate, is_alone=not queue)
            if permit is ON_TRIAL:
                held_back.append(candidate)
            if not isinstance(permit, Permit):
                continue
            if failures:
                metrics.FAILOVERS.labels(call.attempts[-1].provider_id).inc()
            outcome = await self._attempt(call, candidate, permit, outgoing, prepared)
            if isinstance(outcome, Failure) and not (queue or held_back):
                outcome = await self._again(call, candidate, outgoing, prepared, outcome)
            if isinstance(outcome, Answered):
                return outcome
            failures.append(outcome)
            if outcome.kind is FailureClass.CALLER:
                queue, held_back = _who_may_judge(prepared, outcome, [*queue, *held_back]), []
            elif outcome.kind is FailureClass.MODEL:
                queue, held_back = deque(other for other in [*queue, *held_back] if other.names_model), []
        if refusal is not None and not failures:
            raise refusal
        return self._refusal(call, outgoing.client, failures)

    def _begin(self, call: Call, candidate: Candidate, *, is_alone: bool) -> Permit | str:
        """Returns leave to call a candidate, or the reason to skip it after all, noted in the plan."""
        permit = self._health.begin(
            candidate,
            time.monotonic(),
            call.plan.is_last_resort,
            is_alone=is_alone,
            is_reserve=candidate.key in call.plan.reserve,
        )
        if isinstance(permit, str):
            call.note_skip(candidate, permit)
        return permit

    async def _again(
        self, call: Call, candidate: Candidate, outgoing: Outgoing, prepared: Prepared, failure: Failure
    ) -> Answered | Failure:
        """Makes the last attempt once more, if it was the only one, or its request was never seen."""
        wait = retry_wait(failure, call.attempts[-1].http_status, random.random)
        is_only = len(call.attempts) == 1 or isinstance(failure.error, ConnectionLost)
        may_retry = is_only and len(call.attempts) < MAX_ATTEMPTS and outgoing.may_repeat
        if wait is None or not may_retry or self._retry_count >= budget(self._health.live_count):
            return failure
        self._retry_count += 1
        try:
            if wait:
                await asyncio.sleep(wait)
            permit = self._begin(call, candidate, is_alone=True)
            if isinstance(permit, str):
                return failure
            metrics.RETRIES.labels(candidate.provider_id).inc()
            return await self._attempt(call, candidate, permit, outgoing, prepared)
        finally:
            self._retry_count -= 1

    def _refusal(self, call: Call, client: Dialect | None, failures: Sequence[Failure]) -> Answered:
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
        status, headers, body = failure.status, capped(failure), failure.body
        wait = min(failure.retry_after_seconds, MAX_TOLD_SECONDS) if failure.states_wait else math.inf
        if client is None:
            raise report(status, body, headers, wait).error()
        if failure.dialect is client:
            shown = upstream_error(client, status, headers, body, call.request_id)
        else:
            shown = translated_error(client, status, headers, body, call.request_id, wait)
        return Answered(shown.status, shown.headers, shown.body)

    async def _attempt(
        self, call: Call, candidate: Candidate, permit: Permit, outgoing: Outgoing, prepared: Prepared
    ) -> Answered | Failure:
        started = call.attempt_start = time.monotonic()
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
        self._report(candidate, permit, outgoing, outcome, attempt)
        if isinstance(outcome, Failure):
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
    ) -> Answered | Failure:
        started = time.monotonic()
        deadline = outgoing.deadline(candidate, started)
        outcome: Answered | Failure
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
                prepared.method,
            )
            attempt.http_status = response.status
            outcome = await self._read_begin(call, candidate, outgoing, prepared, response, deadline)
        except Overloaded:
            # Ours, and the same with every provider: nobody's breaker is to learn of it.
            attempt.error_reason = Overloaded.reason
            raise
        except LurusError as error:
            outcome = Failure(FailureClass.TRANSIENT, error)
        except Exception:
            # Nothing is released yet: another provider may do without what is broken.
            log.exception("beginning the answer to %s failed", call.request_id)
            metrics.count_defect(outgoing.client, prepared.dialect)
            outcome = Failure(FailureClass.GATEWAY, InternalError("internal error"))
        if isinstance(outcome, Failure) or not (outcome.watcher or outcome.is_passed_on):
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
    ) -> Answered | Failure:
        headers = header_pairs(response.headers.items())
        call.upstream_request_id = upstream_request_id(headers)
        if not 200 <= response.status < 300:
            return refused(response.status, headers, await read_error(response, call.alarm))
        if outgoing.is_streaming and response.content_type == EVENT_STREAM:
            return await begin_stream(call, outgoing, prepared, response, headers, deadline)
        if prepared.is_gathered and response.content_type == EVENT_STREAM:
            return await gathered(call, prepared, response, headers, candidate.idle_seconds, deadline)
        if is_passed_on(prepared.dialect, call.request.path):
            return Answered(response.status, to_client(headers), b"", is_passed_on=True)
        body = await read_body(response, candidate.idle_seconds, deadline, MAX_BODY_BYTES, call.alarm)
        # Some servers begin JSON with a byte order mark, at which clients and strict readers stumble.
        body = body.removeprefix(codecs.BOM_UTF8)
        if outgoing.counts_only:
            return counted(prepared, response.status, headers, body)
        return whole_answer(call, outgoing, prepared, response.status, headers, body)

    def _report(
        self,
        candidate: Candidate,
        permit: Permit,
        outgoing: Outgoing,
        outcome: Answered | Failure,
        attempt: usage_pb2.Attempt,
    ) -> None:
        now = time.monotonic()
        if isinstance(outcome, Answered):
            # Only of a stream does the time tell something of the provider, rather than of the answer.
            first_event = attempt.first_event_duration.ToNanoseconds() / 1e9 if outcome.watcher else None
            self._health.succeed(permit, now, first_event)
            metrics.of_provider(candidate.provider_id).answered.inc()
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


def _who_may_judge(prepared: Prepared, refusal: Failure, others: Sequence[Candidate]) -> deque[Candidate]:
    """Returns who is still asked after a refusal that blames the caller: mostly nobody (design §6, class D).

    But what was refused may be our own words: if a translated request is refused for its form, for a
    field that we wrote perhaps, a provider that gets the client's own bytes may take them, or refuses
    them in words that the client can act on. A refusal of what the request says, of its length or of
    its content, would be the same elsewhere, and nobody is to look for a provider with laxer rules: it
    is returned. Other translations are not tried, as they would write the same.
    """
    if prepared.translation is None or not blames_form(refusal.status, refusal.body):
        return deque()
    return deque(candidate for candidate in others if candidate.is_relay)


def no_healthy_provider(
    health: Health, candidates: Sequence[Candidate], is_last_resort: bool
) -> NoHealthyProvider:
    """Returns the error that says so, with the time after which the first of them may be asked again."""
    now = time.monotonic()
    seconds = min(health.wait_seconds(candidate.key, now, is_last_resort) for candidate in candidates)
    return NoHealthyProvider(
        "every provider of this model is resting after failures", retry_after_seconds=round(seconds, 1)
    )
