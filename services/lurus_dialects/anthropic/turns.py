"""Makes the turns of this dialect out of the hub's messages.

The dialect wants users and models to alternate, results at the head of the
turn that follows their calls, and one result for each call.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatBlock, ChatMessage, StreamChatRequest
from lurus_dialects import tools
from lurus_dialects.anthropic.block_writer import BlockWriter, Written
from lurus_dialects.anthropic.setting import Setting

NO_OUTPUT: Final = "[no tool output recorded]"
_RULES: Final = (chat_pb2.CHAT_ROLE_SYSTEM, chat_pb2.CHAT_ROLE_DEVELOPER)


@dataclass(slots=True)
class Turn:
    """One turn: results come before all else."""

    role: str
    results: list[Written] = field(default_factory=list)
    blocks: list[Written] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)
    begins_with_thinking: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns the message."""
        return {"role": self.role, "content": [*self.results, *self.blocks], **self.members}


class Conversation:
    """The rules and the turns of a request.

    Attributes:
        system: text blocks.
        turns: in order; none is empty.
    """

    def __init__(self, request: StreamChatRequest, setting: Setting) -> None:
        self.system: list[Written] = []
        self.turns: list[Turn] = []
        self._setting = setting
        self._losses = setting.losses
        self._blocks = BlockWriter(setting)
        # Calls of the last model's turn that have no result yet, by id, with their paths.
        self._unanswered: dict[str, str] = {}
        # Rules that stood between calls and their results, where none may stand.
        self._held: list[Turn] = []
        self._build(request)

    @property
    def is_in_tool_loop_without_thinking(self) -> bool:
        """True if the model is to go on after its calls, and its turn does not begin with thinking."""
        if len(self.turns) < 2 or not self.turns[-1].results:
            return False
        return not self.turns[-2].begins_with_thinking

    def _build(self, request: StreamChatRequest) -> None:
        is_leading, has_top_level = True, False
        for i, message in enumerate(request.messages):
            path = message.source_path or f"messages[{i}]"
            is_top_level = path.startswith("system")
            has_top_level |= is_top_level
            is_leading &= message.role in _RULES and (is_top_level or not has_top_level)
            if is_leading:
                self.system.extend(self._rules(message, path))
            elif message.role in _RULES:
                self._add_mid_rules(message, path)
            else:
                self._add_turn(message, path)
        if self.turns and self.turns[-1].role == "user":
            self._complete_results()
        self.turns.extend(self._held)
        self._check_end(request)

    def _check_end(self, request: StreamChatRequest) -> None:
        if not self.turns:
            self._losses.refuse("messages", "an Anthropic model needs at least one turn with content")
        if self.turns[-1].role == "assistant" and not self._setting.is_own:
            last = len(request.messages) - 1
            path = request.messages[last].source_path or f"messages[{last}]"
            self._losses.warn(path, "an answer that is begun may not be continued")

    def _rules(self, message: ChatMessage, path: str) -> list[Written]:
        written = []
        self._lose_name(message)
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            kind = block.WhichOneof("block")
            if kind not in ("text", "refusal"):
                self._losses.refuse(block_path, "an Anthropic model takes rules as text only")
            text = self._blocks.write(block, kind, block_path, True)
            if text is not None:
                written.append(text)
        return written

    def _add_mid_rules(self, message: ChatMessage, path: str) -> None:
        rules = self._rules(message, path)
        if not rules:
            return
        if not self._setting.target.quirks.has_mid_system:
            self._losses.warn(path, "rules in mid-conversation went into a user's turn")
            self._turn("user").blocks.extend(_in_tags(rule) for rule in rules)
            return
        turn = Turn("system", blocks=rules)
        self._setting.add_vendor_fields(turn.members, message.vendor_fields, path)
        if self._unanswered:
            self._held.append(turn)
        else:
            self.turns.append(turn)

    def _add_turn(self, message: ChatMessage, path: str) -> None:
        is_assistant = message.role == chat_pb2.CHAT_ROLE_ASSISTANT
        self._lose_name(message)
        turn: Turn | None = None
        for i, block in enumerate(message.blocks):
            block_path = block.source_path or f"{path}.blocks[{i}]"
            kind = block.WhichOneof("block")
            if kind == "tool_result":
                self._settle(block, message, path, block_path, is_assistant)
            written = self._blocks.write(block, kind, block_path, not is_assistant)
            if written is None:
                continue
            if turn is None:
                turn = self._turn("assistant" if is_assistant else "user")
            self._place(turn, kind, written, block_path)
        fields = message.vendor_fields
        if fields:
            self._setting.add_vendor_fields({} if turn is None else turn.members, fields, path)

    def _place(self, turn: Turn, kind: str | None, written: Written, path: str) -> None:
        if kind == "tool_result":
            turn.results.append(written)
            return
        if kind == "tool_call" and isinstance(written, dict):
            self._unanswered[written["id"]] = path
        elif kind == "thinking" and not turn.blocks:
            turn.begins_with_thinking = True
        turn.blocks.append(written)

    def _turn(self, role: str) -> Turn:
        """Returns the turn that a speaker's next block belongs to."""
        if self.turns and self.turns[-1].role == role:
            return self.turns[-1]
        if role == "assistant" and self.turns:
            self._complete_results()
            self._unanswered.clear()
            self.turns.extend(self._held)
            self._held.clear()
        self.turns.append(Turn(role))
        return self.turns[-1]

    def _settle(
        self, block: ChatBlock, message: ChatMessage, path: str, block_path: str, is_assistant: bool
    ) -> None:
        call_id = tools.call_id(block.tool_result.tool_call_id)
        if not is_assistant and self._unanswered.pop(call_id, None) is not None:
            return
        if message.role != chat_pb2.CHAT_ROLE_TOOL:
            place = f"{block_path}.tool_use_id"
        else:
            place = f"{path}.call_id" if path.startswith("input") else f"{path}.tool_call_id"
        self._losses.refuse(place, "the turn before has no call of this id without a result")

    def _complete_results(self) -> None:
        """Gives every call a result: one without would be refused."""
        for call_id, path in self._unanswered.items():
            self._losses.warn(path, f"the call has no result and was given {NO_OUTPUT!r}")
            result = {"type": "tool_result", "tool_use_id": call_id, "content": NO_OUTPUT, "is_error": True}
            self._turn("user").results.append(result)
        self._unanswered.clear()

    def _lose_name(self, message: ChatMessage) -> None:
        if message.name:
            self._losses.note("name")


def _in_tags(rule: Written) -> Written:
    assert isinstance(rule, dict)
    return {**rule, "text": f"<system>{rule['text']}</system>"}
