"""Money, factors and moments as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from lurus_switch import amounts

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("12.50", 12_500_000_000),
        ("$12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("-3.5", -3_500_000_000),
        ("+1", 1_000_000_000),
        ("0.1", 100_000_000),
        ("999999999.999999999", 999_999_999_999_999_999),
    ],
)
def test_dollars_are_read_exactly(text: str, nano: int) -> None:
    assert amounts.nano_usd(text) == nano


@pytest.mark.parametrize(
    "text", ["", "1e3", "0.0000000001", "1,000", "NaN", "inf", "12.", ".5", "1_000", "١", "--1", "1 2"]
)
def test_what_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="amount in USD"):
        amounts.nano_usd(text)


def test_caps_and_prices_are_not_below_zero() -> None:
    assert amounts.positive_nano_usd("0") == 0
    with pytest.raises(ValueError, match="below zero"):
        amounts.positive_nano_usd("-0.01")


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (-765_000, "-$0.000765"),
        (100_000_000_000, "$100.00"),
        (1_234_567_500_000_000, "$1,234,567.50"),
    ],
)
def test_dollars_are_shown_exactly(nano: int, text: str) -> None:
    assert amounts.usd(nano) == text
    assert amounts.nano_usd(text.replace(",", "")) == nano


def test_factors_are_millionths() -> None:
    assert amounts.parts_per_million("1.25") == 1_250_000
    assert amounts.parts_per_million("0.000001") == 1
    with pytest.raises(ValueError, match="factor"):
        amounts.parts_per_million("1e6")


def test_moments_are_dates_times_or_spans_from_now() -> None:
    assert amounts.moment("2h", NOW) == NOW - timedelta(hours=2)
    assert amounts.later_moment("30d", NOW) == NOW + timedelta(days=30)
    assert amounts.moment("2026-11-01", NOW) == datetime(2026, 11, 1, tzinfo=UTC)
    assert amounts.moment("2026-11-01T10:00:00+02:00", NOW) == datetime(2026, 11, 1, 8, tzinfo=UTC)
    with pytest.raises(ValueError, match="2027-01-31"):
        amounts.moment("yesterday", NOW)
