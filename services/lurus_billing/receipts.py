"""What a receipt says of a request, and what it says that it does not know. No database, no clock."""

from collections.abc import Sequence

from lurus.billing.v1 import billing_pb2 as pb
from lurus.provider.v1.provider_pb2 import Price as PriceMessage
from lurus.usage.v1 import usage_pb2
from lurus_common.prices import event_cost, price_of, tokens_of


def receipt(
    transaction: pb.Transaction,
    event: usage_pb2.UsageEvent | None,
    price: PriceMessage | None,
    corrections: Sequence[pb.Transaction],
) -> pb.GetReceiptResponse:
    """Returns a receipt; what is not known is named in `gaps`, never filled in.

    Args:
        transaction: what was booked.
        event: what it was booked for, None if that was not kept.
        price: the one that the transaction names, None if it names none or it cannot be found.
        corrections: what was booked later.
    """
    found = pb.GetReceiptResponse(event=event, transaction=transaction, price=price, corrections=corrections)
    if event is None:
        found.gaps.append(pb.RECEIPT_GAP_EVENT)
    else:
        found.upstream_cost_nano_usd = sum(attempt.cost_nano_usd for attempt in event.attempts)
        if not all(_is_cost_known(attempt) for attempt in event.attempts):
            found.gaps.append(pb.RECEIPT_GAP_UPSTREAM_COST)
        if event.has_unpriced_units:
            found.gaps.append(pb.RECEIPT_GAP_UNIT_RATE)
    if transaction.price_id and price is None:
        found.gaps.append(pb.RECEIPT_GAP_PRICE)
    elif price is not None:
        tier = price_of(price).tier_of(tokens_of(transaction.tokens))
        found.tier_above_input_tokens = tier.above_input_tokens if tier else 0
        if not _agrees(transaction, event or usage_pb2.UsageEvent(), price):
            found.gaps.append(pb.RECEIPT_GAP_MULTIPLIER)
    return found


def _agrees(transaction: pb.Transaction, event: usage_pb2.UsageEvent, price: PriceMessage) -> bool:
    """Whether what was used, times rates and multipliers, is what was charged, or waived."""
    charged = event.waived_nano_usd - transaction.amount_nano_usd
    return event_cost(event, tokens_of(transaction.tokens), price_of(price)) == charged


def _is_cost_known(attempt: usage_pb2.Attempt) -> bool:
    """Whether what a call cost at its provider is known. A provider that refuses counts nothing."""
    return bool(attempt.price_id) or (not attempt.token_source and attempt.http_status >= 400)
