"""Reads what routing needs of a request, and edits its bytes in two places.

A body is never parsed and written again: prompt caches key on bytes, and a
rewritten thinking block is refused. So the top-level members are located, and
only the bytes of one value are replaced.

Strictness, decided once for all dialects: UTF-8 without byte order mark, no
lone surrogates, no NaN or Infinity, nesting as deep as the reader's own limit
(about 1,000). Numbers that nobody here interprets keep their spelling, `1e999`
and 5,000 digits included. No message quotes the body.
"""

import codecs
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lurus_common.errors import InvalidRequest
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.usage import estimated_tokens

MAX_MODEL_CHARACTERS = 512
MAX_MEMBERS = 1000
MAX_TOKEN_LIMIT = 2**31 - 1
MAX_SESSION_HINT_CHARACTERS = 1024

Span = tuple[int, int]

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY = re.compile(rb'[ \t\n\r]*"((?:[^"\\]|\\.)*+)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_AFTER_VALUE = re.compile(rb"[ \t\n\r]*([,}])")
# Near the fault: the decoder names the start of a broken word.
_BYTE_IN_MESSAGE = re.compile(r"\(byte (\d+)\)$")
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]{0,18})")
_FILLED_LIST = re.compile(rb"\[[ \t\n\r]*[^\] \t\n\r]")
_FILLED_TEXT = re.compile(rb'"[^"]')
_TEXT_OR_WORD = re.compile(rb'["tfn]')
_SPACE = b" \t\n\r"
_MAX_READ_BYTES = 64 * 1024
_STEP_BYTES = 1024 * 1024
_UTF8 = codecs.getincrementaldecoder("utf-8")
_OF_ANOTHER_TYPE: Final = object()

_TOKEN_LIMIT_FIELDS: Final = {
    Dialect.ANTHROPIC: ("max_tokens",),
    Dialect.OPENAI_CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.OPENAI_RESPONSES: ("max_output_tokens",),
}
_WITH_TURNS: Final = frozenset({Kind.CHAT, Kind.COUNT})
_NEVER_STREAMED: Final = frozenset({Kind.COMPACT, Kind.EMBEDDINGS})
# What stands in for `input` in a Responses request.
_INPUT_SUBSTITUTES: Final = ("previous_response_id", "conversation", "prompt")


@dataclass(frozen=True, slots=True)
class Peek:
    """What routing needs of a request.

    Attributes:
        model: the name that the client asked for, printable, up to 512 characters.
        is_streaming: whether the answer is a stream of events.
        max_tokens: the client's limit on the output; None if it set none.
        asks_for_usage: `stream_options.include_usage` of a chat request is true.
        has_tools: the request offers at least one tool.
        user_id, prompt_cache_key, previous_response_id: hints at the session;
            empty if absent. Anthropic states them as `metadata.user_id` and
            `thread.previous_message_id`.
        body_bytes: size of the body.
        members: top-level members as they stand in the body.
        spans: where their values are: offsets of the first byte and behind the last.
        end: offset of the body's closing brace.
        wants_thinking: the model is to think before it answers.
    """

    dialect: Dialect
    model: str
    is_streaming: bool
    max_tokens: int | None
    asks_for_usage: bool
    has_tools: bool
    user_id: str
    prompt_cache_key: str
    previous_response_id: str
    body_bytes: int
    members: dict[str, msgspec.Raw]
    spans: dict[str, Span]
    end: int
    wants_thinking: bool = False

    def estimated_input_tokens(self) -> int:
        """Returns what the body is taken for: a quarter of its bytes, rounded up."""
        return estimated_tokens(self.body_bytes)

    def prefix(self) -> bytes:
        """Returns the bytes that a conversation repeats on every turn: instructions and tools.

        For a keyed hash that stands in for a session id. A chat request's
        instructions are its first message.
        """
        parts = [
            bytes(self.members[name]) for name in ("system", "instructions", "tools") if name in self.members
        ]
        if self.dialect is Dialect.OPENAI_CHAT and "messages" in self.members:
            messages = msgspec.json.decode(self.members["messages"], type=list[msgspec.Raw])
            parts.append(bytes(messages[0]))
        return b"\n".join(parts)


