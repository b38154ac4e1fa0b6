"""What a request may cost, before anybody has answered it."""

from lurus_common.money import PPM, Tokens, cost
from lurus_dialects.request import Peek
from lurus_routing.call import Call

# Reserved for a key and model whose cost is not learned yet.
FIRST_GUESS_OUTPUT_TOKENS = 1000


def first_estimate(call: Call, peeked: Peek) -> int:
    """Returns what a request would cost at the first candidate with a short answer, in nano-USD."""
    candidate = call.plan.candidates[0]
    price = call.prices.find(candidate.provider_id, candidate.upstream_model, call.model, call.start_ns)
    if price is None:
        return 0
    tokens = Tokens(input=peeked.estimated_input_tokens(), output=FIRST_GUESS_OUTPUT_TOKENS)
    account_ppm = call.grant.price_multiplier_ppm or PPM
    return cost(tokens, price.price, candidate.cost_multiplier_ppm, account_ppm)
