"""What a key or an account may ask for in a moment: token buckets and a count of requests at once.

A bucket holds one minute's worth and fills evenly. So in any window of w
seconds at most limit * (1 + w / 60) passes, and never more than the limit a
minute in the long run. What is larger than the bucket passes when the bucket
is full, and is paid off afterwards.

Several workers share one bucket by exchanging what they have let pass. Between
two exchanges a worker lets pass at most its part of what was left at the last
one, so all n together exceed the bound above by less than (n - 1) / n of the
limit, plus one request each; and only once, since the excess is paid off too.
"""

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
# What has been used beyond a bucket is remembered up to so many minutes' worth.
MAX_DEBT_MINUTES = 10
# A client counts all parts of a conversation at once: its counts have a bucket of this size at least.
MIN_COUNTS_PER_MINUTE = 300
# How long a slot is probably taken: nobody knows.
SLOT_WAIT_SECONDS = 2.0
# How long a count of the other workers' requests is good enough to refuse by.
FRESH_SECONDS = 0.05
_TOLERANCE = 1e-6


@dataclass(slots=True)
class Bucket:
    """A token bucket that knows how much of it is used. Times are seconds of one monotonic clock."""

    per_minute: float
    used: float = 0.0
    at: float = 0.0

    def level(self, now: float) -> float:
        """Returns what is used now; more than `per_minute` is a debt."""
        if now > self.at:
            self.used = max(0.0, self.used - (now - self.at) * self.per_minute / WINDOW_SECONDS)
            self.at = now
        return self.used

    def wait_seconds(self, amount: float, now: float) -> float:
        """Returns when `amount` passes, 0 for now."""
        excess = self.level(now) + min(amount, self.per_minute) - self.per_minute
        return excess * WINDOW_SECONDS / self.per_minute if excess > _TOLERANCE else 0.0

    def charge(self, amount: float, now: float) -> None:
        """Uses `amount`, whether it is there or not; below zero gives back."""
        self.set_level(self.level(now) + amount, now)

    def set_level(self, used: float, now: float) -> None:
        """Makes `used` what is used now."""
        self.used = min(max(0.0, used), MAX_DEBT_MINUTES * self.per_minute)
        self.at = max(now, self.at)

    def resize(self, per_minute: float, now: float) -> None:
        """Changes the limit; the same part of it stays used."""
        self.used = self.level(now) / self.per_minute * per_minute
        self.per_minute = per_minute


@dataclass(slots=True)
class Meter:
    """One bucket, and this worker's part of it."""

    limit: int
    bucket: Bucket
    # Charged here, not told to the other workers yet.
    unsent: float = 0.0
    # How much `unsent` may become before the others must be asked.
    allowance: float = math.inf

    def is_unsure(self, amount: float) -> bool:
        """True if the other workers may have used what seems to be there."""
        return self.unsent > 0 and self.unsent + amount > self.allowance

    def charge(self, amount: float, now: float) -> None:
        """Uses `amount`."""
        self.bucket.charge(amount, now)
        self.unsent += amount

    def share(self, used: float, sent: float, workers: int, now: float) -> None:
        """Takes what all workers together have used, of which `sent` had been told by this one."""
        self.unsent -= sent
        self.bucket.resize(self.limit, now)
        self.bucket.set_level(used + self.unsent, now)
        left = max(0.0, self.limit - used)
        self.allowance = math.inf if workers <= 1 else max(1.0, left / workers)

    def split(self, workers: int, now: float) -> None:
        """Goes on alone, with this worker's part of the limit."""
        self.bucket.resize(self.limit / workers, now)
        self.unsent = min(self.unsent, self.bucket.level(now) * workers)
        self.allowance = math.inf


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a request may not begin now."""

    # The field of `RateLimits`.
    limit: str
    maximum: int
    wait_seconds: float
    # True if the other workers should be asked before this is told.
    is_unsure: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What is left of a limit, for the client."""

    limit: int
    remaining: int
    # Until the bucket is full again.
    reset_seconds: float


