"""What people write and read: dollars, moments, spans of time. Money never passes through a float."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from lurus_common.money import NANO_USD_PER_USD

_USD = re.compile(r"(?P<sign>[+-]?)\$?(?P<amount>[0-9]{1,9}(?:\.[0-9]{1,9})?)", re.ASCII)
_FACTOR = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6})?", re.ASCII)
_SPAN = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PPM = 1_000_000


def nano_usd(text: str) -> int:
    """Returns `12.50` or `$12.50` in nano-USD, exactly.

    Raises:
        ValueError: if it is not a decimal number, or has more than 9 decimals.
    """
    match = _USD.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an amount in USD such as 12.50 (at most 9 decimals)")
    amount = int(Decimal(match["amount"]) * NANO_USD_PER_USD)
    return -amount if match["sign"] == "-" else amount


def positive_nano_usd(text: str) -> int:
    """Returns an amount that is not below zero, in nano-USD."""
    amount = nano_usd(text)
    if amount < 0:
        raise ValueError(f"{text!r} is below zero")
    return amount


def usd(amount_nano_usd: int) -> str:
    """Returns an amount for people, exactly: `$12.50`, `-$0.000031`."""
    whole, nano = divmod(abs(amount_nano_usd), NANO_USD_PER_USD)
    decimals = f"{nano:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_nano_usd < 0 else ''}${whole:,}.{decimals}"


def parts_per_million(text: str) -> int:
    """Returns a factor such as `1.25` in millionths, exactly."""
    if not _FACTOR.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a factor such as 1.25 (at most 6 decimals)")
    return int(Decimal(text.strip()) * _PPM)


def factor(parts_per_million: int) -> str:
    """Returns a factor in millionths for people, exactly: `1.25`; 0 stands for `1`."""
    whole, rest = divmod(parts_per_million or _PPM, _PPM)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


def span(text: str) -> timedelta:
    """Returns a span such as `90s`, `15m`, `2h`, `7d`, `4w`."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a span of time such as 15m, 2h or 7d")
    return timedelta(**{_UNITS[match["unit"]]: int(match["count"])})


def moment(text: str, now: datetime) -> datetime:
    """Returns a date, a date and time (UTC if it names no zone), or a span before `now`."""
    if _SPAN.fullmatch(text.strip()):
        return now - span(text)
    return _parsed(text)


def later_moment(text: str, now: datetime) -> datetime:
    """Returns a date, a date and time (UTC if it names no zone), or a span after `now`."""
    if _SPAN.fullmatch(text.strip()):
        return now + span(text)
    return _parsed(text)


def _parsed(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not 2h, 7d, 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
