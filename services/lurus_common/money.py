"""Tokens, prices and what they cost, in integers only.

Prices are nano-USD per million tokens or per thousand of other units, amounts
are nano-USD. Nothing in this module is a float, and nothing here knows where a
price comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NANO_USD_PER_USD = 1_000_000_000
TOKENS_PER_PRICE_UNIT = 1_000_000
UNITS_PER_PRICE_UNIT = 1_000
PPM = 1_000_000
NOTHING: Mapping[str, int] = MappingProxyType({})
_UNIT_SCALE = TOKENS_PER_PRICE_UNIT // UNITS_PER_PRICE_UNIT


@dataclass(slots=True)
class Tokens:
    """Counts of one answer. No token is in two of them, except `reasoning`, which is part of `output`.

    A cache write whose time to live the vendor did not state counts under the
    vendor's default: 5 minutes for Anthropic, 30 minutes for OpenAI.
    """

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_30m: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def cache_write(self) -> int:
        """All cache writes together, whatever their time to live."""
        return self.cache_write_5m + self.cache_write_30m + self.cache_write_1h + self.cache_write_12h

    @property
    def all_input(self) -> int:
        """Fresh input, what the cache read and what it wrote, together: what tiers go by."""
        return self.input + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-USD per million tokens of each kind."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_30m: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of a request whose input, cached or not, is more than so many tokens in all."""

    above_input_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs: base rates, other rates for long prompts, and what is not tokens.

    Args:
        tiers: by rising threshold.
        unit_rates: nano-USD per thousand units, by kind.
    """

    rates: Rates = Rates()
    tiers: tuple[Tier, ...] = ()
    unit_rates: Mapping[str, int] = field(default_factory=dict)

    def tier_of(self, tokens: Tokens) -> Tier | None:
        """Returns the tier that counts for the whole of a request, None for the base rates."""
        found = None
        if self.tiers:
            total = tokens.all_input
            for tier in self.tiers:
                if total > tier.above_input_tokens:
                    found = tier
        return found

    def rates_of(self, tokens: Tokens) -> Rates:
        """Returns the rates that count for a request."""
        tier = self.tier_of(tokens)
        return tier.rates if tier else self.rates


def cost(
    tokens: Tokens,
    price: Price,
    *multipliers_ppm: int,
    units: Mapping[str, int] = NOTHING,
) -> int:
    """Returns what a request costs, in nano-USD, times factors in millionths.

    Rounds up once, at the end, so that many small requests never sum to less
    than their true cost; the excess is under 1 nano-USD per request.

    Args:
        units: what was used besides tokens, by kind; a kind without a rate costs nothing.
    """
    scaled, divisor = exact_cost(tokens, price, units), TOKENS_PER_PRICE_UNIT
    for multiplier in multipliers_ppm:
        scaled, divisor = scaled * multiplier, divisor * PPM
    return -(-scaled // divisor)


def exact_cost(tokens: Tokens, price: Price, units: Mapping[str, int] = NOTHING) -> int:
    """Returns what a request costs in millionths of a nano-USD, exactly, without multipliers."""
    rates = price.rates_of(tokens)
    scaled = (
        tokens.input * rates.input
        + tokens.cache_read * rates.cache_read
        + tokens.cache_write_5m * rates.cache_write_5m
        + tokens.cache_write_30m * rates.cache_write_30m
        + tokens.cache_write_1h * rates.cache_write_1h
        + tokens.cache_write_12h * rates.cache_write_12h
        + tokens.output * rates.output
    )
    for kind, count in units.items():
        scaled += count * price.unit_rates.get(kind, 0) * _UNIT_SCALE
    return scaled


def require_amount(value: object, name: str) -> int:
    """Returns `value` if it is an integer that fits a signed 64-bit column.

    asyncpg stores `1.999999` in a bigint as `1` and `True` as `1`, without a
    word, so every amount passes through here on its way to a database.

    Raises:
        TypeError: if it is not exactly an int (a bool is not).
        OverflowError: if it does not fit 64 bits.
    """
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise OverflowError(f"{name} does not fit 64 bits")
    return value
