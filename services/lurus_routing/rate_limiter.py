"""Admission by rate limits: from memory, and shared with the other workers in the background.

Keys and accounts without limits cost nothing. A request waits for the other
workers only if this worker's part of a limit is used up and the limit as a
whole may not be.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from lurus.billing.v1.billing_pb2 import KeyGrant, RateLimits
from lurus_common.errors import RateLimited
from lurus_dialects.dialect import Dialect
from lurus_dialects.rate_limits import KINDS, rate_limit_headers
from lurus_routing.limits import Excess, Sent, Shared, State, Subject, new_subject

MAX_SUBJECTS = 50_000
# How often one request asks the other workers, each time for a part of what is left.
MAX_ROUNDS = 20
MIN_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 60.0
_BYTES_PER_TOKEN: Final = 4

LIMITED = Counter("lurus_rate_limited", "Requests refused by a rate limit.", ["scope", "limit"])


@dataclass(slots=True, eq=False)
class Admission:
    """A request that was let pass, and what was charged for it."""

    subjects: tuple[Subject, ...]
    tokens: int


class RateLimiter:
    """The limits of one worker.

    Args:
        workers: of the installation, while nobody has been seen.
        is_shared: the workers can ask each other, by what `on_touch` and `ask` lead to.
        clock: seconds, monotonic.
    """

    def __init__(self, workers: int, is_shared: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_workers = self._workers = workers
        self._is_away = not is_shared
        self._clock = clock
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._busy: dict[str, Subject] = {}
        # What the other workers should be told, oldest first.
        self.touched: OrderedDict[str, Subject] = OrderedDict()
        self.on_touch: Callable[[], None] = _nothing
        self.ask: Callable[[], Awaitable[None]] | None = None

    async def admit(self, grant: KeyGrant, body_bytes: int) -> Admission | None:
        """Lets a request begin; None if it has no limits.

        Raises:
            RateLimited: not now.
        """
        subjects = self._subjects_of(grant)
        if not subjects:
            return None
        tokens = body_bytes // _BYTES_PER_TOKEN + 1
        for _ in range(MAX_ROUNDS):
            now = self._clock()
            found = self._first_excess(subjects, tokens, now)
            if found is None:
                for subject in subjects:
                    subject.begin(tokens, now)
                    self._busy[subject.name] = subject
                    self._touch(subject)
                return Admission(subjects, tokens)
            subject, excess = found
            if not excess.is_unsure or self.ask is None or self._is_away:
                break
            for subject in subjects:
                self._touch(subject)
            await self.ask()
        raise _refusal(subject, excess)

    def admit_count(self, grant: KeyGrant) -> None:
        """Lets a request for a count of tokens pass: it takes nothing of the key's other limits.

        Raises:
            RateLimited: not now.
        """
        now = self._clock()
        for subject in self._subjects_of(grant):
            excess = subject.excess_count(now)
            if excess is not None:
                raise _refusal(subject, excess)

    def end(self, admission: Admission, tokens: int) -> None:
        """Ends a request that has used so many tokens."""
        now = self._clock()
        for subject in admission.subjects:
            subject.end(tokens - admission.tokens, now)
            if not subject.own:
                self._busy.pop(subject.name, None)
            self._touch(subject)

    def headers(self, admission: Admission, dialect: Dialect) -> list[tuple[str, str]]:
        """Returns what is left of the tightest limits, in the names of a dialect."""
        now = self._clock()
        states = [subject.states(now) for subject in admission.subjects]
        headers: list[tuple[str, str]] = []
        for kind, of_kind in zip(KINDS, zip(*states, strict=True), strict=True):
            known: list[State] = [state for state in of_kind if state]
            if known:
                state = min(known, key=lambda one: one.remaining)
                headers += rate_limit_headers(
                    dialect, kind, state.limit, state.remaining, state.reset_seconds, time.time()
                )
        return headers

    # What is exchanged with the other workers.

    def untold(self, maximum: int) -> list[tuple[Subject, Sent]]:
        """Returns what the other workers should be told, at most so many subjects."""
        chosen = [self.touched.popitem(last=False)[1] for _ in range(min(maximum, len(self.touched)))]
        return [(subject, subject.unsent()) for subject in chosen]

    def take(self, told: list[tuple[Subject, Sent]], shared: list[Shared], workers: int) -> None:
        """Takes what the other workers say."""
        now = self._clock()
        self._is_away, self._workers = False, max(workers, self._least_workers)
        for (subject, sent), state in zip(told, shared, strict=True):
            subject.share(state, sent, self._workers, now)

    def lose(self, told: list[tuple[Subject, Sent]]) -> None:
        """Goes on with this worker's part of the limits: the others cannot be asked."""
        self._is_away = True
        now = self._clock()
        for subject, _ in told:
            subject.split(self._workers, now)
            self._touch(subject)

    @property
    def is_busy(self) -> bool:
        """True while limited requests are being served."""
        return bool(self._busy)

    def touch_busy(self) -> None:
        """Has the others told again of all requests that are being served."""
        for subject in self._busy.values():
            self._touch(subject)

    def _touch(self, subject: Subject) -> None:
        if self.ask is not None:
            self.touched[subject.name] = subject
            self.on_touch()

    def _first_excess(
        self, subjects: tuple[Subject, ...], tokens: int, now: float
    ) -> tuple[Subject, Excess] | None:
        for subject in subjects:
            excess = subject.excess(tokens, now)
            if excess is not None:
                return subject, excess
        return None

    def _subjects_of(self, grant: KeyGrant) -> tuple[Subject, ...]:
        subjects: tuple[Subject, ...] = ()
        if grant.HasField("rate_limits"):
            subjects = (self._subject(grant.key_id, grant.rate_limits),)
        if grant.HasField("account_rate_limits"):
            subjects += (self._subject(grant.account_id, grant.account_rate_limits),)
        return subjects

    def _subject(self, name: str, given: RateLimits) -> Subject:
        now = self._clock()
        limits = given.requests_per_minute, given.tokens_per_minute, given.concurrent_requests
        subject = self._subjects.get(name)
        if subject is None:
            subject = self._subjects[name] = new_subject(name, limits, now)
            self._take_part(subject, now)
            self._forget_one(now)
        elif subject.limits != limits:
            subject.take_limits(limits, now)
            self._take_part(subject, now)
        elif self._is_away and not subject.is_split:
            subject.split(self._workers, now)
        self._subjects.move_to_end(name)
        return subject

    def _take_part(self, subject: Subject, now: float) -> None:
        """Gives a subject of new limits this worker's part of them, until the others have been asked."""
        if self._is_away:
            subject.split(self._workers, now)
        elif self._workers > 1:
            subject.assume(self._workers)

    def _forget_one(self, now: float) -> None:
        if len(self._subjects) > MAX_SUBJECTS:
            oldest = next(iter(self._subjects.values()))
            if oldest.is_at_rest(now):
                del self._subjects[oldest.name]


def _nothing() -> None:
    pass


def _refusal(subject: Subject, excess: Excess) -> RateLimited:
    scope = "account" if subject.name.startswith("acct_") else "key"
    LIMITED.labels(scope, excess.limit).inc()
    wait = min(max(excess.wait_seconds, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
    words = excess.limit.replace("_", " ")
    return RateLimited(
        f"this {scope} has reached its limit of {excess.maximum} {words}",
        limit=excess.limit,
        scope=scope,
        maximum=excess.maximum,
        retry_after_seconds=f"{wait:.1f}",
    )
