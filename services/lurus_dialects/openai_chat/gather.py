"""Puts streams of OpenAI Chat Completions together to plain answers."""

from typing import Any, Final

import msgspec

from lurus_dialects import loose
from lurus_dialects.gathering import Object, encoded, items_of, members_of, number_of, text_of, whole_text

_JOINED: Final = frozenset({"content", "refusal", "reasoning_content", "reasoning"})
_CALLED: Final = frozenset({"arguments", "input"})
_NULL: Final = msgspec.Raw(b"null")
_OF_CHUNK: Final = frozenset({"choices", "usage", "object", "obfuscation"})


class _Pieces:
    """The members of an object of which some are told in pieces."""

    def __init__(self, joined: frozenset[str]) -> None:
        self._joined = joined
        self._members: Object = {}
        self._texts: dict[str, list[str]] = {}

    def take(self, name: str, value: msgspec.Raw) -> None:
        """Takes a member: a text goes on, a list gets longer, of all else the first that is stated counts."""
        text = text_of(value) if name in self._joined else None
        if text is not None:
            self._texts.setdefault(name, []).append(text)
            self._members.setdefault(name, _NULL)
        elif isinstance(found := self._members.get(name), list):
            found.extend(items_of(value))
        elif bytes(value)[:1] == b"[":
            self._members[name] = items_of(value)
        elif self._members.get(name, _NULL) == _NULL:
            self._members[name] = value

    def as_json(self) -> Object:
        """Returns the object, its members in the order of their first pieces."""
        return {**self._members, **{name: whole_text(texts) for name, texts in self._texts.items()}}


class _Call:
    """One call of a tool."""

    def __init__(self) -> None:
        self._members = _Pieces(frozenset())
        self._inner: dict[str, _Pieces] = {}

    def take(self, fragment: Object) -> None:
        """Takes a fragment: ids and names may be repeated, arguments go on."""
        for name, value in fragment.items():
            if name in ("function", "custom"):
                inner = self._inner.setdefault(name, _Pieces(_CALLED))
                for key, piece in members_of(value).items():
                    inner.take(key, piece)
            elif name != "index":
                self._members.take(name, value)

    def as_json(self) -> Object:
        """Returns the call."""
        return {**self._members.as_json(), **{name: inner.as_json() for name, inner in self._inner.items()}}


class _Choice:
    """One answer."""

    def __init__(self) -> None:
        self._members: Object = {}
        self._message = _Pieces(_JOINED)
        self._function_call = _Pieces(_CALLED)
        self._has_function_call = False
        self._calls: dict[int, _Call] = {}
        self._logprobs = _Pieces(frozenset())
        self._last_call = 0

    def take(self, choice: Object) -> None:
        """Takes what one chunk says of it."""
        for name, value in members_of(choice.pop("delta", b"")).items():
            if name == "tool_calls":
                for fragment in items_of(value):
                    self._take_call(members_of(fragment))
            elif name == "function_call" and loose.is_stated(value):
                self._has_function_call = True
                for key, piece in members_of(value).items():
                    self._function_call.take(key, piece)
            else:
                self._message.take(name, value)
        for name, value in members_of(choice.pop("logprobs", b"")).items():
            self._logprobs.take(name, value)
        self._members.update({n: v for n, v in choice.items() if loose.is_stated(v)})

    def _take_call(self, fragment: Object) -> None:
        self._last_call = number_of(fragment.get("index"), self._last_call)
        self._calls.setdefault(self._last_call, _Call()).take(fragment)

    def as_json(self, index: int) -> Object:
        """Returns the choice; `content` is there even if nothing was said."""
        message = {"role": "assistant", "content": None, **self._message.as_json()}
        if self._calls:
            message["tool_calls"] = [call.as_json() for _, call in sorted(self._calls.items())]
        if self._has_function_call:
            message["function_call"] = self._function_call.as_json()
        logprobs = self._logprobs.as_json() or None
        return {"index": index, "message": message, "logprobs": logprobs, **self._members}


class Gatherer:
    """See `gathering.Gatherer`."""

    def __init__(self) -> None:
        self.lost_count = 0
        self._members: Object = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None

    def take(self, name: bytes, data: bytes) -> None:
        """Takes one chunk."""
        chunk = members_of(data)
        if loose.is_stated(chunk.get("usage", loose.ABSENT)):
            self._usage = chunk["usage"]
        for raw in items_of(chunk.get("choices", b"")):
            choice = members_of(raw)
            self._choices.setdefault(number_of(choice.pop("index", None), 0), _Choice()).take(choice)
        stated = {n: v for n, v in chunk.items() if n not in _OF_CHUNK and loose.is_stated(v)}
        self._members = {**stated, **self._members}

    def whole(self) -> bytes:
        """Returns the completion."""
        choices = [choice.as_json(index) for index, choice in sorted(self._choices.items())]
        usage = {} if self._usage is None else {"usage": self._usage}
        head = {"id": self._members.pop("id", ""), "object": "chat.completion"}
        return encoded({**head, **self._members, "choices": choices, **usage})
