"""What of a request is charged, and why: the settlement table. Times, prices and policies come as arguments.

| how it ended | what is counted | who pays |
| --- | --- | --- |
| no provider was called, or it refused | nothing | nobody |
| the provider failed before any content | nothing | nobody |
| complete | the provider's numbers, even zeros; estimates if it gave none | the account |
| complete, with a count that no model reaches | what else was stated, estimates in its place | the account |
| the client left, after the provider's final numbers | those | the account |
| interrupted after content | the provider's numbers so far, estimates for the rest | the account's policy |
"""

from lurus.billing.v1 import billing_pb2
from lurus.billing.v1.billing_pb2 import SettlementPolicy
from lurus.usage.v1 import usage_pb2
from lurus_common.money import PPM, Price, Tokens, cost
from lurus_common.prices import DatedPrice, are_priced
from lurus_dialects.answer import Answer
from lurus_dialects.request import Peek
from lurus_dialects.translation import DIALECTS, set_tokens

Counted = tuple[Tokens, "usage_pb2.TokenSource.ValueType"]

NOTHING: Counted = (Tokens(), usage_pb2.TOKEN_SOURCE_UNSPECIFIED)
_FAILED = frozenset(
    {usage_pb2.TERMINAL_UPSTREAM_ERROR, usage_pb2.TERMINAL_TRUNCATED, usage_pb2.TERMINAL_TIMEOUT}
)


def counted(answer: Answer | None, terminal: "usage_pb2.Terminal.ValueType", peeked: Peek | None) -> Counted:
    """Returns what was served, and where the counts come from.

    The provider's final numbers count, even explicit zeros. Of an answer that
    was cut, input as stated and output as stated or as seen, whichever is
    more. Nothing, if the provider failed before any content.
    """
    if answer is None or (terminal in _FAILED and not answer.content_seen):
        return NOTHING
    if answer.final_usage_seen and not answer.meter.is_absurd:
        return answer.tokens, usage_pb2.TOKEN_SOURCE_PROVIDER
    tokens = answer.tokens
    tokens.output = max(tokens.output, answer.estimated_output_tokens())
    if answer.usage_seen and not answer.meter.is_input_absurd:
        return tokens, usage_pb2.TOKEN_SOURCE_PARTIAL
    # What is left of an absurd count, its cached share for one, says nothing either.
    estimated = Tokens(output=tokens.output)
    if peeked:
        estimated.input = peeked.estimated_input_tokens()
    return estimated, usage_pb2.TOKEN_SOURCE_ESTIMATED


def reason(
    terminal: "usage_pb2.Terminal.ValueType",
    source: "usage_pb2.TokenSource.ValueType",
    policy: SettlementPolicy,
) -> "usage_pb2.ChargeReason.ValueType":
    """Returns why what was counted is charged, or not."""
    if source == usage_pb2.TOKEN_SOURCE_UNSPECIFIED:
        return usage_pb2.CHARGE_REASON_NOTHING_SERVED
    if terminal == usage_pb2.TERMINAL_CLIENT_GONE:
        if source == usage_pb2.TOKEN_SOURCE_PROVIDER:
            return usage_pb2.CHARGE_REASON_COMPLETE
        chosen = policy.client_gone
    elif terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR:
        chosen = policy.upstream_error
    elif terminal == usage_pb2.TERMINAL_TIMEOUT:
        chosen = policy.timeout
    elif terminal == usage_pb2.TERMINAL_TRUNCATED:
        chosen = policy.truncated
    else:
        return usage_pb2.CHARGE_REASON_COMPLETE
    if chosen == billing_pb2.INTERRUPTION_POLICY_WAIVE:
        return usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY
    return usage_pb2.CHARGE_REASON_BILLED_BY_POLICY


def fill_event(
    event: usage_pb2.UsageEvent,
    answer: Answer,
    tokens: Tokens,
    price: DatedPrice | None,
    multipliers_ppm: tuple[int, int],
) -> None:
    """Writes what was used and what the account pays for it.

    Args:
        event: with its token source and charge reason.
        multipliers_ppm: of the provider and of the account.
    """
    units = answer.units
    set_tokens(event.tokens, tokens)
    _set_units(event, units)
    event.upstream_dialect = DIALECTS[answer.dialect]
    event.provider_multiplier_ppm, event.account_multiplier_ppm = multipliers_ppm
    if price is None:
        event.is_unpriced = tokens != Tokens() or bool(units)
        return
    event.price_id = price.price_id
    event.has_unpriced_units = not are_priced(units, price.price)
    amount = cost(tokens, price.price, *multipliers_ppm, units=units)
    if event.charge_reason == usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY:
        event.waived_nano_usd = amount
    else:
        event.cost_nano_usd = amount


def fill_attempt(
    attempt: usage_pb2.Attempt,
    answer: Answer,
    found: Counted,
    price: DatedPrice | None,
    provider_multiplier_ppm: int,
) -> None:
    """Writes what a call costs us at its provider, if anything is known of what it used.

    Args:
        found: what was served of its answer. If that is nothing, what the provider had stated counts.
    """
    tokens, source = found
    if not source and answer.usage_seen:
        tokens, source = answer.tokens, usage_pb2.TOKEN_SOURCE_PARTIAL
    if not source:
        return
    set_tokens(attempt.tokens, tokens)
    _set_units(attempt, answer.units)
    attempt.token_source = source
    attempt.provider_multiplier_ppm = provider_multiplier_ppm
    if price is not None:
        attempt.price_id = price.price_id
        attempt.cost_nano_usd = cost(tokens, price.price, provider_multiplier_ppm, units=answer.units)


def fill_lost_cache(
    event: usage_pb2.UsageEvent, cached_tokens: int, tokens: Tokens, price: Price | None
) -> None:
    """Writes what it cost that a session's cache is at another credential than the one that answered.

    Args:
        cached_tokens: what the session's last answer had read from the cache there, or written to it.
        tokens: what this answer took; what it took fresh or wrote anew, though it was cached, is lost.
    """
    fresh = tokens.input + tokens.cache_write
    lost = max(0, min(cached_tokens - tokens.cache_read, fresh))
    event.lost_cache_tokens = lost
    if price is None or not event.cost_nano_usd:
        return
    rates = Price(price.rates_of(tokens))
    multipliers = (event.provider_multiplier_ppm or PPM, event.account_multiplier_ppm or PPM)
    as_fresh = cost(Tokens(input=lost), rates, *multipliers)
    event.lost_cache_nano_usd = max(0, as_fresh - cost(Tokens(cache_read=lost), rates, *multipliers))


def _set_units(message: usage_pb2.UsageEvent | usage_pb2.Attempt, units: dict[str, int]) -> None:
    for kind, count in units.items():
        message.units.add(kind=kind, count=count)
