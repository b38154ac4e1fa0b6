"""The facts of one request, from arrival to its usage event."""

import hashlib
import re
import time
from collections.abc import Mapping

import msgspec
from aiohttp import ClientResponse
from google.protobuf.duration_pb2 import Duration

from lurus.billing.v1.billing_pb2 import KeyGrant
from lurus.routing.v1.routing_pb2 import RelayEnd, RelayRequest
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.ids import new_id
from lurus_common.money import Tokens, cost
from lurus_dialects.answer import Answer
from lurus_dialects.request import Peek
from lurus_routing.leases import Reservation
from lurus_routing.plan import Candidate, Plan
from lurus_routing.pricing import DatedPrice, PriceList

MAX_TEXT = 256
MAX_DECISION_CANDIDATES = 20
INCOMPLETE_REASONS = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "content_filter",
        "refusal",
        "model_context_window_exceeded",
    }
)
_SESSION_HEADERS = ("x-claude-code-session-id", "session-id")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class Call:
    """One request. Filled in as it goes on; `event` may be asked for at any moment."""

    def __init__(self, request: RelayRequest, worker_id: str) -> None:
        self.request_id = new_id("req")
        self.request = request
        self.start_ns = time.time_ns()
        self.start = time.monotonic()
        self.headers = {header.name: header.value for header in request.headers}
        self.grant = KeyGrant()
        self.peeked: Peek | None = None
        self.prices = PriceList(())
        self.plan = Plan([], [])
        self.reservation: Reservation | None = None
        self.has_intent = False
        self.settled: UsageEvent | None = None
        self.response: ClientResponse | None = None
        self.candidate: Candidate | None = None
        self.answer: Answer | None = None
        self.attempts: list[usage_pb2.Attempt] = []
        self.http_status = 0
        self.response_bytes = 0
        self.first_event_seconds: float | None = None
        self.terminal: usage_pb2.Terminal.ValueType = usage_pb2.TERMINAL_REFUSED
        self.error_reason = ""
        self.is_answered = False
        self.upstream_request_id = ""
        self.checkpointed_bytes = 0
        self._worker_id = worker_id

    @property
    def model(self) -> str:
        """The model that the client asked for, or an empty string."""
        return self.peeked.model if self.peeked else ""

    @property
    def is_streaming(self) -> bool:
        """Whether the client asked for a stream."""
        return self.peeked is not None and self.peeked.is_streaming

    def session(self) -> str:
        """What the client's session is known by, scoped to its account; empty if it has none."""
        hint = self._session_hint()
        return f"{self.grant.account_id}/{hint}" if hint else ""

    def _session_hint(self) -> str:
        stated = next((self.headers[name] for name in _SESSION_HEADERS if self.headers.get(name)), b"")
        text = stated.decode("latin-1")
        if self.peeked and not text:
            text = self.peeked.prompt_cache_key or self.peeked.user_id
        if not text or _PLAIN_ID.match(text):
            return text
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def note_release(self, size: int) -> None:
        """Counts bytes on their way to the client."""
        if self.first_event_seconds is None:
            self.first_event_seconds = time.monotonic() - self.start
        self.response_bytes += size

    def tokens(self) -> tuple[Tokens, "usage_pb2.TokenSource.ValueType"]:
        """Returns what is to be charged for, and where the counts come from.

        The provider's final numbers count, even explicit zeros. Of an answer
        that was cut, input as stated and output as stated or as seen, whichever
        is more. Nothing, if the provider failed before any content.
        """
        answer = self.answer
        if answer is None or not self.is_answered:
            return Tokens(), usage_pb2.TOKEN_SOURCE_UNSPECIFIED
        if answer.final_usage_seen:
            return answer.tokens, usage_pb2.TOKEN_SOURCE_PROVIDER
        if self.terminal in _FAILED and not answer.content_seen:
            return Tokens(), usage_pb2.TOKEN_SOURCE_UNSPECIFIED
        tokens = answer.tokens
        tokens.output = max(tokens.output, answer.estimated_output_tokens())
        if answer.usage_seen:
            return tokens, usage_pb2.TOKEN_SOURCE_PARTIAL
        if self.peeked:
            tokens.input = self.peeked.estimated_input_tokens()
        return tokens, usage_pb2.TOKEN_SOURCE_ESTIMATED

    def price(self) -> DatedPrice | None:
        """The price in effect when the request arrived."""
        if self.candidate is None:
            return None
        provider_id, _, upstream_model = self.candidate.key
        return self.prices.find(provider_id, upstream_model, self.model, self.start_ns)

    def event(self) -> UsageEvent:
        """Returns what is known now, as a usage event."""
        tokens, source = self.tokens()
        price = self.price()
        event = UsageEvent(
            request_id=self.request_id,
            account_id=self.grant.account_id,
            key_id=self.grant.key_id,
            dialect=self.request.dialect,
            path=self.request.path[:MAX_TEXT],
            is_streaming=self.is_streaming,
            model=self.model,
            tokens=_token_message(tokens),
            token_source=source,
            terminal=self.terminal,
            attempts=self.attempts,
            http_status=self.http_status,
            error_reason=self.error_reason,
            total_duration=duration(time.monotonic() - self.start),
            request_bytes=len(self.request.body),
            response_bytes=self.response_bytes,
            session_id=self._session_hint(),
            user_agent=_plain(self.headers.get("user-agent", b"").decode("latin-1")),
            worker_id=self._worker_id,
            decision=self._decision(),
        )
        event.event_time.FromNanoseconds(time.time_ns())
        event.start_time.FromNanoseconds(self.start_ns)
        if self.first_event_seconds is not None:
            event.first_event_duration.CopyFrom(duration(self.first_event_seconds))
        self._add_provider(event)
        self._add_cost(event, tokens, price)
        return event

    def _add_provider(self, event: UsageEvent) -> None:
        if self.reservation is not None:
            event.lease_id = self.reservation.lease_id
        if self.candidate is not None:
            event.provider_id, event.credential_id, event.upstream_model = self.candidate.key
        if self.answer is not None and self.is_answered:
            event.upstream_request_id = _plain(self.upstream_request_id or self.answer.response_id)
            event.stop_reason = _plain(self.answer.stop_reason)[:64]
            event.raw_usage = self.answer.raw_usage

    def _add_cost(self, event: UsageEvent, tokens: Tokens, price: DatedPrice | None) -> None:
        if tokens == Tokens():
            return
        if price is None or self.candidate is None:
            event.is_unpriced = True
            return
        event.price_id = price.price_id
        event.cost_nano_usd = cost(tokens, price.rates, self.candidate.cost_multiplier_ppm)

    def close_upstream(self) -> None:
        """Gives the connection back if the answer was read to its end, else cuts it: the provider stops."""
        if self.response is not None:
            self.response.release() if self.response.content.at_eof() else self.response.close()

    def end(self) -> RelayEnd:
        """Returns the receipt that closes the answer."""
        event = self.settled or self.event()
        return RelayEnd(
            tokens=event.tokens,
            token_source=event.token_source,
            terminal=event.terminal,
            cost_nano_usd=event.cost_nano_usd,
            provider_id=event.provider_id,
            upstream_model=event.upstream_model,
            attempt_count=len(self.attempts),
        )

    def _decision(self) -> bytes:
        rows: list[Mapping[str, object]] = [_decision_row(candidate) for candidate in self.plan.candidates]
        rows += [{**_decision_row(skip.candidate), "skipReason": skip.reason} for skip in self.plan.skipped]
        return msgspec.json.encode({"candidates": rows[:MAX_DECISION_CANDIDATES]}) if rows else b""


