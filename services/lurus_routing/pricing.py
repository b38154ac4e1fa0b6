"""Which price counts: the newest one in effect, of exactly this model."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lurus.provider.v1.provider_pb2 import Price as PriceMessage
from lurus_common.money import Price


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price, from a moment on (nanoseconds since 1970)."""

    price_id: str
    effective_time: int
    rates: Price


class PriceList:
    """All prices by provider and model. A model without one is unpriced, never guessed."""

    def __init__(self, prices: Iterable[PriceMessage]) -> None:
        self._prices: defaultdict[tuple[str, str], list[DatedPrice]] = defaultdict(list)
        for message in prices:
            self._prices[message.provider_id, message.model].append(_dated(message))
        for dated in self._prices.values():
            dated.sort(key=lambda price: (price.effective_time, price.price_id), reverse=True)

    def find(self, provider_id: str, upstream_model: str, model: str, time_ns: int) -> DatedPrice | None:
        """Returns the price at a moment, or None.

        This provider's own counts before everybody's, the upstream model's
        before the one of the name that the client sent.
        """
        for owner in (provider_id, ""):
            for name in (upstream_model, model):
                for price in self._prices.get((owner, name), ()):
                    if price.effective_time <= time_ns:
                        return price
        return None


def _dated(message: PriceMessage) -> DatedPrice:
    rates = Price(
        input=message.input_nano_usd,
        cache_read=message.cache_read_nano_usd,
        cache_write_5m=message.cache_write_5m_nano_usd,
        cache_write_30m=message.cache_write_30m_nano_usd,
        cache_write_1h=message.cache_write_1h_nano_usd,
        cache_write_12h=message.cache_write_12h_nano_usd,
        output=message.output_nano_usd,
    )
    return DatedPrice(message.price_id, message.effective_time.ToNanoseconds(), rates)
