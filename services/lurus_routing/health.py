"""Which credentials to leave alone now: breakers and benches of one worker."""

from collections import OrderedDict
from dataclasses import dataclass

from lurus_routing.breaker import Breaker, State

MAX_BREAKERS = 10_000
CREDENTIAL_BENCH_SECONDS = 60.0
THROTTLE_BENCH_SECONDS = 5.0
MAX_THROTTLE_BENCH_SECONDS = 300.0
# The only remaining candidate is never benched for longer than this: one 429
# must not take a model away.
SOLE_BENCH_SECONDS = 5.0

BreakerKey = tuple[str, str, str]
CredentialKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Bench:
    """A credential that is skipped for a while, and why."""

    since: float
    until: float
    reason: str


class Health:
    """Breakers per provider, credential and model; benches per provider and credential."""

    def __init__(self) -> None:
        self._breakers: OrderedDict[BreakerKey, Breaker] = OrderedDict()
        self._benches: dict[CredentialKey, Bench] = {}

    def skip_reason(self, key: BreakerKey, now: float, is_sole: bool = False) -> str:
        """Why a candidate is to be skipped now, or an empty string."""
        bench = self.bench(key[:2], now)
        if bench is not None and not (is_sole and now >= bench.since + SOLE_BENCH_SECONDS):
            return f"benched: {bench.reason}"
        breaker = self._breakers.get(key)
        if breaker is None or breaker.admits(now):
            return ""
        return (
            "breaker open" if breaker.state(now) is State.OPEN else "breaker half-open, its probe is running"
        )

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

    def wait_seconds(self, key: BreakerKey, now: float) -> float:
        """For how long a skipped candidate will be skipped."""
        bench = self.bench(key[:2], now)
        breaker = self._breakers.get(key)
        waits = [bench.until - now] if bench else []
        if breaker is not None and breaker.is_open:
            waits.append(max(breaker.open_until, breaker.probe_until) - now)
        return max(waits, default=0.0)

    def start(self, key: BreakerKey, now: float) -> None:
        """A call begins."""
        if breaker := self._breakers.get(key):
            breaker.start(now)

    def succeed(self, key: BreakerKey, now: float) -> None:
        """A provider has answered."""
        if breaker := self._breakers.get(key):
            breaker.succeed(now)

    def abandon(self, key: BreakerKey) -> None:
        """A call ended without saying anything about the provider: the client left, or erred."""
        if breaker := self._breakers.get(key):
            breaker.abandon()

    def fail(self, key: BreakerKey, now: float) -> None:
        """A transient failure."""
        breaker = self._breakers.setdefault(key, Breaker())
        breaker.fail(now)
        self._breakers.move_to_end(key)
        if len(self._breakers) > MAX_BREAKERS:
            self._breakers.popitem(last=False)

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
