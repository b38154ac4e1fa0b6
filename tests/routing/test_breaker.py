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


class TestTrial:
    def test_as_many_may_wait_as_may_fail(self) -> None:
        breaker = Breaker()
        numbers = [breaker.start(0) for _ in range(module.FAILURES_IN_A_ROW)]
        for count, number in enumerate(numbers):
            assert not breaker.has_room(0), count
            breaker.fail(0, number)
        assert breaker.state(0) is State.OPEN

    def test_an_answer_ends_it(self) -> None:
        breaker = Breaker()
        numbers = [breaker.start(0) for _ in range(module.FAILURES_IN_A_ROW)]
        breaker.succeed(0, numbers[0])
        assert breaker.has_room(0) and breaker.start(0) == module.ORDINARY

    def test_a_failure_begins_it_anew(self) -> None:
        breaker = Breaker()
        breaker.succeed(0)
        breaker.fail(1)
        for _ in range(module.FAILURES_IN_A_ROW - 1):
            assert breaker.has_room(1)
            breaker.start(1)
        assert not breaker.has_room(1)

    def test_those_who_wait_long_keep_nobody_waiting(self) -> None:
        breaker = Breaker()
        for _ in range(module.FAILURES_IN_A_ROW):
            breaker.start(0)
        assert breaker.has_room(module.TRIAL_SECONDS)


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        # Of each call its number, when it began, and whether the breaker was open then.
        self.calls: list[tuple[int, float, int]] = []
        self.opening_count = 0

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_alone=st.booleans())
    def begin(self, is_alone: bool) -> None:
        breaker = self.breaker
        if breaker.admits(self.now) and (is_alone or breaker.is_open or breaker.has_room(self.now)):
            was_open = breaker.is_open
            number = breaker.start(self.now)
            assert number or not was_open
            self.calls.append((number, self.now, self.opening_count))
            assert not was_open or not breaker.admits(self.now)

    @precondition(lambda self: self.breaker.is_open)
    @rule()
    def begin_in_reserve(self) -> None:
        if not self.breaker.admits(self.now) and self.breaker.has_room(self.now):
            probe = self.breaker.probe
            number = self.breaker.start(self.now, is_reserve=True)
            assert self.breaker.probe == probe != number
            self.calls.append((number, self.now, self.opening_count))

    @rule()
    def wake(self) -> None:
        was_woken = self.breaker.was_woken
        if self.breaker.wake(self.now):
            assert self.breaker.state(self.now) is State.HALF_OPEN
            assert not was_woken and not self.breaker.wake(self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(["succeed", "fail", "fail", "abandon"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        number, _, opening = call
        was_open = self.breaker.is_open
        is_news = opening == self.opening_count
        opened_before = self.breaker.opened, self.breaker.times_open
        if outcome == "succeed":
            self.breaker.succeed(self.now, number)
            assert self.breaker.is_open == (was_open and not is_news)
        elif outcome == "fail":
            self.breaker.fail(self.now, number)
            assert self.breaker.is_open or not was_open
        else:
            self.breaker.abandon(number)
            assert self.breaker.is_open == was_open
        if self.breaker.is_open and (self.breaker.opened, self.breaker.times_open) != opened_before:
            self.opening_count += 1

    @invariant()
    def at_most_one_probe_is_young(self) -> None:
        young = [probe for probe, begun, _ in self.calls if probe and self.now < begun + module.PROBE_SECONDS]
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
    def a_trial_is_no_larger_than_what_is_left(self) -> None:
        breaker = self.breaker
        waiting = sum(self.now < until for until in breaker.waiting.values())
        assert waiting <= module.FAILURES_IN_A_ROW
        if waiting >= module.FAILURES_IN_A_ROW - breaker.in_a_row and (breaker.in_a_row or breaker.is_open):
            assert not breaker.has_room(self.now)

    @invariant()
    def it_holds_little(self) -> None:
        assert len(self.breaker.outcomes) <= module.WINDOW_MAXIMUM


BreakerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, database=None
)
TestBreakerMachine = BreakerMachine.TestCase
