"""Counts tokens: as a provider does, or as well as we can."""

from lurus_common.errors import LurusError, Untranslatable
from lurus_common.large import beside_loop
from lurus_dialects.counting import count_answer, estimated_input_tokens
from lurus_routing.attempts import Attempts
from lurus_routing.call import Call
from lurus_routing.outcome import Answered
from lurus_routing.outgoing import Outgoing

# Tells that nobody has counted.
ESTIMATED = ("x-lurus-token-source", "estimated")
# What a provider says of the request itself.
_CALLERS_FAULTS = frozenset({400, 413, 422})


async def count_tokens(attempts: Attempts, call: Call, outgoing: Outgoing) -> Answered:
    """Returns the count of the first provider that counts, else an estimate.

    Of a model that some provider serves in the client's dialect, the client is
    told what that one says, refusals included: its own estimate is as good as ours.

    Raises:
        LurusError: as `Attempts.answer`.
    """
    if any(candidate.is_relay for candidate in call.plan.candidates):
        return await attempts.answer(call, outgoing)
    hub = await beside_loop(len(call.body), outgoing.hub)
    try:
        answered = await attempts.answer(call, outgoing)
        if answered.status == 200 or answered.status in _CALLERS_FAULTS:
            return answered
    except Untranslatable:
        pass
    except LurusError as error:
        if error.code == "INVALID_ARGUMENT":
            raise
    input_tokens = await beside_loop(len(call.body), estimated_input_tokens, hub)
    body = count_answer(outgoing.client, input_tokens)
    return Answered(200, [("content-type", "application/json"), ESTIMATED], body)