@dataclass(slots=True)
class Slots:
    """Requests at once: this worker's own, and what the others said last."""

    limit: int
    own: int = 0
    others: int = 0
    # What `own` may become before the others must be asked.
    allowance: float = math.inf
    # Until when `others` is believed without asking again.
    fresh_until: float = math.inf

    def excess(self, now: float) -> Excess | None:
        """Returns why no other request may begin, if so."""
        if self.own + self.others >= self.limit:
            is_unsure = self.own < self.limit and now > self.fresh_until
            return Excess("concurrent_requests", self.limit, SLOT_WAIT_SECONDS, is_unsure)
        if self.own >= self.allowance:
            return Excess("concurrent_requests", self.limit, SLOT_WAIT_SECONDS, is_unsure=True)
        return None

    def share(self, others: int, workers: int, now: float) -> None:
        """Takes how many the other workers serve."""
        self.others = others
        free = max(0, self.limit - self.own - others)
        self.allowance = math.inf if workers <= 1 else self.own + max(1, free // workers)
        self.fresh_until = now + FRESH_SECONDS

    def split(self, workers: int) -> None:
        """Goes on alone, with this worker's part of the limit."""
        part = max(1, self.limit // workers)
        self.others, self.allowance, self.fresh_until = self.limit - part, math.inf, math.inf


@dataclass(frozen=True, slots=True)
class Sent:
    """What a worker tells of a subject: used since it last told, and served now."""

    requests: float
    tokens: float
    own: int


@dataclass(frozen=True, slots=True)
class Shared:
    """What a worker is told of a subject: used by all together, and served by the others."""

    requests: float
    tokens: float
    others: int


@dataclass(slots=True, eq=False)
class Subject:
    """One key or one account, with the limits that it has."""

    name: str
    limits: tuple[int, int, int]
    requests: Meter | None = None
    tokens: Meter | None = None
    slots: Slots | None = None
    counts: Bucket | None = None
    # Requests being served here.
    own: int = 0
    # True while the other workers cannot be asked.
    is_split: bool = False

    def excess(self, tokens: float, now: float) -> Excess | None:
        """Returns why a request of so many tokens may not begin now, if so."""
        for meter, limit, amount in (
            (self.requests, "requests_per_minute", 1.0),
            (self.tokens, "tokens_per_minute", tokens),
        ):
            if meter is None:
                continue
            wait = meter.bucket.wait_seconds(amount, now)
            if wait:
                return Excess(limit, meter.limit, wait)
            if meter.is_unsure(amount):
                return Excess(limit, meter.limit, 1.0, is_unsure=True)
        return self.slots.excess(now) if self.slots else None

    def begin(self, tokens: float, now: float) -> None:
        """Lets a request pass."""
        if self.requests:
            self.requests.charge(1.0, now)
        if self.tokens:
            self.tokens.charge(tokens, now)
        self.own += 1
        if self.slots:
            self.slots.own = self.own

    def end(self, correction: float, now: float) -> None:
        """Ends a request that used so many tokens more than was charged at its begin."""
        if self.tokens:
            self.tokens.charge(correction, now)
        self.own -= 1
        if self.slots:
            self.slots.own = self.own

    def excess_count(self, now: float) -> Excess | None:
        """Lets a request for a count of tokens pass, or returns why not: counts have their own bucket."""
        if self.counts is None:
            return None
        wait = self.counts.wait_seconds(1.0, now)
        if wait:
            return Excess("requests_per_minute", int(self.counts.per_minute), wait)
        self.counts.charge(1.0, now)
        return None

    def assume(self, workers: int) -> None:
        """Takes this worker's part of each limit until the others have been asked."""
        for meter in (self.requests, self.tokens):
            if meter:
                meter.allowance = max(1.0, meter.limit / workers)
        if self.slots:
            self.slots.allowance = (
                self.slots.own
            )  # none: a slot may be taken for long, so they are asked first

    def split(self, workers: int, now: float) -> None:
        """Goes on alone, with this worker's part of each limit."""
        self.is_split = True
        for meter in (self.requests, self.tokens):
            if meter:
                meter.split(workers, now)
        if self.slots:
            self.slots.split(workers)

    def share(self, told: "Shared", sent: "Sent", workers: int, now: float) -> None:
        """Takes what all workers together have used, after having told them `sent`."""
        self.is_split = False
        if self.requests:
            self.requests.share(told.requests, sent.requests, workers, now)
        if self.tokens:
            self.tokens.share(told.tokens, sent.tokens, workers, now)
        if self.slots:
            self.slots.share(told.others, workers, now)

    def unsent(self) -> "Sent":
        """Returns what the other workers do not know yet."""
        requests, tokens = self.requests, self.tokens
        return Sent(requests.unsent if requests else 0.0, tokens.unsent if tokens else 0.0, self.own)

    def states(self, now: float) -> tuple[State | None, State | None]:
        """Returns what is left of requests and of tokens."""
        return _state(self.requests, now), _state(self.tokens, now)

    def is_at_rest(self, now: float) -> bool:
        """True if nothing would be forgotten with it."""
        meters = [meter for meter in (self.requests, self.tokens) if meter]
        return not self.own and not any(meter.unsent or meter.bucket.level(now) for meter in meters)

    def take_limits(self, limits: tuple[int, int, int], now: float) -> None:
        """Takes changed limits; what is used of each stays used."""
        requests, tokens, concurrent = self.limits = limits
        self.requests = _changed(self.requests, requests, now)
        self.tokens = _changed(self.tokens, tokens, now)
        others = self.slots.others if self.slots else 0
        self.slots = Slots(concurrent, self.own, others) if concurrent else None
        per_minute = max(requests, MIN_COUNTS_PER_MINUTE)
        if not requests:
            self.counts = None
        elif self.counts is None:
            self.counts = Bucket(per_minute, at=now)
        else:
            self.counts.resize(per_minute, now)


def new_subject(name: str, limits: tuple[int, int, int], now: float) -> Subject:
    """Returns a subject that has used nothing. Its limits: requests, tokens, requests at once; 0 for none."""
    subject = Subject(name, limits)
    subject.take_limits(limits, now)
    return subject


def _changed(meter: Meter | None, limit: int, now: float) -> Meter | None:
    if not limit:
        return None
    if meter is None:
        return Meter(limit, Bucket(limit, at=now))
    meter.limit = limit
    used = meter.bucket.level(now)
    meter.bucket = Bucket(limit, min(used, MAX_DEBT_MINUTES * limit), now)
    return meter


def _state(meter: Meter | None, now: float) -> State | None:
    if meter is None:
        return None
    used = meter.bucket.level(now)
    part = used / meter.bucket.per_minute
    remaining = int(max(0.0, meter.limit * (1 - part)))
    return State(meter.limit, remaining, part * WINDOW_SECONDS)
