"""What a receipt says of a request, and what it says that it does not know. No database, no clock."""

from collections.abc import Sequence

from lurus.billing.v1 import billing_pb2 as pb
from lurus.provider.v1.provider_pb2 import Price as PriceMessage
from lurus.usage.v1 import usage_pb2
from lurus_common import money


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
    gaps = []
    if event is None:
        gaps.append(pb.RECEIPT_GAP_EVENT)
    elif event.attempts:
        gaps.append(pb.RECEIPT_GAP_UPSTREAM_COST)
    if transaction.price_id and price is None:
        gaps.append(pb.RECEIPT_GAP_PRICE)
    elif price is not None and list_cost(transaction.tokens, price) != -transaction.amount_nano_usd:
        gaps.append(pb.RECEIPT_GAP_MULTIPLIER)
    return pb.GetReceiptResponse(
        event=event, transaction=transaction, price=price, corrections=corrections, gaps=gaps
    )


def list_cost(tokens: usage_pb2.Tokens, price: PriceMessage) -> int:
    """Returns what tokens cost by the rates of a price, without any multiplier, in nano-USD."""
    counts = money.Tokens(
        tokens.input,
        tokens.cache_read,
        tokens.cache_write_5m,
        tokens.cache_write_30m,
        tokens.cache_write_1h,
        tokens.cache_write_12h,
        tokens.output,
        tokens.reasoning,
    )
    rates = money.Price(
        input=price.input_nano_usd,
        cache_read=price.cache_read_nano_usd,
        cache_write_5m=price.cache_write_5m_nano_usd,
        cache_write_30m=price.cache_write_30m_nano_usd,
        cache_write_1h=price.cache_write_1h_nano_usd,
        cache_write_12h=price.cache_write_12h_nano_usd,
        output=price.output_nano_usd,
    )
    return money.cost(counts, rates)
