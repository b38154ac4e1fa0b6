"""Which candidates to leave alone now: breakers, benches and limits of one worker."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from lurus_routing.breaker import LAST_RESORT_SECONDS, ORDINARY, Breaker, State
from lurus_routing.candidate import Candidate

MAX_BREAKERS = 10_000
CREDENTIAL_BENCH_SECONDS = 60.0
THROTTLE_BENCH_SECONDS = 5.0
MAX_THROTTLE_BENCH_SECONDS = 300.0
# What to wait for a probe, or for a call to end, of which nobody knows the time.
SHORT_WAIT_SECONDS = 1.0

BreakerKey = tuple[str, str, str]
CredentialKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Bench:
    """A credential that is skipped for a while, and why."""

    since: float
    until: float
    reason: str


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to make one call. It is reported on with `succeed`, `fail` or `abandon`, and ended once."""

    key: BreakerKey
    probe: int
    is_ended: bool = False


class Health:
    """Breakers per provider, credential and model; benches per credential; calls per provider."""

    def __init__(self) -> None:
        self._breakers: OrderedDict[BreakerKey, Breaker] = OrderedDict()
        self._benches: dict[CredentialKey, Bench] = {}
        self._live: Counter[str] = Counter()

    def skip_reason(self, candidate: Candidate, now: float, is_last_resort: bool = False) -> str:
        """Why a candidate is to be skipped now, or an empty string.

        Args:
            candidate: whom to ask.
            now: monotonic seconds.
            is_last_resort: nobody else can be asked, so benches and breakers count for a short time
                only: one 429 must not take a model away.
        """
        bench = self.bench(candidate.key[:2], now)
        if bench and not (is_last_resort and now >= bench.since + LAST_RESORT_SECONDS):
            return f"benched: {bench.reason}"
        breaker = self._breakers.get(candidate.key)
        if breaker and not breaker.admits(now, is_last_resort):
            is_open = breaker.state(now) is State.OPEN
            return "breaker open" if is_open else "breaker half-open, its probe is running"
        if 0 < candidate.max_concurrency <= self._live[candidate.provider_id]:
            return f"at its limit of {candidate.max_concurrency} calls at once"
        return ""

    def begin(self, candidate: Candidate, now: float, is_last_resort: bool = False) -> Permit | None:
        """Returns leave to call a candidate now, None if it is to be skipped."""
        if self.skip_reason(candidate, now, is_last_resort):
            return None
        self._live[candidate.provider_id] += 1
        breaker = self._breakers.get(candidate.key)
        return Permit(candidate.key, breaker.start(now) if breaker else ORDINARY)

    def end(self, permit: Permit) -> None:
        """The call is over, its answer read or given up. Repeats do nothing."""
        if permit.is_ended:
            return
        permit.is_ended = True
        provider_id = permit.key[0]
        self._live[provider_id] -= 1
        if not self._live[provider_id]:
            del self._live[provider_id]
        self.abandon(permit)

    def succeed(self, permit: Permit, now: float) -> None:
        """The provider has answered."""
        if breaker := self._breakers.get(permit.key):
            breaker.succeed(now, permit.probe)
        permit.probe = ORDINARY

    def abandon(self, permit: Permit) -> None:
        """The call told nothing about the provider: the client left, or erred."""
        if permit.probe != ORDINARY and (breaker := self._breakers.get(permit.key)):
            breaker.abandon(permit.probe)
        permit.probe = ORDINARY

    def fail(self, permit: Permit, now: float) -> None:
        """A transient failure."""
        breaker = self._breakers.setdefault(permit.key, Breaker())
        breaker.fail(now, permit.probe)
        permit.probe = ORDINARY
        self._breakers.move_to_end(permit.key)
        if len(self._breakers) > MAX_BREAKERS:
            self._breakers.popitem(last=False)

    def state(self, key: BreakerKey, now: float) -> State:
        """State of a breaker."""
        breaker = self._breakers.get(key)
        return State.CLOSED if breaker is None else breaker.state(now)

    def bench(self, key: CredentialKey, now: float) -> Bench | None:
        """The bench of a credential, if it is on one."""
        bench = self._benches.get(key)
        if bench is not None and now >= bench.until:
            del self._benches[key]
            return None
        return bench

    def wait_seconds(self, key: BreakerKey, now: float, is_last_resort: bool) -> float:
        """For how long a skipped candidate will be skipped, as far as can be told."""
        waits = [SHORT_WAIT_SECONDS]
        if bench := self.bench(key[:2], now):
            until = bench.since + LAST_RESORT_SECONDS if is_last_resort else bench.until
            waits.append(min(bench.until, until) - now)
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.is_open:
            soonest = breaker.opened + LAST_RESORT_SECONDS if is_last_resort else breaker.open_until
            waits.append(min(soonest, breaker.open_until) - now)
        return max(waits)

    def refuse_credential(self, key: CredentialKey, now: float, status: int) -> None:
        """The provider refused our credential."""
        reason = f"credential refused with {status}"
        self._benches[key] = Bench(now, now + CREDENTIAL_BENCH_SECONDS, reason)

    def throttle(self, key: CredentialKey, now: float, retry_after_seconds: float | None) -> None:
        """The provider asked us to wait."""
        seconds = THROTTLE_BENCH_SECONDS if retry_after_seconds is None else retry_after_seconds
        until = now + min(max(seconds, 0.0), MAX_THROTTLE_BENCH_SECONDS)
        self._benches[key] = Bench(now, until, "throttled by the provider")

    def forget_bench(self, key: CredentialKey) -> None:
        """The operator changed the credential: it gets a new chance."""
        self._benches.pop(key, None)
