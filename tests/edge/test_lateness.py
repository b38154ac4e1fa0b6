"""The limit that a late event loop sets, with a clock of the test's own."""

import math
from pathlib import Path

import pytest

from lurus_edge.idle_time import IdleTime
from lurus_edge.lateness import FIRST_SECONDS, KEPT_PART, UNUSED_SECONDS, LatenessLimit

TARGET, FLOOR, STEP = 0.05, 10, 0.1
LATE, SPARE = 2 * TARGET, 0.0


class Loop:
    """An event loop as it looks from outside."""

    def __init__(self, target_seconds: float = TARGET) -> None:
        self.limit = LatenessLimit(target_seconds, FLOOR)
        self.now = self.idle_seconds = 100.0

    def run(
        self, seconds: float, late: float, live: int, idle_part: float = 0.0, step: float = STEP
    ) -> float:
        """Lets time pass in steps; returns the limit then."""
        for _ in range(round(seconds / step)):
            self.now += step
            self.idle_seconds += step * idle_part
            self.limit.look(self.now, late, self.idle_seconds, live)
        return self.limit.value


class TestLimit:
    def test_a_loop_that_stays_late_gets_a_limit_below_what_is_live(self) -> None:
        assert Loop().run(2, LATE, live=100) == pytest.approx(100 * KEPT_PART)

    def test_a_moment_of_lateness_gives_none(self) -> None:
        loop = Loop()
        for _ in range(10):
            assert loop.run(FIRST_SECONDS, LATE, live=100) == math.inf
            assert loop.run(STEP, SPARE, live=100) == math.inf

    @pytest.mark.parametrize("seconds", [1.0, 20.0])
    def test_one_long_stop_gives_none(self, seconds: float) -> None:
        loop = Loop()
        loop.run(1, SPARE, live=100)
        for late in (
            seconds,
            0.3,
            0.1,
            0.06,
        ):  # What has come in the meantime makes it late again, for a while.
            assert loop.run(STEP, late, live=100) == math.inf
        assert loop.run(1, SPARE, live=100) == math.inf

    def test_few_requests_are_never_too_many(self) -> None:
        assert Loop().run(20, 20.0, live=FLOOR) == math.inf

    def test_a_loop_that_sleeps_has_time_to_spare_however_late_it_is(self) -> None:
        assert Loop().run(20, LATE, live=100, idle_part=0.2) == math.inf

    def test_nothing_is_set_where_it_is_turned_off(self) -> None:
        assert Loop(target_seconds=0).run(20, LATE, live=100) == math.inf

    def test_it_follows_the_live_requests_down_to_the_floor_and_not_below(self) -> None:
        loop = Loop()
        values = [loop.run(1, LATE, live) for live in (100, 80, 40, 20, 11)]
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(11 * KEPT_PART)
        assert loop.run(5, LATE, live=9) >= FLOOR

    def test_requests_that_do_not_become_fewer_do_not_lower_it_further(self) -> None:
        loop = Loop()
        first = loop.run(2, LATE, live=100)
        assert loop.run(20, LATE, live=100) == first

    def test_it_widens_while_there_is_time_to_spare_and_rests_between(self) -> None:
        loop = Loop()
        narrow = loop.run(2, LATE, live=100)
        assert loop.run(1, TARGET * 0.9, live=95) == narrow
        wide = loop.run(1, SPARE, live=95)
        assert narrow < wide < 2 * narrow

    def test_a_long_pause_widens_it_no_more_than_a_short_one(self) -> None:
        loop = Loop()
        narrow = loop.run(2, LATE, live=100)
        assert loop.run(100, SPARE, live=95, step=100) < narrow * 1.2

    def test_one_that_is_of_no_use_is_lifted(self) -> None:
        loop = Loop()
        assert loop.run(2, LATE, live=100) < math.inf
        assert loop.run(UNUSED_SECONDS * 2, SPARE, live=10) == math.inf


class TestIdleTime:
    def test_it_is_what_is_neither_run_nor_waited_for(self, tmp_path: Path) -> None:
        told = tmp_path / "schedstat"
        told.write_text("0 0 1\n")
        with IdleTime(told) as idle:
            before = idle.seconds()
            told.write_text("3000000000 4000000000 2\n")
            assert before - 7 <= idle.seconds() < before

    @pytest.mark.parametrize("path", [None, "missing"])
    def test_one_who_works_is_not_idle(self, path: str | None) -> None:
        with IdleTime(Path(path)) if path else IdleTime() as idle:
            first = idle.seconds()
            while idle.seconds() <= first:  # The clocks go on.
                pass
            assert idle.seconds() > first
