"""A provider that is the only one left is asked again soon, by one call at a time."""

from lurus_routing.breaker import FAILURES_IN_A_ROW, LAST_RESORT_SECONDS, OPEN_SECONDS, Breaker


def opened(now: float) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.fail(now)
    return breaker


def test_with_others_to_ask_an_open_breaker_stays_shut_for_its_time() -> None:
    breaker = opened(100)
    assert not breaker.admits(100 + OPEN_SECONDS - 1)
    assert breaker.admits(100 + OPEN_SECONDS)


def test_the_last_resort_is_probed_soon_and_by_one_call_only() -> None:
    breaker = opened(100)
    assert not breaker.admits(100 + LAST_RESORT_SECONDS - 1, is_last_resort=True)
    assert breaker.admits(100 + LAST_RESORT_SECONDS, is_last_resort=True)
    probe = breaker.start(100 + LAST_RESORT_SECONDS)
    assert not breaker.admits(100 + LAST_RESORT_SECONDS, is_last_resort=True)
    breaker.succeed(106, probe)
    assert breaker.admits(106)


def test_a_probe_that_fails_closes_the_last_resort_again() -> None:
    breaker = opened(100)
    breaker.fail(106, breaker.start(105))
    assert not breaker.admits(110, is_last_resort=True)
    assert breaker.admits(111, is_last_resort=True)
