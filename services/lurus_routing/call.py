"""The facts of one request, from arrival to its usage event."""

import asyncio
import hashlib
import re
import time
from dataclasses import replace

import msgspec
from aiohttp import ClientResponse
from google.protobuf.duration_pb2 import Duration

from lurus.billing.v1.billing_pb2 import KeyGrant
from lurus.routing.v1.routing_pb2 import RelayEnd, RelayRequest
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.errors import LurusError
from lurus_common.ids import new_id
from lurus_common.large import LARGE_BYTES
from lurus_common.money import PPM
from lurus_common.prices import DatedPrice, PriceList
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Endpoint, id_in
from lurus_dialects.errors import http_error
from lurus_dialects.request import Peek
from lurus_routing import charge, debts
from lurus_routing.alarm import Alarm
from lurus_routing.candidate import Candidate
from lurus_routing.health import Permit
from lurus_routing.held import Debt, Held
from lurus_routing.incoming import without_body
from lurus_routing.leases import Reservation
from lurus_routing.plan import Plan
from lurus_routing.rate_limiter import Admission

MAX_TEXT = 256
MAX_MODEL = 512
MAX_STOP_REASON = 64
# Of a member of a large body.
MAX_KEPT_BYTES = 1024
MAX_DECISION_CANDIDATES = 20
MAX_DECISION_BYTES = 65_536
_SESSION_HEADERS = ("x-claude-code-session-id", "session-id")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_NOBODY = KeyGrant()
_NO_PRICES = PriceList(())
_NO_PLAN = Plan([], [])
_NANO = 1_000_000_000
_TRUE = msgspec.Raw(b"true")


