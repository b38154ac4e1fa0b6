"""How long a candidate takes to its first event: a mean in which older answers count less."""

from dataclasses import dataclass

HALF_LIFE_SECONDS = 60.0
# Below it too little is known: one answer of nearly three half-lives ago.
MIN_WEIGHT = 0.15
# Candidates within this factor of the fastest count as equally fast.
BAND = 1.25


@dataclass(slots=True)
class Latency:
    """A decayed mean; an answer counts half of one that came 60 s later. Times are monotonic seconds."""

    total: float = 0.0
    weight: float = 0.0
    time: float = 0.0

    def note(self, seconds: float, now: float) -> None:
        """Takes one more answer."""
        faded = self._faded(now)
        self.total = self.total * faded + seconds
        self.weight = self.weight * faded + 1.0
        self.time = max(now, self.time)

    def mean(self, now: float) -> float | None:
        """Returns the mean in seconds; None if it was not asked lately, so that it is tried anew."""
        if self.weight * self._faded(now) < MIN_WEIGHT:
            return None
        return self.total / self.weight

    def _faded(self, now: float) -> float:
        return float(0.5 ** (max(now - self.time, 0.0) / HALF_LIFE_SECONDS))


def band(mean: float | None, fastest: float) -> float:
    """Returns 0 for one about as fast as the fastest, or of which nothing is known; else its mean."""
    return 0.0 if mean is None or mean <= fastest * BAND else mean
