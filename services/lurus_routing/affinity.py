"""Who holds the answers that a later request may continue.

State that a provider keeps, such as `previous_response_id`, is of use only
with the credential that made it (wire-contract B7). In the memory of one
worker: after a restart, or in another worker, the session's own affinity
leads to the same credential.
"""

from collections import OrderedDict

from lurus.usage.v1 import usage_pb2
from lurus_common.errors import PreviousResponseNotFound
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate

MAX_HELD_ANSWERS = 100_000
NOT_THE_HOLDER = "may not hold the answer that is continued"


class HeldAnswers:
    """Answers by the id that their provider gave them."""

    def __init__(self) -> None:
        self._holders: OrderedDict[str, tuple[str, str, str]] = OrderedDict()

    def learn(self, call: Call) -> None:
        """Notes who holds the answer of a call, if it can be continued. Repeats do nothing."""
        answer, candidate = call.answer, call.candidate
        if answer is None or candidate is None or not candidate.is_relay or not answer.response_id:
            return
        if not _is_kept(call):
            return
        self._holders[answer.response_id] = (call.grant.account_id, *candidate.key[:2])
        self._holders.move_to_end(answer.response_id)
        if len(self._holders) > MAX_HELD_ANSWERS:
            self._holders.popitem(last=False)

    def among(self, call: Call, matches: list[Candidate]) -> list[Candidate]:
        """Returns those of `matches` that may hold what a call continues; all if it continues nothing.

        Raises:
            PreviousResponseNotFound: nobody does, or it is somebody else's.
        """
        continued = call.peeked.previous_response_id if call.peeked else ""
        if not continued or not call.request.dialect:
            return matches
        relays = [candidate for candidate in matches if candidate.is_relay]
        holder = self._holders.get(continued)
        if holder is not None:
            relays = [candidate for candidate in relays if _key(call, candidate) == holder]
        if relays:
            return relays
        if holder is None and call.request.dialect == usage_pb2.DIALECT_ANTHROPIC:
            return matches  # A writer says better what it cannot say.
        raise PreviousResponseNotFound(
            "the answer that this request continues is not held by any provider; send the whole history",
            param="previous_response_id",
        )

    def is_known(self, call: Call) -> bool:
        """Whether a call continues an answer whose holder is known, or none at all."""
        continued = call.peeked.previous_response_id if call.peeked else ""
        return not continued or continued in self._holders


def _key(call: Call, candidate: Candidate) -> tuple[str, str, str]:
    return (call.grant.account_id, *candidate.key[:2])


def _is_kept(call: Call) -> bool:
    """Whether the provider keeps the answer: Responses unless told otherwise, Anthropic in a thread only."""
    if call.peeked is None:
        return False
    if call.request.dialect == usage_pb2.DIALECT_OPENAI_RESPONSES:
        stored = call.peeked.members.get("store")
        return stored is None or bytes(stored) != b"false"
    return call.request.dialect == usage_pb2.DIALECT_ANTHROPIC and "thread" in call.peeked.members
