"""Writes how much the model thinks (wire-contract T13, T14, C.3)."""

from typing import Any, Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatReasoning, StreamChatRequest
from lurus_dialects.anthropic.setting import Setting
from lurus_dialects.anthropic.tool_writer import is_forced
from lurus_dialects.efforts import clamped

_BUDGETS: Final = {"low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 65536}
_DEFAULT_EFFORT: Final = "high"
# The dialect refuses smaller budgets.
_MIN_BUDGET_TOKENS: Final = 1024


def write_reasoning(
    request: StreamChatRequest, setting: Setting, max_tokens: int, is_loop_without_thinking: bool
) -> tuple[dict[str, Any] | None, str]:
    """Returns `thinking`, if it is to be stated, and the effort, perhaps empty.

    Args:
        max_tokens: of the whole answer, within which the model thinks.
        is_loop_without_thinking: see `Conversation`.
    """
    reasoning = request.reasoning
    effort = _effort(reasoning.effort, setting)
    thinking = _thinking(reasoning, effort, setting, max_tokens)
    if thinking is not None and thinking["type"] == "enabled":
        why = _forbidden(request, is_loop_without_thinking)
        if why:
            setting.losses.warn(setting.word("reasoning"), why)
            thinking = None
    if setting.target.quirks.no_adaptive_thinking and not setting.is_own:
        # Models that count tokens of thinking know no effort.
        effort = ""
    return thinking, effort


def _forbidden(request: StreamChatRequest, is_loop_without_thinking: bool) -> str:
    if is_forced(request):
        return "a model that must call a tool cannot think first"
    if is_loop_without_thinking:
        return "a model that goes on after its calls needs the thinking before them"
    return ""


def _effort(stated: str, setting: Setting) -> str:
    """Returns the effort, or the nearest lower one that the model knows."""
    if not stated:
        return ""
    effort = "low" if stated == "minimal" else stated
    effort = clamped(effort, [name for name in setting.target.efforts if name != "minimal"])
    if effort != stated:
        setting.losses.note("effort")
    return effort


def _thinking(
    reasoning: ChatReasoning, effort: str, setting: Setting, max_tokens: int
) -> dict[str, Any] | None:
    mode = reasoning.mode
    if mode == chat_pb2.CHAT_REASONING_MODE_DISABLED:
        return {"type": "disabled"}
    if mode == chat_pb2.CHAT_REASONING_MODE_BUDGET:
        return _budgeted(reasoning.budget_tokens, effort, setting, max_tokens, _display(reasoning))
    # An effort alone makes an OpenAI model think, and not an Anthropic one.
    is_thinking = mode == chat_pb2.CHAT_REASONING_MODE_ADAPTIVE or (effort and not setting.is_own)
    if not is_thinking:
        if reasoning.summary:
            setting.losses.note("reasoning.summary")
        return None
    if not setting.target.quirks.no_adaptive_thinking:
        return {"type": "adaptive", **_display(reasoning)}
    return _budgeted(0, effort, setting, max_tokens, {})


def _budgeted(
    stated: int, effort: str, setting: Setting, max_tokens: int, display: dict[str, str]
) -> dict[str, Any] | None:
    """Returns thinking within a budget, which must be below the limit of the whole answer."""
    wanted = stated or _BUDGETS.get(effort, _BUDGETS[_DEFAULT_EFFORT])
    budget = min(wanted, max_tokens - 1)
    if budget < wanted and budget < _MIN_BUDGET_TOKENS:
        setting.losses.warn(setting.word("reasoning"), "the answer's limit leaves no room for thinking")
        return None
    return {"type": "enabled", "budget_tokens": budget, **display}


def _display(reasoning: ChatReasoning) -> dict[str, str]:
    if not reasoning.summary:
        return {}
    return {"display": "omitted" if reasoning.summary == "omitted" else "summarized"}
