"""Usage events for tests, and what is true of them, computed without a database."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp
from nats.js import JetStreamContext
from ulid import ULID

from lurus.usage.v1.usage_pb2 import Attempt, UsageEvent
from lurus_common import bus

# Recent, since the log forgets after a year, and the same for all tests of a run.
NOW = int(time.time())
STATUSES = (200, 200, 200, 429, 500, 0)
BROKEN = {3, 4, 6, 8}


def timestamp(seconds: float) -> Timestamp:
    """Returns seconds since 1970 as a message, exact to the microsecond."""
    return Timestamp(seconds=int(seconds // 1), nanos=round(seconds % 1 * 1_000_000) * 1_000)


def make_event(number: int = 0, *, age_seconds: float | None = None, **changes: object) -> UsageEvent:
    """Returns an event that ended `age_seconds` ago; all its fields are set, and vary with `number`."""
    age = number * 37.25 if age_seconds is None else age_seconds
    ended = NOW - age
    event = UsageEvent(
        request_id=f"req_{ULID.from_timestamp(float(ended - 2))}",
        account_id=f"acct_{number % 3}",
        key_id=f"key_{number % 4}",
        event_time=timestamp(ended),
        start_time=timestamp(ended - 2),
        dialect=1 + number % 3,
        path="/v1/messages",
        is_streaming=bool(number % 2),
        model=("claude-opus-5", "claude-haiku-5", "gpt-6", "gpt_6", "GPT-6")[number % 5],
        provider_id=f"provider-{number % 2}",
        credential_id="cred_1",
        upstream_model="vendor/model",
        upstream_request_id=f"msg_{number}",
        token_source=1 + number % 3,
        terminal=1 + number % 8,
        cost_nano_usd=0 if number % 7 == 0 else 1_000_000_007 * number,
        price_id="price_1",
        is_unpriced=number % 7 == 0,
        http_status=STATUSES[number % 6],
        error_reason="" if number % 6 < 3 else "RATE_LIMITED",
        stop_reason="end_turn",
        request_bytes=100 + number,
        response_bytes=200 + number,
        session_id=f"session-{number % 10}",
        user_agent="claude-cli/3.0 ☃",
        worker_id="worker-0",
        lease_id="lease_1",
        raw_usage=b'{"input_tokens": 1}\xff\x00',
        decision=b"{}",
        attempts=[Attempt(provider_id="provider-9", http_status=529), Attempt(provider_id="provider-0")],
    )
    tokens = event.tokens
    for place, name in enumerate(tokens.DESCRIPTOR.fields_by_name):
        setattr(tokens, name, number * (place + 1))
    if number % 6 != 5:
        event.first_event_duration.FromMicroseconds(50_000 + number * 7919 % 1_000_003)
    event.total_duration.FromMicroseconds(90_000 + number * 104_729 % 10_000_019)
    event.MergeFrom(UsageEvent(**changes))
    return event


async def publish(jetstream: JetStreamContext, events: Iterable[UsageEvent]) -> None:
    """Puts events on the bus, as the routing service does."""
    for event in events:
        await bus.publish(jetstream, event.request_id, bus.subject_of(event), event.SerializeToString())


async def eventually(question: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Waits until the answer is yes, and fails if it is not in time."""
    deadline = time.monotonic() + seconds
    while not await question():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


def newest_first(events: Iterable[UsageEvent]) -> list[UsageEvent]:
    """Returns events in the order of a list."""
    return sorted(events, key=lambda e: (e.event_time.ToNanoseconds() // 1000, e.request_id), reverse=True)


@dataclass
class Truth:
    """What statistics have to say of a group."""

    request_count: int = 0
    error_count: int = 0
    unpriced_count: int = 0
    cost_nano_usd: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    first_event: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)

    def add(self, event: UsageEvent) -> None:
        self.request_count += 1
        self.error_count += event.http_status >= 400 or event.terminal in BROKEN
        self.unpriced_count += event.is_unpriced
        self.cost_nano_usd += event.cost_nano_usd
        for name in event.tokens.DESCRIPTOR.fields_by_name:
            self.tokens[name] = self.tokens.get(name, 0) + getattr(event.tokens, name)
        if event.HasField("first_event_duration"):
            self.first_event.append(event.first_event_duration.ToMicroseconds())
        self.total.append(event.total_duration.ToMicroseconds())


def truths(events: Iterable[UsageEvent], group: Callable[[UsageEvent], Hashable]) -> dict[Hashable, Truth]:
    """Returns what is true of each group."""
    found: dict[Hashable, Truth] = {}
    for event in events:
        found.setdefault(group(event), Truth()).add(event)
    return found


def quantile(values: Sequence[int], level: float) -> int:
    """Returns the value with the number floor(level * n) from 0 of n in order."""
    return sorted(values)[int(level * len(values))]