_FAILED = frozenset(
    {usage_pb2.TERMINAL_UPSTREAM_ERROR, usage_pb2.TERMINAL_TRUNCATED, usage_pb2.TERMINAL_TIMEOUT}
)


def _decision_row(candidate: Candidate) -> dict[str, object]:
    return {
        "providerId": candidate.provider_id,
        "credentialId": candidate.credential_id,
        "upstreamModel": candidate.upstream_model,
        "rule": candidate.rule,
        "level": candidate.level,
        "weight": candidate.weight,
    }


def _token_message(tokens: Tokens) -> usage_pb2.Tokens:
    return usage_pb2.Tokens(
        input=tokens.input,
        cache_read=tokens.cache_read,
        cache_write_5m=tokens.cache_write_5m,
        cache_write_30m=tokens.cache_write_30m,
        cache_write_1h=tokens.cache_write_1h,
        cache_write_12h=tokens.cache_write_12h,
        output=tokens.output,
        reasoning=tokens.reasoning,
    )


def duration(seconds: float) -> Duration:
    """Returns seconds as a protobuf Duration, to the microsecond."""
    message = Duration()
    message.FromMicroseconds(int(seconds * 1e6))
    return message


def _plain(text: str) -> str:
    """What a stranger wrote, fit for a log line and a database."""
    return "".join(character for character in text[:MAX_TEXT] if character.isprintable())
