"""The breaker as a state machine, and what it promises at each step."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lurus_routing import breaker as module
from lurus_routing.breaker import Breaker, State


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(module.FAILURES_IN_A_ROW):
        breaker.fail(now)
    return breaker


class TestOpening:
    def test_failures_in_a_row_open_it(self) -> None:
        breaker = Breaker()
        for number in range(module.FAILURES_IN_A_ROW):
            assert breaker.state(number) is State.CLOSED
            breaker.fail(number)
        assert breaker.state(number) is State.OPEN
        assert not breaker.admits(number)

    def test_an_answer_between_them_starts_anew(self) -> None:
        breaker = Breaker()
        for _ in range(3):
            for _ in range(module.FAILURES_IN_A_ROW - 1):
                breaker.fail(0)
            breaker.succeed(0)
        assert breaker.state(0) is State.CLOSED

    def test_half_of_twenty_in_half_a_minute_open_it(self) -> None:
        breaker = Breaker()
        for number in range(module.WINDOW_MINIMUM // 2):
            breaker.succeed(number)
            breaker.fail(number)
        assert breaker.state(20) is State.OPEN

    def test_old_outcomes_do_not_count(self) -> None:
        breaker = Breaker()
        for number in range(60):
            breaker.succeed(number * 10)
            breaker.fail(number * 10)
        assert breaker.state(600) is State.CLOSED

    def test_it_stays_open_longer_each_time(self) -> None:
        breaker = opened()
        for times in range(1, 15):
            wanted = min(module.OPEN_SECONDS * times, module.MAX_OPEN_SECONDS)
            assert breaker.open_until - breaker.opened == pytest.approx(wanted)
            now = breaker.open_until
            breaker.fail(now, breaker.start(now))


class TestProbing:
    def test_late_news_of_older_calls_change_nothing(self) -> None:
        breaker = opened()
        until = breaker.open_until
        breaker.succeed(1)
        breaker.fail(1)
        assert (breaker.state(1), breaker.open_until) == (State.OPEN, until)

    def test_an_older_call_does_not_free_the_probes_place(self) -> None:
        breaker = opened()
        breaker.start(40)
        breaker.abandon()
        assert not breaker.admits(41)

    def test_a_probe_that_never_ends_is_replaced(self) -> None:
        breaker = opened()
        first = breaker.start(40)
        assert not breaker.admits(40 + module.PROBE_SECONDS - 1)
        assert breaker.admits(40 + module.PROBE_SECONDS)
        second = breaker.start(40 + module.PROBE_SECONDS)
        breaker.fail(102, first)  # not the one that counts now
        breaker.abandon(first)
        assert not breaker.admits(102)
        breaker.succeed(103, second)
        assert breaker.state(103) is State.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.calls: list[tuple[int, float]] = []

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        if self.breaker.admits(self.now):
            was_open = self.breaker.is_open
            probe = self.breaker.start(self.now)
            assert bool(probe) == was_open
            self.calls.append((probe, self.now))
            assert not was_open or not self.breaker.admits(self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(["succeed", "fail", "fail", "abandon"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        was_open = self.breaker.is_open
        if outcome == "succeed":
            self.breaker.succeed(self.now, call[0])
            assert self.breaker.is_open == (was_open and not call[0])
        elif outcome == "fail":
            self.breaker.fail(self.now, call[0])
            assert self.breaker.is_open or not was_open
        else:
            self.breaker.abandon(call[0])
            assert self.breaker.is_open == was_open

    @invariant()
    def at_most_one_probe_is_young(self) -> None:
        young = [probe for probe, begun in self.calls if probe and self.now < begun + module.PROBE_SECONDS]
        if self.breaker.is_open:
            current = [probe for probe in young if probe == self.breaker.probe]
            assert len(current) <= 1
            if current:
                assert not self.breaker.admits(self.now)

    @invariant()
    def it_does_not_stay_open_for_ever(self) -> None:
        if self.breaker.is_open:
            assert self.breaker.open_until <= self.now + module.MAX_OPEN_SECONDS
            assert self.breaker.admits(self.now + module.MAX_OPEN_SECONDS + module.PROBE_SECONDS)

    @invariant()
    def it_holds_little(self) -> None:
        assert len(self.breaker.outcomes) <= module.WINDOW_MAXIMUM


BreakerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, database=None
)
TestBreakerMachine = BreakerMachine.TestCase
