"""Says in messages what is known of candidates: why one is asked, and another not."""

from lurus.routing.v1 import routing_pb2 as pb
from lurus_common.money import PPM
from lurus_dialects.translation import DIALECTS
from lurus_routing.breaker import State
from lurus_routing.call import duration
from lurus_routing.candidate import Candidate
from lurus_routing.catalog import Catalog
from lurus_routing.health import Health, RouteKey

BREAKER_STATES = {
    State.CLOSED: pb.BREAKER_STATE_CLOSED,
    State.OPEN: pb.BREAKER_STATE_OPEN,
    State.HALF_OPEN: pb.BREAKER_STATE_HALF_OPEN,
}


def set_health(row: pb.CandidateExplanation, health: Health, key: RouteKey, now: float) -> object:
    """Fills in what a row says of health; returns what equals itself as long as that is the same.

    Args:
        row: with the limit of its provider.
        health: of the worker.
        key: of the route; with an empty model, of the whole credential.
        now: monotonic seconds.
    """
    bench = health.bench(key[:2], now)
    latency = health.latency(key, now)
    row.breaker = BREAKER_STATES[health.state(key, now)]
    row.live_count = health.live_calls(key[0])
    if latency is not None:
        row.latency_duration.CopyFrom(duration(float(f"{latency:.2g}")))
    if bench is not None:
        row.skip_reason = f"benched: {bench.reason}"
    elif row.breaker == pb.BREAKER_STATE_OPEN:
        row.skip_reason = "breaker open"
    elif 0 < row.max_concurrency <= row.live_count:
        row.skip_reason = f"at its limit of {row.max_concurrency} calls at once"
    signature = (row.SerializeToString(deterministic=True), bench.until if bench else 0.0)
    if bench is not None:
        row.bench_duration.CopyFrom(duration(bench.until - now))
    return signature


def explained(
    candidate: Candidate,
    skip_reason: str,
    health: Health,
    now: float,
    *,
    is_translated: bool = False,
    is_reserve: bool = False,
) -> pb.CandidateExplanation:
    """Returns a candidate of a plan, or one that it skips for a reason."""
    row = pb.CandidateExplanation(
        provider_id=candidate.provider_id,
        credential_id=candidate.credential_id,
        upstream_model=candidate.upstream_model,
        rule=candidate.rule,
        level=candidate.level,
        weight=candidate.weight,
        dialect=DIALECTS[candidate.dialect],
        is_translated=is_translated,
        is_reserve=is_reserve,
        tags=sorted(candidate.tags),
        max_concurrency=max(candidate.max_concurrency, 0),
    )
    set_health(row, health, candidate.key, now)
    row.skip_reason = skip_reason
    return row


def set_price(
    row: pb.CandidateExplanation, catalog: Catalog, candidate: Candidate, model: str, time_ns: int
) -> None:
    """Fills in what a candidate costs now."""
    price = catalog.prices.find(candidate.provider_id, candidate.upstream_model, model, time_ns)
    if price is not None:
        factor = candidate.cost_multiplier_ppm
        row.input_nano_usd = -(-price.price.rates.input * factor // PPM)
        row.output_nano_usd = -(-price.price.rates.output * factor // PPM)
