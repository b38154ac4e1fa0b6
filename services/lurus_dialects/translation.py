"""What every translation shares: the hub, what is lost on the way, and what the other side can do.

A request goes client bytes -> `StreamChatRequest` -> provider bytes, an answer
provider events -> `StreamChatResponse` -> client events. Each dialect has a
reader and a writer for both; nobody else knows two dialects at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1.chat_pb2 import ChatVendorField, StreamChatRequest, StreamChatResponse
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import Untranslatable
from lurus_common.money import Tokens
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect

# Names of lost fields in a header: nobody reads more, and a header has its limits.
MAX_NAMED_LOSSES = 32
DIALECTS: Final = {
    Dialect.ANTHROPIC: usage_pb2.DIALECT_ANTHROPIC,
    Dialect.OPENAI_CHAT: usage_pb2.DIALECT_OPENAI_CHAT,
    Dialect.OPENAI_RESPONSES: usage_pb2.DIALECT_OPENAI_RESPONSES,
}
# An item of Responses that brings tools: they are among the request's, and its place means nothing elsewhere.
ADDITIONAL_TOOLS: Final = "additional_tools"
_BY_NUMBER: Final = {number: dialect for dialect, number in DIALECTS.items()}


def source_of(request: StreamChatRequest) -> Dialect | None:
    """Returns the dialect of the client's JSON that a request was read from; None for a typed caller."""
    return _BY_NUMBER.get(request.source_dialect)


def states_person(field: ChatVendorField, end_user_id: str) -> bool:
    """True if a field of OpenAI says no more than for whom the request is (wire-contract T20)."""
    if not end_user_id or field.name not in ("user", "safety_identifier"):
        return False
    return bool(loose.decode(field.json) == end_user_id)


def is_text_source(field: ChatVendorField) -> bool:
    """True if a field is the source of an Anthropic document made of texts, which the hub has read."""
    if field.name != "source" or field.dialect != usage_pb2.DIALECT_ANTHROPIC:
        return False
    source = loose.decode(field.json)
    return isinstance(source, dict) and source.get("type") == "content"


class Losses:
    """What of a request the other dialect cannot express (wire-contract, loss classes).

    Attributes:
        warned: fields lost with consequences (L1), without repeats; for `x-lurus-lossy`.
        silent: hints lost without consequences (L0), with repeats; for a metric.
    """

    def __init__(self, is_strict: bool = False) -> None:
        self.warned: list[str] = []
        self.silent: list[str] = []
        self._is_strict = is_strict

    def note(self, name: str) -> None:
        """Counts the loss of a hint."""
        self.silent.append(name)

    def warn(self, path: str, why: str) -> None:
        """Names a loss to the client; refuses the request if the client is strict.

        Args:
            path: where it stands in the client's JSON: `temperature`, `messages[2].content[0].title`.
            why: a clause without a full stop that tells what becomes of it.
        """
        if self._is_strict:
            self.refuse(path, why)
        if path not in self.warned and len(self.warned) < MAX_NAMED_LOSSES:
            self.warned.append(path)

    def refuse(self, path: str, why: str) -> NoReturn:
        """Refuses the request before any provider is called.

        Raises:
            Untranslatable: always; its message begins with `path`.
        """
        raise Untranslatable(f"{path}: {why}", param=path)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a request is written for."""

    dialect: Dialect
    upstream_model: str
    provider_id: str = ""
    quirks: ProviderQuirks = field(default_factory=ProviderQuirks)
    # Of the model; 0 or empty if unknown.
    max_output_tokens: int = 0
    efforts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ToolName:
    """A tool as the client declared it."""

    name: str
    namespace: str = ""
    # A custom tool of the client that was sent as a function taking `{"input": "<text>"}`.
    is_wrapped: bool = False


@dataclass(slots=True)
class Written:
    """A request in the provider's dialect.

    Attributes:
        tool_names: tools whose name or kind had to change, by the name that the provider knows.
    """

    body: bytes
    tool_names: dict[str, ToolName] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer's writer must know of the request.

    Attributes:
        request: as the client's reader read it.
        response_id: our id of the answer, as its dialect has it (`msg_…`, `chatcmpl-…`, `resp_…`).
        create_seconds: Unix time for `created`.
        includes_usage: a chat client asked for the usage chunk.
        estimated_input_tokens: shown to an Anthropic client until the provider states its own count.
        hides_reasoning: a chat client is not shown `reasoning_content`.
        provider_id, upstream_model: who answers, for the envelope of its thinking.
    """

    request: StreamChatRequest
    response_id: str
    create_seconds: int
    includes_usage: bool = False
    estimated_input_tokens: int = 0
    hides_reasoning: bool = False
    provider_id: str = ""
    upstream_model: str = ""


class AnswerReader(Protocol):
    """Reads a provider's stream. Every block has one start and one end, in whatever order they come.

    After `finish` or `error` was returned there are no more events.
    """

    def read(self, name: bytes, data: bytes) -> list[StreamChatResponse]:
        """Returns what one event says, perhaps nothing. Never raises on what a provider sends.

        Args:
            name: of the `event:` line, perhaps empty.
            data: of the `data:` lines.
        """
        ...

    def end(self) -> list[StreamChatResponse]:
        """Returns what the end of the stream says: the finish that was waited for, else an `error`."""
        ...


class AnswerWriter(Protocol):
    """Writes a client's stream."""

    @property
    def is_over(self) -> bool:
        """True once the terminator or the error event was returned."""
        ...

    def write(self, event: StreamChatResponse) -> bytes:
        """Returns whole events in the client's dialect, perhaps none."""
        ...

    def heartbeat(self) -> bytes:
        """Returns bytes that keep a silent connection alive and change nothing (wire-contract G11)."""
        ...

    def error(self, reason: str, message: str, request_id: str) -> bytes:
        """Returns the event that ends a begun stream which cannot be completed."""
        ...


def set_tokens(message: usage_pb2.Tokens, tokens: Tokens) -> None:
    """Copies counts into an empty message, explicit zeros included."""
    message.input = tokens.input
    message.cache_read = tokens.cache_read
    message.cache_write_5m = tokens.cache_write_5m
    message.cache_write_30m = tokens.cache_write_30m
    message.cache_write_1h = tokens.cache_write_1h
    message.cache_write_12h = tokens.cache_write_12h
    message.output = tokens.output
    message.reasoning = tokens.reasoning
    message.SetInParent()  # explicit zeros are a statement too
