"""What a request costs by another price, and the entry that makes the difference. No database, no clock."""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_billing.ledger import MAX_COST_NANO_USD, Entry
from lurus_common.money import PPM, Tokens, cost
from lurus_common.prices import DatedPrice, tokens_of, units_of
from lurus_dialects.dialect import Dialect
from lurus_dialects.translation import DIALECTS
from lurus_dialects.usage import UsageMeter

# Entries of this module, by which it knows its own.
CORRECTION_PREFIX = "prc_"
_BY_NUMBER = {number: dialect for dialect, number in DIALECTS.items()}


class Left(enum.Enum):
    """Why a request is left as it is."""

    UNCHANGED = "it is priced so already"
    UNPRICED = "it has no price"
    SKIPPED = "it was corrected by hand, or waived, or its event is not kept"


@dataclass(frozen=True, slots=True)
class Priced:
    """A request as it is booked: its first entry, what corrects it, and its event."""

    transaction: pb.Transaction
    corrections: Sequence[pb.Transaction]
    event: usage_pb2.UsageEvent | None

    @property
    def amount_nano_usd(self) -> int:
        """What it costs by now."""
        return -self.transaction.amount_nano_usd - sum(one.amount_nano_usd for one in self.corrections)

    @property
    def price_id(self) -> str:
        """The price that was applied last; empty if none was."""
        return self.corrections[-1].price_id if self.corrections else self.transaction.price_id


def decide(priced: Priced, price: DatedPrice | None, *, recounts: bool) -> tuple[pb.Repricing, Entry] | Left:
    """Returns what a request costs by a price and what is to be booked, or why nothing is.

    A request is booked at most once for each price and cost: what is priced so
    already is left as it is.

    Args:
        price: the one to apply; None if there is none.
        recounts: whether the provider's own usage is read anew.
    """
    event, transaction = priced.event, priced.transaction
    by_hand = any(not one.transaction_id.startswith(CORRECTION_PREFIX) for one in priced.corrections)
    if event is None or by_hand or event.charge_reason == usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY:
        return Left.SKIPPED
    if price is None:
        return Left.UNPRICED
    amount = _cost(event, price, recounts=recounts)
    if (priced.price_id, priced.amount_nano_usd) == (price.price_id, amount):
        return Left.UNCHANGED
    if amount > MAX_COST_NANO_USD:
        return Left.SKIPPED
    number = len(priced.corrections) + 1
    repricing = pb.Repricing(
        request_id=transaction.transaction_id,
        account_id=transaction.account_id,
        price_id=price.price_id,
        previous_nano_usd=priced.amount_nano_usd,
        cost_nano_usd=amount,
        transaction_id=f"{CORRECTION_PREFIX}{transaction.transaction_id.removeprefix('req_')}-{number}",
    )
    return repricing, _entry(repricing, priced.price_id)


def _cost(event: usage_pb2.UsageEvent, price: DatedPrice, *, recounts: bool) -> int:
    tokens, units = tokens_of(event.tokens), units_of(event.units)
    if recounts:
        tokens, units = _recount(event, tokens, units)
    multipliers = (event.provider_multiplier_ppm or PPM, event.account_multiplier_ppm or PPM)
    return cost(tokens, price.price, *multipliers, units=units)


def _recount(
    event: usage_pb2.UsageEvent, tokens: Tokens, units: dict[str, int]
) -> tuple[Tokens, dict[str, int]]:
    """Reads the provider's own usage again, where it was complete and is kept."""
    dialect: Dialect | None = _BY_NUMBER.get(event.upstream_dialect)
    if dialect is None or event.token_source != usage_pb2.TOKEN_SOURCE_PROVIDER or not event.raw_usage:
        return tokens, units
    meter = UsageMeter(dialect)
    return (meter.tokens(), meter.units()) if meter.add(event.raw_usage) else (tokens, units)


def _entry(repricing: pb.Repricing, previous_price_id: str) -> Entry:
    return Entry(
        repricing.transaction_id,
        repricing.account_id,
        pb.TRANSACTION_KIND_ADJUSTMENT,
        repricing.previous_nano_usd - repricing.cost_nano_usd,
        hashlib.sha256(repricing.SerializeToString(deterministic=True)).digest(),
        f"priced again by {repricing.price_id}, was {previous_price_id or 'unpriced'}",
        corrects_transaction_id=repricing.request_id,
        price_id=repricing.price_id,
    )
