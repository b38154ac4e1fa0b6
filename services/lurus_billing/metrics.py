"""What the billing service counts."""

from prometheus_client import Counter, Gauge

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing.store import Settled

SETTLED = Counter("lurus_settled_events", "Usage events booked in the ledger, each once.")
REPEATED = Counter("lurus_repeated_events", "Usage events that were booked already and changed nothing.")
CONFLICTS = Counter(
    "lurus_settlement_conflicts", "Usage events whose id was booked with another content. Alarm: must stay 0."
)
OVERDRAFTS = Counter("lurus_overdrafts", "Usage events that left an account below its credit limit.")
UNPRICED = Counter("lurus_unpriced_events", "Usage events booked at 0 because no price was known.")
SETTLED_COST = Counter("lurus_settled_cost_nano_usd", "Cost of the usage booked, in nano-USD.")
LEASES = Counter("lurus_leases", "Answers to workers that asked for a lease.", ["outcome"])
RESERVATIONS_EXPIRED = Counter(
    "lurus_expired_reservations", "Reservations that were neither settled nor released in time."
)
DEAD_LETTERS = Gauge("lurus_dead_letters", "Events set aside that nobody has dealt with.", ["cause"])
LENT = Counter("lurus_lent_nano_usd", "Lent to workers, in nano-USD.")


def count_settled(settled: Settled) -> None:
    """Counts what a batch did, after its commit."""
    SETTLED.inc(settled.count)
    REPEATED.inc(settled.repeat_count)
    CONFLICTS.inc(settled.conflict_count)
    OVERDRAFTS.inc(settled.overdraft_count)
    UNPRICED.inc(settled.unpriced_count)
    SETTLED_COST.inc(settled.cost_nano_usd)


def count_lease(lease: pb.LeaseQuotaResponse) -> None:
    """Counts an answer to a worker, after its commit."""
    outcome = lease.refusal_reason.lower() or ("granted" if lease.lease_id else "returned")
    LEASES.labels(outcome).inc()
    LENT.inc(lease.amount_nano_usd)
