"""What a background answer will cost, when its making has ended long before the answer has.

A background answer is begun by one request and finished later, at the provider.
Its first request is told no usage and pays nothing; the usage stands in what a
later request, or the gateway itself, is told of it. It is charged once by an
event whose id is made of the first request's: whoever sees the usage, in
whatever worker and however often, makes the very same event, and the ledger
takes an id once. So every field of it is one that all of them know.
"""

import hashlib
from typing import Final

import msgspec

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.money import Tokens
from lurus_common.prices import PriceList
from lurus_dialects.answer import Answer
from lurus_dialects.dialect import Dialect
from lurus_routing import charge
from lurus_routing.charge import Counted
from lurus_routing.held import Debt, Held

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TIME_END: Final = len("req_") + 10
_RANDOM_CHARACTERS: Final = 16
_NANO: Final = 1_000_000_000
# The states of an answer that goes on.
UNFINISHED: Final = frozenset({"queued", "in_progress"})
PATH: Final = "/v1/responses"


def charge_id(request_id: str) -> str:
    """Returns the id of the event that charges the answer which a request has begun: a ULID of its time."""
    digest = hashlib.blake2b(f"charge of {request_id}".encode(), digest_size=10).digest()
    number = int.from_bytes(digest, "big")
    letters = [_ALPHABET[number >> (5 * place) & 31] for place in reversed(range(_RANDOM_CHARACTERS))]
    return request_id[:_TIME_END] + "".join(letters)


def is_finished(answer: Answer) -> bool:
    """Whether an answer, streamed or whole, has come to its end at the provider."""
    return answer.terminal_seen and answer.stop_reason not in UNFINISHED and bool(answer.stop_reason)


def charged(held: Held, debt: Debt, answer: Answer, prices: PriceList) -> UsageEvent:
    """Returns the event that charges a finished answer whose usage the provider has stated."""
    found = answer.tokens, usage_pb2.TOKEN_SOURCE_PROVIDER
    if answer.meter.is_absurd:
        guess = Tokens(input=debt.estimated_input_tokens, output=answer.estimated_output_tokens())
        found = guess, usage_pb2.TOKEN_SOURCE_ESTIMATED
    event = _event(held, debt, answer, found, prices)
    event.upstream_request_id = answer.response_id[:256]
    event.raw_usage = _canonical(answer.raw_usage)
    return event


def estimated(held: Held, debt: Debt, prices: PriceList) -> UsageEvent:
    """Returns the event that charges an answer which nobody will ever see to its end."""
    found = (Tokens(input=debt.estimated_input_tokens), usage_pb2.TOKEN_SOURCE_ESTIMATED)
    return _event(held, debt, Answer(Dialect.OPENAI_RESPONSES), found, prices)


def _event(held: Held, debt: Debt, answer: Answer, found: Counted, prices: PriceList) -> UsageEvent:
    tokens, source = found
    event = UsageEvent(
        request_id=charge_id(debt.request_id),
        account_id=debt.account_id,
        key_id=debt.key_id,
        dialect=usage_pb2.DIALECT_OPENAI_RESPONSES,
        path=PATH,
        model=held.model,
        provider_id=held.provider_id,
        credential_id=held.credential_id,
        upstream_model=held.upstream_model,
        terminal=usage_pb2.TERMINAL_COMPLETE,
        http_status=200,
        token_source=source,
        charge_reason=usage_pb2.CHARGE_REASON_COMPLETE,
    )
    event.start_time.seconds, event.start_time.nanos = divmod(debt.start_ns, _NANO)
    event.event_time.CopyFrom(event.start_time)
    attempt = event.attempts.add(
        provider_id=held.provider_id,
        credential_id=held.credential_id,
        upstream_model=held.upstream_model,
        http_status=200,
    )
    price = prices.find(held.provider_id, held.upstream_model, held.model, debt.start_ns)
    charge.fill_attempt(attempt, answer, found, price, debt.multipliers_ppm[0])
    charge.fill_event(event, answer, tokens, price, debt.multipliers_ppm)
    return event


def _canonical(usage: bytes) -> bytes:
    """The same numbers in one spelling, however the provider has written them this time."""
    try:
        return msgspec.json.encode(msgspec.json.decode(usage), order="sorted")
    except (msgspec.MsgspecError, RecursionError):
        return b""
