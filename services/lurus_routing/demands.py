"""What a key demands of those who answer it: tags that a provider must carry, and highest prices."""

from collections.abc import Sequence

from lurus.billing.v1.billing_pb2 import KeyGrant
from lurus_common.errors import ModelForbidden
from lurus_common.money import PPM, Price
from lurus_common.prices import PriceList
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate
from lurus_routing.plan import Plan, Skip


def meeting(call: Call, matches: list[Candidate], model: str) -> tuple[list[Candidate], list[Skip]]:
    """Returns those who meet what a call's key demands, and the others with the reason.

    Raises:
        ModelForbidden: nobody does; the call's plan says why not.
    """
    if not call.grant.HasField("demands"):
        return matches, []
    met, unmet = divide(call.grant, matches, call.prices, model, call.start_ns)
    if not met:
        call.plan = Plan([], unmet)
        raise _refused(unmet, model)
    return met, unmet


def divide(
    grant: KeyGrant, matches: Sequence[Candidate], prices: PriceList, model: str, time_ns: int
) -> tuple[list[Candidate], list[Skip]]:
    """Returns those candidates that meet what a key demands, and the others with the reason.

    Args:
        grant: of the key, with demands.
        matches: who serves the model.
        prices: all that are known.
        model: as the client names it.
        time_ns: the moment whose prices count, nanoseconds since 1970.
    """
    met: list[Candidate] = []
    unmet: list[Skip] = []
    for candidate in matches:
        reason = _unmet(grant, candidate, prices, model, time_ns)
        if reason:
            unmet.append(Skip(candidate, reason))
        else:
            met.append(candidate)
    return met, unmet


def _refused(unmet: Sequence[Skip], model: str) -> ModelForbidden:
    """Returns how a caller is told that nobody meets what its key demands."""
    reason = unmet[0].reason
    return ModelForbidden(
        f"no provider of this model meets what this key demands: the first one {reason}",
        model=model,
        demand=reason,
    )


def _unmet(grant: KeyGrant, candidate: Candidate, prices: PriceList, model: str, time_ns: int) -> str:
    demands = grant.demands
    for tag in demands.required_tags:
        if tag not in candidate.tags:
            return f"lacks the tag {tag!r} that the key demands"
    if not (demands.max_input_nano_usd or demands.max_output_nano_usd):
        return ""
    dated = prices.find(candidate.provider_id, candidate.upstream_model, model, time_ns)
    if dated is None:
        return "has no price, and the key demands a highest one"
    # Cross-multiplied, so that no rounding lets a rate pass that is above its cap.
    factor = candidate.cost_multiplier_ppm * (grant.price_multiplier_ppm or PPM)
    highest = _highest(dated.price)
    caps = (demands.max_input_nano_usd, demands.max_output_nano_usd)
    for name, rate, cap in zip(("input", "output"), highest, caps, strict=True):
        if 0 < cap * PPM * PPM < rate * factor:
            return f"has a price of {name} above the highest that the key demands"
    return ""


def _highest(price: Price) -> tuple[int, int]:
    """The rates of fresh input and of output in their most expensive tiers.

    How many tokens a prompt has is known only when it has been charged.
    """
    rates = (price.rates, *(tier.rates for tier in price.tiers))
    return max(rate.input for rate in rates), max(rate.output for rate in rates)
