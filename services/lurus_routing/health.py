"""Which candidates to leave alone now: breakers, benches and limits of one worker."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lurus_routing import metrics
from lurus_routing.breaker import LAST_RESORT_SECONDS, ORDINARY, Breaker, State
from lurus_routing.candidate import Candidate
from lurus_routing.latency import Latency

MAX_ROUTES = 10_000
CREDENTIAL_BENCH_SECONDS = 60.0
THROTTLE_BENCH_SECONDS = 5.0
MAX_THROTTLE_BENCH_SECONDS = 300.0
# What to wait for a probe, or for a call to end, of which nobody knows the time.
SHORT_WAIT_SECONDS = 1.0

# A refusal that a list of models can tell is past: without money (402) or rights (403) a list is given too.
REFUSED_STATUS = 401

BREAKER_OPEN = "breaker open"
BREAKER_PROBED = "breaker half-open, its probe is running"
ON_TRIAL = "on trial: as many calls wait for its answer as it may fail"

RouteKey = tuple[str, str, str]
CredentialKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Bench:
    """A credential that is skipped for a while, and why."""

    since: float
    until: float
    reason: str
    # With which the provider refused the credential; 0 if it only asked to wait.
    status: int = 0


@dataclass(slots=True)
class Route:
    """What is known of a provider's credential and model."""

    breaker: Breaker = field(default_factory=Breaker)
    latency: Latency = field(default_factory=Latency)


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to make one call. It is reported on with `succeed`, `fail` or `abandon`, and ended once."""

    key: RouteKey
    number: int
    is_ended: bool = False


class Health:
    """Breakers and latencies of routes, benches of credentials, calls of providers."""

    def __init__(self) -> None:
        self._routes: OrderedDict[RouteKey, Route] = OrderedDict()
        self._benches: dict[CredentialKey, Bench] = {}
        self._live: Counter[str] = Counter()
        self.live_count = 0

    def skip_reason(
        self, candidate: Candidate, now: float, is_last_resort: bool = False, *, is_reserve: bool = False
    ) -> str:
        """Why a candidate is to be skipped now, or an empty string.

        Args:
            candidate: whom to ask.
            now: monotonic seconds.
            is_last_resort: nobody else can be asked, so benches and breakers count for a short time
                only: one 429 must not take a model away.
            is_reserve: its breaker keeps it from being asked first, and not from being asked at all.
        """
        bench = self.bench(candidate.key[:2], now)
        if bench and not (is_last_resort and now >= bench.since + LAST_RESORT_SECONDS):
            return f"benched: {bench.reason}"
        route = self._routes.get(candidate.key)
        if route is not None and (reason := _closed_to(route.breaker, now, is_last_resort, is_reserve)):
            return reason
        if 0 < candidate.max_concurrency <= self._live[candidate.provider_id]:
            return f"at its limit of {candidate.max_concurrency} calls at once"
        return ""

    def begin(
        self,
        candidate: Candidate,
        now: float,
        is_last_resort: bool = False,
        *,
        is_alone: bool = False,
        is_reserve: bool = False,
    ) -> Permit | str:
        """Returns leave to call a candidate now, or the reason to skip it.

        Args:
            candidate, now, is_last_resort, is_reserve: as for `skip_reason`.
            is_alone: no other candidate is left, so that a trial does not hold the call back.
        """
        reason = self.skip_reason(candidate, now, is_last_resort, is_reserve=is_reserve)
        if reason:
            return reason
        breaker = self._route(candidate.key).breaker
        if not (is_alone or is_last_resort or breaker.is_open or breaker.has_room(now)):
            return ON_TRIAL
        self._live[candidate.provider_id] += 1
        self.live_count += 1
        before = phase(breaker)
        number = breaker.start(now, is_reserve and not breaker.admits(now, is_last_resort))
        if before is not State.CLOSED:
            _count_move(candidate.key, before, breaker)
        return Permit(candidate.key, number)

    def end(self, permit: Permit) -> None:
        """The call is over, its answer read or given up. Repeats do nothing."""
        if permit.is_ended:
            return
        permit.is_ended = True
        self.live_count -= 1
        provider_id = permit.key[0]
        self._live[provider_id] -= 1
        if not self._live[provider_id]:
            del self._live[provider_id]
        self.abandon(permit)

    def succeed(self, permit: Permit, now: float, first_event_seconds: float | None = None) -> None:
        """The provider has answered; with `first_event_seconds`, as a stream."""
        route = self._routes.get(permit.key)
        number, permit.number = permit.number, ORDINARY
        if route is None:
            return
        if first_event_seconds is not None:
            route.latency.note(first_event_seconds, now)
        breaker = route.breaker
        before = phase(breaker)
        breaker.succeed(now, number)
        if before is not State.CLOSED:
            _count_move(permit.key, before, breaker)

    def abandon(self, permit: Permit) -> None:
        """The call told nothing about the provider: the client left, or erred."""
        if permit.number != ORDINARY and (route := self._routes.get(permit.key)):
            before = phase(route.breaker)
            route.breaker.abandon(permit.number)
            _count_move(permit.key, before, route.breaker)
        permit.number = ORDINARY

    def fail(self, permit: Permit, now: float) -> None:
        """A transient failure."""
        breaker = self._route(permit.key).breaker
        before = phase(breaker)
        breaker.fail(now, permit.number)
        permit.number = ORDINARY
        _count_move(permit.key, before, breaker)
        self._routes.move_to_end(permit.key)

    def state(self, key: RouteKey, now: float) -> State:
        """State of a breaker."""
        route = self._routes.get(key)
        return State.CLOSED if route is None else route.breaker.state(now)

    def latency(self, key: RouteKey, now: float) -> float | None:
        """Mean seconds to the first event of a stream, None if nothing is known."""
        route = self._routes.get(key)
        return None if route is None else route.latency.mean(now)

    def rested_since(self, key: RouteKey) -> float:
        """When a breaker opened, infinite if it is closed."""
        route = self._routes.get(key)
        return route.breaker.opened if route is not None and route.breaker.is_open else float("inf")

    def live_calls(self, provider_id: str) -> int:
        """Calls to a provider that run now."""
        return self._live[provider_id]

    def routes(self) -> Iterable[RouteKey]:
        """All routes that were ever asked, or failed."""
        return self._routes.keys()

    def resting(self, now: float, seconds: float) -> Iterator[RouteKey]:
        """Routes that could be woken: their breakers are open, or their credentials benched for a refusal.

        Those that have rested for `seconds`; a credential with an empty model.
        """
        for key, route in self._routes.items():
            breaker = route.breaker
            has_rested = breaker.is_open and breaker.opened + seconds <= now < breaker.open_until
            if has_rested and not breaker.was_woken:
                yield key
        for credential, bench in self._benches.items():
            if bench.status == REFUSED_STATUS and bench.since + seconds <= now < bench.until:
                yield (*credential, "")

    def wake(self, key: RouteKey, now: float) -> bool:
        """Lets a resting route be asked again, since its provider answers a probe; returns whether it did."""
        if not key[2]:
            return self._benches.pop(key[:2], None) is not None
        route = self._routes.get(key)
        return route is not None and route.breaker.wake(now)

    def bench(self, key: CredentialKey, now: float) -> Bench | None:
        """The bench of a credential, if it is on one."""
        bench = self._benches.get(key)
        if bench is not None and now >= bench.until:
            del self._benches[key]
            return None
        return bench

    def wait_seconds(self, key: RouteKey, now: float, is_last_resort: bool) -> float:
        """For how long a skipped candidate will be skipped, as far as can be told."""
        waits = [SHORT_WAIT_SECONDS]
        if bench := self.bench(key[:2], now):
            until = bench.since + LAST_RESORT_SECONDS if is_last_resort else bench.until
            waits.append(min(bench.until, until) - now)
        route = self._routes.get(key)
        if route is not None and route.breaker.is_open:
            breaker = route.breaker
            soonest = breaker.opened + LAST_RESORT_SECONDS if is_last_resort else breaker.open_until
            waits.append(min(soonest, breaker.open_until) - now)
        return max(waits)

    def refuse_credential(self, key: CredentialKey, now: float, status: int) -> None:
        """The provider refused our credential."""
        metrics.BENCHES.labels(key[0], "credential").inc()
        reason = f"credential refused with {status}"
        self._benches[key] = Bench(now, now + CREDENTIAL_BENCH_SECONDS, reason, status)

    def throttle(self, key: CredentialKey, now: float, retry_after_seconds: float | None) -> None:
        """The provider asked us to wait."""
        metrics.BENCHES.labels(key[0], "throttle").inc()
        seconds = THROTTLE_BENCH_SECONDS if retry_after_seconds is None else retry_after_seconds
        until = now + min(max(seconds, 0.0), MAX_THROTTLE_BENCH_SECONDS)
        self._benches[key] = Bench(now, until, "throttled by the provider")

    def forget_bench(self, key: CredentialKey) -> None:
        """The operator changed the credential: it gets a new chance."""
        self._benches.pop(key, None)

    def forget_all_but(self, provider_ids: Iterable[str]) -> None:
        """Forgets providers that are gone."""
        known = set(provider_ids)
        for key in [key for key in self._routes if key[0] not in known]:
            self._forget(key)
        for credential in [credential for credential in self._benches if credential[0] not in known]:
            del self._benches[credential]

    def _route(self, key: RouteKey) -> Route:
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = Route()
            if len(self._routes) > MAX_ROUTES:
                self._forget(next(iter(self._routes)))
        return route

    def _forget(self, key: RouteKey) -> None:
        breaker = self._routes.pop(key).breaker
        if breaker.is_open:
            metrics.count_breaker(key[0], phase(breaker), None)


def phase(breaker: Breaker) -> State:
    """What a breaker does, whatever the time: half-open while its probe runs."""
    if not breaker.is_open:
        return State.CLOSED
    return State.OPEN if breaker.probe == ORDINARY else State.HALF_OPEN


def _count_move(key: RouteKey, before: State, breaker: Breaker) -> None:
    after = phase(breaker)
    if after is not before:
        metrics.count_breaker(key[0], before, after)


def _closed_to(breaker: Breaker, now: float, is_last_resort: bool, is_reserve: bool) -> str:
    if breaker.admits(now, is_last_resort) or (is_reserve and breaker.has_room(now)):
        return ""
    return BREAKER_OPEN if breaker.state(now) is State.OPEN else BREAKER_PROBED