class Call:
    """One request. Filled in as it goes on; `event` may be asked for at any moment."""

    def __init__(self, request: RelayRequest, worker_id: str, peeked: Peek | None = None) -> None:
        self.request_id = new_id("req")
        # Taken out once: protobuf gives a new copy each time.
        self.body = request.body
        self.request = request if len(self.body) <= LARGE_BYTES else without_body(request)
        self.start_ns = time.time_ns()
        self.start = time.monotonic()
        self.headers = {header.name: header.value for header in request.headers}
        self.grant = _NOBODY
        # What it asks for; None if it came typed.
        self.endpoint: Endpoint | None = None
        # Nothing that it is told is charged to it: what it asks of a provider was made by another request.
        self.is_free = False
        # What it asks for is held there, and perhaps not charged yet.
        self.asks_holder: Held | None = None
        self.peeked = peeked
        self.prices = _NO_PRICES
        self.plan = _NO_PLAN
        self.admission: Admission | None = None
        self.reservation: Reservation | None = None
        self.has_intent = False
        # The attempt that runs, or gave the answer.
        self.candidate: Candidate | None = None
        self.permit: Permit | None = None
        self.response: ClientResponse | None = None
        self.attempt_start = self.start
        # The model thinks first, also unasked.
        self.thinks_first = False
        self.attempts: list[usage_pb2.Attempt] = []
        self.upstream_request_id = ""
        self.alarm = Alarm()
        # Its answer, once something of it may be released.
        self.answer: Answer | None = None
        # What its translation could not carry over; empty for a relay.
        self.lossy_fields: list[str] = []
        # What keeps it with one credential, if there is more than one; and what another one's cache holds.
        self.affinity = ""
        self.cached_elsewhere: int | None = None
        # The charged request that it repeats, by its client's idempotency key.
        self.repeat_of = ""
        self.http_status = 0
        self.response_bytes = 0
        self.checkpointed_bytes = 0
        self.first_event_seconds: float | None = None
        # Since when the client has not taken what was released; None while we wait for the provider.
        self.waits_for_client_since: float | None = None
        # Why we ourselves end it, if we do.
        self.cut_by: LurusError | None = None
        self.terminal: usage_pb2.Terminal.ValueType = usage_pb2.TERMINAL_REFUSED
        self.error_reason = ""
        # The final event, and when it is durable.
        self.receipt: UsageEvent | None = None
        self.settled: asyncio.Future[None] | None = None
        # Whether it has ended, so that no more of its answer will be seen.
        self.is_over = False
        # Of the body, if the client gave a key for it.
        self.digest = b""
        self._conversation = ""
        self._worker_id = worker_id
        self._fixed: UsageEvent | None = None

    @property
    def model(self) -> str:
        """The model that the client asked for, or an empty string."""
        return self.peeked.model if self.peeked else ""

    def session(self) -> str:
        """What the client's session is known by, scoped to its account; empty if it has none."""
        hint = self._session_hint()
        return f"{self.grant.account_id}/{hint}" if hint else ""

    def conversation(self) -> str:
        """What stands in for a session: the same instructions and tools of the same account."""
        if self.peeked is None:
            return ""
        if not self._conversation:
            key = self.grant.account_id.encode()[:64]
            self._conversation = hashlib.blake2b(self.peeked.prefix(), digest_size=16, key=key).hexdigest()
        return self._conversation

    def cache_key(self) -> str:
        """What stands for this conversation at a provider that shares prompt caches by key."""
        known_by = self.session() or self.conversation()
        return hashlib.blake2b(known_by.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def _session_hint(self) -> str:
        stated = next((self.headers[name] for name in _SESSION_HEADERS if self.headers.get(name)), b"")
        text = stated.decode("latin-1")
        if self.peeked and not text:
            text = self.peeked.prompt_cache_key or self.peeked.user_id
        if not text or _PLAIN_ID.match(text):
            return text
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def forget_body(self) -> None:
        """Lets go of a large body, of which an answer that has begun needs only what is small."""
        if self.peeked is None or len(self.body) <= LARGE_BYTES:
            return
        small = {name: msgspec.Raw(bytes(raw)) for name, raw in self.peeked.members.items() if _is_small(raw)}
        self.peeked = replace(self.peeked, members=small, spans={})
        self.body = b""

    def note_skip(self, candidate: Candidate, reason: str) -> None:
        """Notes in the decision that a candidate of the plan was not asked after all."""
        self.plan.skip(candidate, reason)
        self._fixed = None

    def note_release(self, size: int) -> None:
        """Counts bytes on their way to the client."""
        if self.first_event_seconds is None:
            self.first_event_seconds = time.monotonic() - self.start
        self.response_bytes += size

    def note_error(self, error: LurusError) -> None:
        """Records a failure that the client is told of before any byte of an answer."""
        error.metadata["request_id"] = self.request_id
        self.error_reason = self.error_reason or error.reason
        if self.terminal == usage_pb2.TERMINAL_CLIENT_GONE:
            self.terminal = usage_pb2.TERMINAL_REFUSED
        if self.endpoint is not None and not self.http_status:
            dialect = self.endpoint.dialect
            shown = http_error(dialect, error.reason, error.message, error.metadata, self.request_id)
            self.http_status = shown.status

    def close_upstream(self) -> None:
        """Gives the connection back if the answer was read to its end, else cuts it: the provider stops."""
        if self.response is not None:
            self.response.release() if self.response.content.at_eof() else self.response.close()

    def used_tokens(self) -> int:
        """Returns how many tokens the final event says, of all kinds; 0 if there is none yet."""
        if self.receipt is None or not self.receipt.token_source:
            return 0
        tokens = self.receipt.tokens
        writes = (
            tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h
        )
        return tokens.input + tokens.cache_read + writes + tokens.output

    @property
    def is_owed(self) -> bool:
        """Whether the provider goes on with an answer of which this call has not seen the usage."""
        answer, peeked = self.answer, self.peeked
        if answer is None or peeked is None or peeked.dialect is not Dialect.OPENAI_RESPONSES or self.is_free:
            return False
        if peeked.members.get("background") != _TRUE or answer.final_usage_seen:
            return False
        if not id_in(f"{debts.PATH}/{answer.response_id}"):
            return False  # Nobody could ask for it.
        return self.candidate is not None and self.candidate.is_relay and not debts.is_finished(answer)

    def debt(self) -> Debt | None:
        """Returns what a later request will have to charge, None if this one has charged it."""
        if not self.is_owed or self.peeked is None or self.candidate is None:
            return None
        return Debt(
            account_id=self.grant.account_id,
            key_id=self.grant.key_id,
            request_id=self.request_id,
            start_ns=self.start_ns,
            estimated_input_tokens=self.peeked.estimated_input_tokens(),
            multipliers_ppm=(self.candidate.cost_multiplier_ppm, self.grant.price_multiplier_ppm or PPM),
        )

    def charge_of_another(self) -> UsageEvent | None:
        """Returns the event that charges for the answer that this call asked for; None if nothing is owed."""
        held, answer = self.asks_holder, self.answer
        if held is None or held.debt is None or answer is None:
            return None
        is_whole = debts.is_finished(answer) and answer.final_usage_seen
        return debts.charged(held, held.debt, answer, self.prices) if is_whole else None

    def price(self) -> DatedPrice | None:
        """The price in effect when the request arrived."""
        if self.candidate is None:
            return None
        provider_id, _, upstream_model = self.candidate.key
        return self.prices.find(provider_id, upstream_model, self.model, self.start_ns)

    def event(self) -> UsageEvent:
        """Returns what is known now, as a usage event."""
        if self._fixed is None:
            self._fixed = self._fixed_part()
        event = UsageEvent()
        event.CopyFrom(self._fixed)
        event.event_time.seconds, event.event_time.nanos = divmod(time.time_ns(), _NANO)
        event.terminal = self.terminal
        event.attempts.extend(self.attempts)
        event.http_status = self.http_status
        event.error_reason = self.error_reason
        _set_duration(event.total_duration, time.monotonic() - self.start)
        event.response_bytes = self.response_bytes
        if self.first_event_seconds is not None:
            _set_duration(event.first_event_duration, self.first_event_seconds)
        if self.reservation is not None:
            event.lease_id = self.reservation.lease_id
        self._add_provider(event)
        self._add_usage(event)
        return event

    def _fixed_part(self) -> UsageEvent:
        """What does not change once the plan is made."""
        event = UsageEvent(
            request_id=self.request_id,
            account_id=self.grant.account_id,
            key_id=self.grant.key_id,
            dialect=self.request.dialect,
            path=self.request.path[:MAX_TEXT],
            is_streaming=self.peeked is not None and self.peeked.is_streaming,
            model=self.model,
            request_bytes=self.peeked.body_bytes if self.peeked else len(self.body),
            session_id=self._session_hint(),
            user_agent=_plain(self.headers.get("user-agent", b"").decode("latin-1")),
            worker_id=self._worker_id,
            decision=self._decision(),
        )
        event.start_time.seconds, event.start_time.nanos = divmod(self.start_ns, _NANO)
        return event

    def _add_provider(self, event: UsageEvent) -> None:
        if self.candidate is None:
            return
        event.provider_id, event.credential_id, upstream_model = self.candidate.key
        event.upstream_model = upstream_model[:MAX_MODEL]
        if self.answer is not None:
            event.upstream_request_id = _plain(self.upstream_request_id or self.answer.response_id)
            event.stop_reason = _plain(self.answer.stop_reason)[:MAX_STOP_REASON]
            event.raw_usage = self.answer.raw_usage

    def _add_usage(self, event: UsageEvent) -> None:
        answer, candidate = self.answer, self.candidate
        if self.is_free or (self.is_over and self.is_owed):
            # What it was told of is, or will be, charged by an event of its own.
            event.charge_reason = usage_pb2.CHARGE_REASON_NOTHING_SERVED
            return
        found = charge.counted(answer, self.terminal, self.peeked)
        tokens, event.token_source = found
        event.charge_reason = charge.reason(self.terminal, event.token_source, self.grant.settlement_policy)
        if answer is None or candidate is None:
            return
        price = self.price()
        provider_ppm = candidate.cost_multiplier_ppm
        charge.fill_attempt(event.attempts[-1], answer, found, price, provider_ppm)
        if event.token_source:
            account_ppm = self.grant.price_multiplier_ppm or PPM
            charge.fill_event(event, answer, tokens, price, (provider_ppm, account_ppm))
            if self.cached_elsewhere is not None:
                charge.fill_lost_cache(event, self.cached_elsewhere, tokens, price.price if price else None)

    def note_failed_usage(self, answer: Answer) -> None:
        """Keeps what an attempt has used that failed after its provider had counted something."""
        if self.candidate is not None:
            ppm = self.candidate.cost_multiplier_ppm
            charge.fill_attempt(self.attempts[-1], answer, charge.NOTHING, self.price(), ppm)

    def end(self) -> RelayEnd:
        """Returns the receipt that closes the answer."""
        event = self.receipt or self.event()
        return RelayEnd(
            tokens=event.tokens,
            token_source=event.token_source,
            terminal=event.terminal,
            cost_nano_usd=event.cost_nano_usd,
            provider_id=event.provider_id,
            upstream_model=event.upstream_model,
            attempt_count=len(self.attempts),
            lossy_fields=self.lossy_fields,
        )

    def _decision(self) -> bytes:
        """The plan as JSON, with names as in `ExplainRouteResponse`."""
        plan = self.plan
        rows = [_decision_row(candidate, plan) for candidate in plan.candidates]
        rows += [{**_decision_row(skip.candidate, plan), "skipReason": skip.reason} for skip in plan.skipped]
        if not rows:
            return b""
        text = msgspec.json.encode(
            {
                "candidates": rows[:MAX_DECISION_CANDIDATES],
                "policy": "least_latency" if plan.latencies else "weight",
                "isLastResort": plan.is_last_resort,
            }
        )
        return text if len(text) <= MAX_DECISION_BYTES else b""


def _decision_row(candidate: Candidate, plan: Plan) -> dict[str, object]:
    row: dict[str, object] = {
        "providerId": candidate.provider_id,
        "credentialId": candidate.credential_id,
        "upstreamModel": candidate.upstream_model,
        "rule": candidate.rule,
        "level": candidate.level,
        "weight": candidate.weight,
        "dialect": candidate.dialect.value,
    }
    if candidate.key in plan.reserve:
        row["isReserve"] = True
    latency = plan.latencies.get(candidate.key)
    if latency is not None:
        row["latencyDuration"] = f"{latency:.3f}s"
    return row


def duration(seconds: float) -> Duration:
    """Returns seconds as a protobuf Duration, to the microsecond."""
    message = Duration()
    _set_duration(message, seconds)
    return message


def _set_duration(message: Duration, seconds: float) -> None:
    message.seconds, message.nanos = divmod(int(seconds * 1e6) * 1000, _NANO)


def _is_small(raw: msgspec.Raw) -> bool:
    return len(memoryview(raw)) <= MAX_KEPT_BYTES


def _plain(text: str) -> str:
    """What a stranger wrote, fit for a log line and a database."""
    text = text[:MAX_TEXT]
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