def peek(dialect: Dialect, body: bytes, kind: Kind = Kind.CHAT) -> Peek:
    """Returns what routing needs of a request body.

    Args:
        dialect: of the path.
        body: JSON.
        kind: of the path: counts need no limit on the output, and only a chat has turns that must be there.

    Raises:
        InvalidRequest: the body is not JSON, or a field that is interpreted
            here is missing or malformed; `param` names it.
    """
    members, spans, end = locate(body)
    model = _model(members)
    if kind in _WITH_TURNS:
        _require_turns(dialect, members)
    is_anthropic = dialect is Dialect.ANTHROPIC
    return Peek(
        dialect=dialect,
        model=model,
        is_streaming=kind not in _NEVER_STREAMED and _flag(members, "stream"),
        max_tokens=None if kind is Kind.COUNT else _token_limit(dialect, members),
        asks_for_usage=dialect is Dialect.OPENAI_CHAT and _asks_for_usage(members),
        has_tools=_is_filled_list(members.get("tools")),
        user_id=_hint(_object(members, "metadata"), "user_id") if is_anthropic else "",
        prompt_cache_key=_hint(members, "prompt_cache_key"),
        previous_response_id=_hint(_object(members, "thread"), "previous_message_id")
        if is_anthropic
        else _hint(members, "previous_response_id"),
        body_bytes=len(body),
        members=members,
        spans=spans,
        end=end,
        wants_thinking=_wants_thinking(dialect, members),
    )


def splice_model(body: bytes, peeked: Peek, upstream_model: str) -> bytes:
    """Returns `body` with another top-level model; the same object if the name is the same."""
    if upstream_model == peeked.model:
        return body
    return _spliced(body, peeked.spans["model"], msgspec.json.encode(upstream_model))


def request_include_usage(body: bytes) -> bytes:
    """Returns a chat body that asks for usage in the stream; the same object if it does already.

    Give it the result of `splice_model`, or the client's own body.
    """
    members, spans, end = locate(body)
    if _asks_for_usage(members):
        return body
    if "stream_options" not in spans:
        separator = b"," if spans else b""
        return _spliced(body, (end, end), separator + b'"stream_options":{"include_usage":true}')
    begin, stop = spans["stream_options"]
    options = body[begin:stop]
    return _spliced(body, (begin, stop), _with_usage(options))


def _with_usage(options: bytes) -> bytes:
    if options == b"null":
        return b'{"include_usage":true}'
    _, spans, end = locate(options)
    if "include_usage" in spans:
        return _spliced(options, spans["include_usage"], b"true")
    separator = b"," if spans else b""
    return _spliced(options, (end, end), separator + b'"include_usage":true')


def _spliced(body: bytes, span: Span, value: bytes) -> bytes:
    view = memoryview(body)
    return b"".join((view[: span[0]], value, view[span[1] :]))


