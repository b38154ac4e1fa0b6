"""Prices as the contracts state them: which one counts, and what it makes of a usage event."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lurus.provider.v1.provider_pb2 import Price as PriceMessage
from lurus.provider.v1.provider_pb2 import PriceTier
from lurus.usage.v1 import usage_pb2
from lurus_common.money import PPM, Price, Rates, Tier, Tokens, cost


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price, from a moment on (nanoseconds since 1970)."""

    price_id: str
    effective_time: int
    price: Price


class PriceList:
    """All prices by provider and model. A model without one is unpriced, never guessed."""

    def __init__(self, prices: Iterable[PriceMessage]) -> None:
        self._prices: defaultdict[tuple[str, str], list[DatedPrice]] = defaultdict(list)
        for message in prices:
            dated = DatedPrice(message.price_id, message.effective_time.ToNanoseconds(), price_of(message))
            self._prices[message.provider_id, message.model].append(dated)
        for found in self._prices.values():
            found.sort(key=lambda dated: (dated.effective_time, dated.price_id), reverse=True)

    def find(self, provider_id: str, upstream_model: str, model: str, time_ns: int) -> DatedPrice | None:
        """Returns the price at a moment, or None.

        This provider's own counts before everybody's, the upstream model's
        before the one of the name that the client sent.
        """
        for owner in (provider_id, ""):
            for name in (upstream_model, model):
                for dated in self._prices.get((owner, name), ()):
                    if dated.effective_time <= time_ns:
                        return dated
        return None


def price_of(message: PriceMessage) -> Price:
    """Returns a price to compute with."""
    tiers = [Tier(tier.above_input_tokens, rates_of(tier)) for tier in message.tiers]
    return Price(
        rates_of(message),
        tuple(sorted(tiers, key=lambda tier: tier.above_input_tokens)),
        {rate.kind: rate.nano_usd_per_thousand for rate in message.unit_rates},
    )


def rates_of(message: PriceMessage | PriceTier) -> Rates:
    """Returns the rates of a price, or of one of its tiers."""
    return Rates(
        input=message.input_nano_usd,
        cache_read=message.cache_read_nano_usd,
        cache_write_5m=message.cache_write_5m_nano_usd,
        cache_write_30m=message.cache_write_30m_nano_usd,
        cache_write_1h=message.cache_write_1h_nano_usd,
        cache_write_12h=message.cache_write_12h_nano_usd,
        output=message.output_nano_usd,
    )


def tokens_of(message: usage_pb2.Tokens) -> Tokens:
    """Returns counts to compute with."""
    return Tokens(
        message.input,
        message.cache_read,
        message.cache_write_5m,
        message.cache_write_30m,
        message.cache_write_1h,
        message.cache_write_12h,
        message.output,
        message.reasoning,
    )


def units_of(counts: Iterable[usage_pb2.UnitCount]) -> dict[str, int]:
    """Returns what was used besides tokens, by kind."""
    units: dict[str, int] = {}
    for unit in counts:
        units[unit.kind] = units.get(unit.kind, 0) + unit.count
    return units


def are_priced(units: Mapping[str, int], price: Price) -> bool:
    """Whether a price has a rate for every unit that was used, if only 0."""
    return all(kind in price.unit_rates for kind, count in units.items() if count)


def event_cost(event: usage_pb2.UsageEvent, tokens: Tokens, price: Price) -> int:
    """Returns what a request costs in nano-USD, with the multipliers and units that its event states."""
    provider, account = event.provider_multiplier_ppm or PPM, event.account_multiplier_ppm or PPM
    return cost(tokens, price, provider, account, units=units_of(event.units))
