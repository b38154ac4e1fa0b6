"""Tokens, prices and what they cost, in integers only.

Prices are nano-USD per million units, amounts are nano-USD. Nothing in this
module is a float, and nothing here knows where a price comes from.
"""

from dataclasses import dataclass

NANO_USD_PER_USD = 1_000_000_000
TOKENS_PER_PRICE_UNIT = 1_000_000
PPM = 1_000_000


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


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per million tokens of each kind."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_30m: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    output: int = 0


def cost(tokens: Tokens, price: Price, multiplier_ppm: int = PPM) -> int:
    """Returns what `tokens` cost, in nano-USD, times a factor in millionths.

    Rounds up once, at the end, so that many small requests never sum to less
    than their true cost; the excess is under 1 nano-USD per request.
    """
    scaled = (
        tokens.input * price.input
        + tokens.cache_read * price.cache_read
        + tokens.cache_write_5m * price.cache_write_5m
        + tokens.cache_write_30m * price.cache_write_30m
        + tokens.cache_write_1h * price.cache_write_1h
        + tokens.cache_write_12h * price.cache_write_12h
        + tokens.output * price.output
    )
    return -(-scaled * multiplier_ppm // (TOKENS_PER_PRICE_UNIT * PPM))


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