def locate(body: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, Span], int]:
    """Returns the members of the JSON object `body`, where their values are, and where it ends.

    Raises:
        InvalidRequest: it is none.
    """
    members = _decode_members(body)
    spans: dict[str, Span] = {}
    position = body.index(b"{") + 1
    while key := _KEY.match(body, position):
        name = _key_name(key[1])
        begin = key.end()
        stop = begin + len(memoryview(members[name]))
        after = _AFTER_VALUE.match(body, stop)
        if after is None or name in spans or not body.startswith(members[name], begin):
            # A repeated name: the decoder keeps its last value only.
            return members, *_locate_repeated(body)
        spans[name] = (begin, stop)
        position = after.end()
        if after[1] == b"}":
            return members, spans, after.start(1)
    return members, spans, body.rindex(b"}")


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member of an object stands: its key, and its value from `begin` to `end`."""

    name: str
    key: int
    begin: int
    end: int


def locate_all(body: bytes) -> list[Member]:
    """Returns the members of the JSON object `body` in their order, repeated names and all.

    Raises:
        InvalidRequest: it is none, or has too many.
    """
    _decode_members(body)
    found: list[Member] = []
    position = body.index(b"{") + 1
    while key := _KEY.match(body, position):
        if len(found) == MAX_MEMBERS:
            raise _too_many_members()
        stop = _value_end(body, key.end())
        found.append(Member(_key_name(key[1]), key.start(1) - 1, key.end(), stop))
        after = _AFTER_VALUE.match(body, stop)
        if after is None or after[1] == b"}":
            break
        position = after.end()
    return found


def _locate_repeated(body: bytes) -> tuple[dict[str, Span], int]:
    """Locates members one by one, slower; of a repeated name the last value counts, as for most readers."""
    spans: dict[str, Span] = {}
    position = body.index(b"{") + 1
    for _ in range(MAX_MEMBERS):
        key = _KEY.match(body, position)
        if key is None:
            return spans, body.rindex(b"}")
        name = _key_name(key[1])
        if name == "model" and name in spans:
            raise InvalidRequest("model: the field is repeated", param="model")
        stop = _value_end(body, key.end())
        spans[name] = (key.end(), stop)
        after = _AFTER_VALUE.match(body, stop)
        position = after.end() if after is not None and after[1] == b"," else len(body)
    raise _too_many_members()


def _value_end(body: bytes, begin: int) -> int:
    """Returns where the value at `begin` ends: what follows it is what the decoder complains of."""
    try:
        msgspec.json.decode(memoryview(body)[begin:], type=msgspec.Raw)
    except msgspec.DecodeError as error:
        if found := _BYTE_IN_MESSAGE.search(str(error)):
            stop = begin + int(found[1]) - 1  # The decoder has read one byte more.
            while body[stop - 1] in _SPACE:
                stop -= 1
            return stop
    raise InvalidRequest("the body is not valid JSON")


def check_utf8(text: bytes) -> None:
    """Returns if `text` is UTF-8. Looks at a large one in steps, which leave no copy of it behind.

    Raises:
        UnicodeDecodeError: it is not.
    """
    if len(text) <= _STEP_BYTES:
        text.decode()
        return
    decoder, view = _UTF8(), memoryview(text)
    try:
        for begin in range(0, len(text), _STEP_BYTES):
            decoder.decode(view[begin : begin + _STEP_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        text.decode()  # Names the byte within the whole text.


def _too_many_members() -> InvalidRequest:
    return InvalidRequest(f"the body has more than {MAX_MEMBERS} fields", maximum=MAX_MEMBERS)


def _decode_members(body: bytes) -> dict[str, msgspec.Raw]:
    if not body.strip(_SPACE):
        raise InvalidRequest("the body is empty")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise InvalidRequest("the body is not UTF-8 without a byte order mark (byte 0)", byte=0)
    try:
        members = _MEMBERS.decode(body)
        check_utf8(body)
    except msgspec.ValidationError:
        raise InvalidRequest("the body is not a JSON object") from None
    except msgspec.DecodeError as error:
        found = _BYTE_IN_MESSAGE.search(str(error))
        offset = int(found[1]) if found else len(body)
        # Half a surrogate pair near the end is reported as a body cut short, too.
        is_cut = not found and not body.rstrip(_SPACE).endswith(b"}")
        problem = "ends before its JSON does" if is_cut else "is not valid JSON"
        raise InvalidRequest(f"the body {problem} (byte {offset})", byte=offset) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})", byte=error.start) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    if len(members) > MAX_MEMBERS:
        raise _too_many_members()
    return members


def _key_name(literal: bytes) -> str:
    name: str = msgspec.json.decode(b'"' + literal + b'"') if b"\\" in literal else literal.decode()
    return name


def _model(members: dict[str, msgspec.Raw]) -> str:
    model = _value(members, "model")
    if model is None:
        raise InvalidRequest("model: the field is required", param="model")
    if (
        not isinstance(model, str)
        or not model
        or len(model) > MAX_MODEL_CHARACTERS
        or not model.isprintable()
    ):
        text = f"must be a text of 1 to {MAX_MODEL_CHARACTERS} printable characters"
        raise InvalidRequest(f"model: {text}", param="model", maximum=MAX_MODEL_CHARACTERS)
    return model


def _require_turns(dialect: Dialect, members: dict[str, msgspec.Raw]) -> None:
    name = "input" if dialect is Dialect.OPENAI_RESPONSES else "messages"
    raw = members.get(name)
    is_text = name == "input" and raw is not None and _FILLED_TEXT.match(raw) is not None
    if is_text or _is_filled_list(raw):
        return
    if name == "input" and raw is None and any(_is_set(members.get(other)) for other in _INPUT_SUBSTITUTES):
        return
    if raw is None:
        raise InvalidRequest(f"{name}: the field is required", param=name)
    raise InvalidRequest(f"{name}: must be a list with at least one element", param=name)


def _token_limit(dialect: Dialect, members: dict[str, msgspec.Raw]) -> int | None:
    limit = None
    for name in _TOKEN_LIMIT_FIELDS[dialect]:
        raw = members.get(name)
        if dialect is not Dialect.ANTHROPIC and not _is_set(raw):
            continue
        if raw is None:
            raise InvalidRequest(f"{name}: the field is required", param=name)
        stated = _limit(dialect, name, bytes(raw))
        limit = stated if limit is None else limit
    return limit


def _limit(dialect: Dialect, name: str, text: bytes) -> int:
    # Anthropic's 0 asks for nothing but a warm cache.
    lowest = 0 if dialect is Dialect.ANTHROPIC else 1
    value = int(text) if _INTEGER.fullmatch(text) else -1
    if lowest <= value <= MAX_TOKEN_LIMIT:
        return value
    message = f"{name}: must be an integer from {lowest} to {MAX_TOKEN_LIMIT}"
    raise InvalidRequest(message, param=name, minimum=lowest, maximum=MAX_TOKEN_LIMIT)


def _wants_thinking(dialect: Dialect, members: dict[str, msgspec.Raw]) -> bool:
    """Whether a request asks for thinking, as far as can be seen without reading it in full."""
    raw = members.get(_THINKING_MEMBERS[dialect])
    text = bytes(raw) if raw is not None else b"null"
    return text != b"null" and not any(word in text for word in _NO_THINKING)


_THINKING_MEMBERS = {
    Dialect.ANTHROPIC: "thinking",
    Dialect.OPENAI_CHAT: "reasoning_effort",
    Dialect.OPENAI_RESPONSES: "reasoning",
}
_NO_THINKING = (b'"disabled"', b'"none"', b'"minimal"')


def _asks_for_usage(members: dict[str, msgspec.Raw]) -> bool:
    return _flag(_object(members, "stream_options"), "include_usage", "stream_options.include_usage")


def _flag(members: dict[str, msgspec.Raw], name: str, param: str | None = None) -> bool:
    value = _value(members, name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(f"{param or name}: must be true or false", param=param or name)


def _object(members: dict[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    raw = members.get(name)
    if raw is None or not _is_set(raw):
        return {}
    try:
        return _MEMBERS.decode(raw)
    except msgspec.ValidationError:
        raise InvalidRequest(f"{name}: must be an object", param=name) from None


def _hint(members: dict[str, msgspec.Raw], name: str) -> str:
    """Returns a text that hints at the session; another type is the provider's to refuse."""
    value = _value(members, name)
    return value[:MAX_SESSION_HINT_CHARACTERS] if isinstance(value, str) else ""


def _value(members: dict[str, msgspec.Raw], name: str) -> Any:
    raw = members.get(name)
    if raw is None:
        return None
    # No value that is read here is large, and the digits of a number are not our concern.
    if len(memoryview(raw)) > _MAX_READ_BYTES or _TEXT_OR_WORD.match(raw) is None:
        return _OF_ANOTHER_TYPE
    return msgspec.json.decode(raw)


def _is_set(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) != b"null"


def _is_filled_list(raw: msgspec.Raw | None) -> bool:
    return raw is not None and _FILLED_LIST.match(raw) is not None
