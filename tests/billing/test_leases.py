"""The rules of leases, quotas and days."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus_billing import leases
from lurus_billing.leases import Cap, Funds, Lease

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
MUCH_LATER = NOW + timedelta(days=16)


class TestOutstanding:
    @pytest.mark.parametrize(
        ("lease", "expected"),
        [
            (Lease(100, 30, None, LATER), 70),
            (Lease(100, 130, None, LATER), 0),
            (Lease(100, 30, 40, LATER), 10),
            (Lease(100, 30, 20, LATER), 0),
            (Lease(100, 30, 140, LATER), 110),
            (Lease(100, 30, None, NOW), 0),
            (Lease(100, 30, 40, NOW), 0),
        ],
    )
    def test_it_is_what_may_still_be_settled(self, lease: Lease, expected: int) -> None:
        assert leases.outstanding(lease, NOW) == expected


class TestGrant:
    @pytest.mark.parametrize(
        ("funds", "amount", "reason", "reset"),
        [
            (Funds(100, 0, 0), 50, "", None),
            (Funds(30, 10, 5), 35, "", None),
            (Funds(1000, 0, 0), 60, "", None),
            (Funds(0, 0, 0), 0, "BALANCE_TOO_LOW", None),
            (Funds(-50, 40, 0), 0, "BALANCE_TOO_LOW", None),
            (Funds(100, 0, 100), 0, "BALANCE_TOO_LOW", None),
            (Funds(1000, 0, 10, (Cap(100, 70, LATER),)), 20, "", None),
            (Funds(1000, 0, 10, (Cap(0, 70, LATER),)), 60, "", None),
            (Funds(1000, 0, 10, (Cap(100, 90, LATER),)), 0, "QUOTA_EXCEEDED", LATER),
            (
                Funds(1000, 0, 0, (Cap(9, 9, LATER), Cap(9, 9, MUCH_LATER))),
                0,
                "QUOTA_EXCEEDED",
                MUCH_LATER,
            ),
            (Funds(1000, 0, 0, (Cap(9, 9, LATER), Cap(9, 9, None))), 0, "QUOTA_EXCEEDED", None),
        ],
    )
    def test_it_lends_what_is_free_at_most(
        self, funds: Funds, amount: int, reason: str, reset: datetime | None
    ) -> None:
        requested = 50 if amount == 50 else 60
        assert leases.grant(funds, requested, 60) == leases.Grant(amount, reason, reset)

    def test_one_that_asks_for_nothing_gets_nothing_without_a_reason(self) -> None:
        assert leases.grant(Funds(100, 0, 0), 0, 60) == leases.Grant(0)


class TestPeriods:
    def test_the_day_is_the_accounts_own(self) -> None:
        found = leases.periods(datetime(2026, 1, 31, 23, 30, tzinfo=UTC), "Asia/Shanghai")
        assert found.day_start == datetime(2026, 1, 31, 16, tzinfo=UTC)
        assert found.day_end == datetime(2026, 2, 1, 16, tzinfo=UTC)
        assert found.month_start == datetime(2026, 1, 31, 16, tzinfo=UTC)
        assert found.month_end == datetime(2026, 2, 28, 16, tzinfo=UTC)

    def test_a_day_may_have_23_hours_and_begin_with_a_jump(self) -> None:
        found = leases.periods(datetime(2024, 4, 26, 12, tzinfo=UTC), "Africa/Cairo")  # jumped at midnight
        assert found.day_start == datetime(2024, 4, 25, 22, tzinfo=UTC)
        assert found.day_end - found.day_start == timedelta(hours=23)

    @given(
        st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001  # made aware below
        st.sampled_from(sorted(available_timezones())),
    )
    def test_every_moment_is_in_its_day_and_days_begin_at_buckets(self, moment: datetime, name: str) -> None:
        now = moment.replace(tzinfo=UTC)
        found = leases.periods(now, name)
        assert found.month_start <= found.day_start <= now < found.day_end <= found.month_end
        assert found.day_start.timestamp() % 900 == 0
        assert found.day_start.astimezone(ZoneInfo(name)).date() == now.astimezone(ZoneInfo(name)).date()

    @pytest.mark.parametrize("name", ["Mars/Base", "../etc/passwd", "a\0b", "utc ", "right/UTC"])
    def test_other_names_are_no_time_zones(self, name: str) -> None:
        assert not leases.is_time_zone(name)
