"""The soak's verdict: what it takes for a leak, and what it does not."""

import math

from benchmarks.soak.run import Report
from benchmarks.soak.samples import Sample
from benchmarks.soak.verdict import BASE, LOAD, REST, Line, judge

from tests.chaos.invariants import Finding

SAMPLES = 60
PAUSE_SECONDS = 5.0


def _samples(**changes: dict[int, float]) -> list[Sample]:
    """A soak without a leak: up under load, back at rest; `changes` name figures at some samples."""
    usual = {
        "pid": 7.0,
        "rss_mib": 100.0,
        "descriptors": 40.0,
        "threads": 10.0,
        "connections": 12.0,
        "tasks": 30.0,
    }
    samples = []
    for number in range(SAMPLES):
        phase = BASE if number < 4 else REST if number >= SAMPLES - 4 else LOAD
        busy = 1.0 + math.sin(number) ** 2 if phase == LOAD else 1.0
        figures = {
            name: value * (busy if name != "pid" and name != "rss_mib" else 1)
            for name, value in usual.items()
        }
        figures |= {name: values[number] for name, values in changes.items() if number in values}
        samples.append(Sample(number * PAUSE_SECONDS, phase, {"gateway": figures}))
    return samples


def _leaks(samples: list[Sample]) -> set[str]:
    return {line.figure for line in judge(samples) if not line.is_ok}


class TestVerdict:
    def test_what_comes_back_is_no_leak(self) -> None:
        found = judge(_samples())
        assert [line.figure for line in found] == [
            "rss_mib",
            "descriptors",
            "threads",
            "connections",
            "tasks",
        ]
        assert _leaks(_samples()) == set()

    def test_a_descriptor_that_is_kept_by_some_calls_is_one(self) -> None:
        kept = {number: 40 + number * 0.2 for number in range(4, SAMPLES)}
        assert _leaks(_samples(descriptors=kept)) == {"descriptors"}

    def test_memory_that_goes_on_growing_is_one_though_its_end_would_be_allowed(self) -> None:
        growing = {number: 100 + number * 0.3 for number in range(4, SAMPLES)}
        (line,) = [line for line in judge(_samples(rss_mib=growing)) if line.figure == "rss_mib"]
        assert line.end < line.allowed
        assert not line.is_ok

    def test_memory_that_a_large_body_takes_for_a_while_is_none(self) -> None:
        assert _leaks(_samples(rss_mib=dict.fromkeys(range(40, 44), 180.0))) == set()

    def test_a_soak_that_saw_nothing_is_not_clean(self) -> None:
        fine = [Finding("I4", "nothing is booked twice", 1, ())]
        assert Report(1, 1, 1, lines=judge(_samples()), findings=fine).is_clean
        assert not Report(1, 1, 1, lines=[], findings=fine).is_clean

    def test_memory_is_not_compared_across_a_restart(self) -> None:
        restarted = dict.fromkeys(range(45, SAMPLES), 8.0)
        smaller = {number: 70.0 if number < 45 else 100.0 for number in range(30, SAMPLES)}
        (line, *_) = judge(_samples(pid=restarted, rss_mib=smaller))
        assert isinstance(line, Line)
        assert line.growth is None and line.is_ok
