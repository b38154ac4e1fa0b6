"""Says whether what was counted came back to where it began, and whether memory still grows."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.soak.samples import OURS, Sample

BASE, LOAD, REST = "base", "load", "rest"
# Above the base, at rest: a share, and so many.
COUNT_SHARE, COUNT_SPARE = 0.1, 6
# Threads are made when somebody waits for one, up to a pool's limit, and kept.
SPARE = {"threads": 8}
# What a process's memory may gain over the last half of the load, while nothing restarts it.
GROWTH_SHARE, GROWTH_SPARE_MIB = 0.04, 3.0
# And from the base, after the warm-up, to the rest at the end.
MEMORY_SHARE, MEMORY_SPARE_MIB = 0.25, 10.0
# A slope of fewer samples says nothing.
MIN_SAMPLES = 8
COUNTS = ("descriptors", "threads", "connections", "tasks")


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of a process: at rest before the load and after it, the most between, what is allowed."""

    process: str
    figure: str
    base: float
    most: float
    end: float
    allowed: float
    # Gained over the last half of the load, and what is allowed; None where that is not judged.
    growth: float | None = None
    growth_allowed: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it came back, and does not grow."""
        grows = (
            self.growth is not None and self.growth_allowed is not None and self.growth > self.growth_allowed
        )
        return self.end <= self.allowed and not grows


def judge(samples: Sequence[Sample]) -> list[Line]:
    """Returns a line for each figure that is judged."""
    names = dict.fromkeys(name for sample in samples for name in sample.processes)
    lines = []
    for name in names:
        figures = ("rss_mib", *COUNTS) if name in OURS else ("connections",)
        found = [_line(samples, name, figure) for figure in figures]
        lines += [line for line in found if line is not None]
    return lines


def _line(samples: Sequence[Sample], process: str, figure: str) -> Line | None:
    base = _values(samples, process, figure, BASE)
    end = _values(samples, process, figure, REST)[-3:]
    load = _values(samples, process, figure, LOAD)
    if not base or not end:
        return None
    before, after = statistics.median(base), statistics.median(end)
    most = max([*base, *load, *end])
    if figure == "rss_mib":
        allowed = before * (1 + MEMORY_SHARE) + MEMORY_SPARE_MIB
        gained, level = _growth(samples, process)
        limit = max(level * GROWTH_SHARE, GROWTH_SPARE_MIB)
        return Line(process, figure, before, most, after, allowed, gained, limit)
    allowed = before + max(before * COUNT_SHARE, SPARE.get(figure, COUNT_SPARE))
    return Line(process, figure, before, most, after, allowed)


def _values(samples: Sequence[Sample], process: str, figure: str, phase: str) -> list[float]:
    found = (sample.figure(process, figure) for sample in samples if sample.phase == phase)
    return [value for value in found if value is not None]


def _growth(samples: Sequence[Sample], process: str) -> tuple[float | None, float]:
    """Returns what memory gains over the last half of the load, and its middle there.

    The slope is the median of the slopes between samples half of that time apart: one large body is no slope.
    None if the process was restarted meanwhile, or there are too few samples.
    """
    load = [sample for sample in samples if sample.phase == LOAD and process in sample.processes]
    last = load[len(load) // 2 :]
    sizes = [sample.processes[process]["rss_mib"] for sample in last]
    level = statistics.median(sizes) if sizes else 0.0
    if len(last) < MIN_SAMPLES or len({sample.processes[process]["pid"] for sample in last}) > 1:
        return None, level
    half = len(last) // 2
    slopes = [
        (sizes[number + half] - sizes[number]) / (last[number + half].seconds - last[number].seconds)
        for number in range(len(last) - half)
    ]
    return round(statistics.median(slopes) * (last[-1].seconds - last[0].seconds), 2), level
