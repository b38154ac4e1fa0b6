"""How much a model is to think, where providers know fewer words for it (wire-contract T14)."""

from collections.abc import Sequence
from typing import Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatReasoning

EFFORTS: Final = ("minimal", "low", "medium", "high", "xhigh", "max")
# Efforts that stand for budgets of thinking below so many tokens.
_BUDGETS: Final = ((4096, "low"), (12288, "medium"), (24576, "high"))
_MOST: Final = "xhigh"


def effort_of(reasoning: ChatReasoning) -> str:
    """Returns the effort in OpenAI's words, `none` included; empty if none is stated."""
    if reasoning.mode == chat_pb2.CHAT_REASONING_MODE_DISABLED:
        return "none"
    if reasoning.effort or reasoning.mode != chat_pb2.CHAT_REASONING_MODE_BUDGET:
        return reasoning.effort
    return next((name for limit, name in _BUDGETS if reasoning.budget_tokens < limit), _MOST)


def clamped(effort: str, known: Sequence[str]) -> str:
    """Returns the greatest known effort that is not above `effort`, else the least.

    Without any in `known`, all are.
    """
    ranked = [name for name in EFFORTS if name in known]
    if effort not in EFFORTS or effort in ranked or not ranked:
        return effort
    lower = [name for name in ranked if EFFORTS.index(name) < EFFORTS.index(effort)]
    return lower[-1] if lower else ranked[0]
