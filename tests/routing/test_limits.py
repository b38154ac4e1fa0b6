"""The arithmetic of limits: never more than promised, in any window and however workers share."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lurus_routing.limits import Bucket, Shared, Subject, new_subject

TOLERANCE = 1e-3
LIMITS = st.integers(1, 300)
# Seconds to the next request, and what it asks for.
STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 400)), max_size=80)


def most_in_a_window(passed: list[tuple[float, float]], limit: float) -> float:
    """By how much the worst window exceeds what fills up during it."""
    worst = 0.0
    for first in range(len(passed)):
        total = 0.0
        for at, amount in passed[first:]:
            total += amount
            worst = max(worst, total - (at - passed[first][0]) * limit / 60)
    return worst


class TestBucket:
    @given(LIMITS, STEPS)
    def test_no_window_passes_more_than_the_bucket_and_what_fills_it(
        self, limit: int, steps: list[tuple[float, int]]
    ) -> None:
        bucket, now, passed = Bucket(limit), 0.0, []
        for pause, amount in steps:
            now += pause
            amount = min(amount, limit)
            if not bucket.wait_seconds(amount, now):
                bucket.charge(amount, now)
                passed.append((now, amount))
        assert most_in_a_window(passed, limit) <= limit + TOLERANCE

    @given(LIMITS, STEPS)
    def test_what_is_told_to_wait_passes_after_it(self, limit: int, steps: list[tuple[float, int]]) -> None:
        bucket, now = Bucket(limit), 0.0
        for pause, amount in steps:
            now += pause + bucket.wait_seconds(amount, now + pause)
            assert bucket.wait_seconds(amount, now + 1e-6) < TOLERANCE
            bucket.charge(amount, now)

    def test_more_than_a_bucket_passes_when_it_is_full_and_is_paid_off(self) -> None:
        bucket = Bucket(60)
        assert bucket.wait_seconds(600, 0.0) == 0
        bucket.charge(600, 0.0)
        assert bucket.wait_seconds(1, 0.0) == 541
        assert bucket.wait_seconds(1, 541.0) == 0

    @given(LIMITS, LIMITS, st.floats(0, 1))
    def test_a_changed_size_keeps_the_used_part(self, before: int, after: int, part: float) -> None:
        bucket = Bucket(before, before * part)
        bucket.resize(after, 0.0)
        assert abs(bucket.level(0.0) - after * part) < TOLERANCE


class _Redis:
    """What the workers agree on, as the script reckons it."""

    def __init__(self, limit: int) -> None:
        self.bucket = Bucket(limit)
        self.live: dict[int, int] = {}

    def exchange(self, number: int, worker: Subject, count: int, now: float) -> None:
        sent = worker.unsent()
        self.bucket.charge(sent.requests, now)
        self.live[number] = sent.own
        others = sum(own for other, own in self.live.items() if other != number)
        worker.share(Shared(self.bucket.level(now), 0.0, others), sent, count, now)


WORKERS = st.integers(1, 5)
# Few enough to be used up.
SMALL_LIMITS = st.integers(1, 15)
SEEDS = st.integers(0, 2**32)


def events_of(seed: int) -> list[tuple[float, int, bool]]:
    """Seconds to the next event, which worker, and whether it exchanges, which is rare."""
    chance = random.Random(seed)
    return [(chance.choice([0.0, 0.0, 0.3]), chance.randrange(5), chance.random() < 0.05) for _ in range(200)]


class TestSharing:
    @settings(max_examples=100, deadline=None)
    @given(SMALL_LIMITS, WORKERS, SEEDS)
    def test_all_workers_together_keep_the_stated_bound(self, limit: int, count: int, seed: int) -> None:
        redis, now, passed = _Redis(limit), 0.0, []
        workers = [new_subject("key_1", (limit, 0, 0), 0.0) for _ in range(count)]
        for worker in workers:
            worker.assume(count)
        for pause, chosen, is_exchange in events_of(seed):
            now += pause
            worker = workers[chosen % count]
            if is_exchange:
                redis.exchange(chosen % count, worker, count, now)
            elif worker.excess(0, now) is None:
                worker.begin(0, now)
                worker.end(0, now)
                passed.append((now, 1.0))
        bound = limit + (count - 1) / count * limit + count if count > 1 else limit
        assert most_in_a_window(passed, limit) <= bound + TOLERANCE

    @settings(max_examples=100, deadline=None)
    @given(SMALL_LIMITS, WORKERS, SEEDS)
    def test_requests_at_once_keep_theirs(self, limit: int, count: int, seed: int) -> None:
        redis, now = _Redis(limit), 0.0
        workers = [new_subject("key_1", (0, 0, limit), 0.0) for _ in range(count)]
        for worker in workers:
            worker.assume(count)
        for pause, chosen, is_exchange in events_of(seed):
            now += pause
            worker = workers[chosen % count]
            if is_exchange:
                redis.exchange(chosen % count, worker, count, now)
            elif worker.excess(0, now) is None:
                worker.begin(0, now)
        total = sum(worker.own for worker in workers)
        assert total <= (limit if count == 1 else limit + (count - 1) / count * limit + count)

    def test_alone_each_worker_has_its_part(self) -> None:
        workers = [new_subject("key_1", (90, 0, 9), 0.0) for _ in range(3)]
        for worker in workers:
            worker.split(3, 0.0)
            while worker.excess(0, 0.0) is None:
                worker.begin(0, 0.0)
        assert sum(worker.own for worker in workers) == 9
        for worker in workers:
            for _ in range(worker.own):
                worker.end(0, 0.0)
            while worker.excess(0, 0.0) is None:
                worker.begin(0, 0.0)
                worker.end(0, 0.0)
            assert worker.requests is not None
            assert worker.requests.bucket.level(0.0) == 30

    def test_what_passed_during_an_outage_is_told_afterwards_as_far_as_it_is_not_paid_off(self) -> None:
        worker = new_subject("key_1", (60, 0, 0), 0.0)
        for _ in range(30):
            worker.begin(0, 0.0)
        for now in (0.0, 20.0):
            worker.split(2, now)
        assert worker.unsent().requests == 10


class TestSubject:
    def test_tokens_are_charged_by_estimate_and_corrected(self) -> None:
        subject = new_subject("key_1", (0, 100, 0), 0.0)
        subject.begin(80, 0.0)
        excess = subject.excess(30, 0.0)
        assert excess is not None and (excess.limit, excess.maximum) == ("tokens_per_minute", 100)
        subject.end(10 - 80, 0.0)
        assert subject.excess(90, 0.0) is None
        subject.begin(90, 0.0)
        subject.end(190 - 90, 0.0)
        waits = [excess.wait_seconds for at in (0.0, 10.0) if (excess := subject.excess(1, at))]
        assert [round(earlier - later, 6) for earlier, later in pairwise(waits)] == [10.0]

    def test_counts_have_a_bucket_of_their_own(self) -> None:
        subject = new_subject("key_1", (1, 0, 1), 0.0)
        subject.begin(1, 0.0)
        assert subject.excess(1, 0.0) is not None
        passed = 0
        while subject.excess_count(0.0) is None:
            passed += 1
        assert passed == 300

    def test_lower_limits_hold_at_once_and_forget_nothing(self) -> None:
        subject = new_subject("key_1", (100, 0, 5), 0.0)
        for _ in range(4):
            subject.begin(0, 0.0)
        subject.take_limits((4, 0, 4), 0.0)
        excess = subject.excess(0, 0.0)
        assert excess is not None and excess.limit == "requests_per_minute"
        excess = subject.excess(0, 60.0)
        assert excess is not None and excess.limit == "concurrent_requests"
        subject.take_limits((0, 0, 0), 0.0)
        assert subject.excess(10**9, 0.0) is None
