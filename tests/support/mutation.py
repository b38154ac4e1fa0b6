"""Changes JSON and streams at random, as a hostile client or a broken provider would."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**63,
    10**40,
    1.5,
    -0.0,
    "",
    "\ud83d",
    "\ude00",
    "\u0000",
    "x" * 300,
    "lsw1.",
    "lsw1.eyJ",
    "data:image/png;base64,",
    "data:,",
    [],
    {},
    [[]],
    [None],
    {"type": None},
    {"type": "text"},
    {"type": []},
    {"": ""},
)
_WORDS = (
    b"NaN",
    b"1E400",
    b"-Infinity",
    b"\\ud83d",
    b"\\u0000",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"null",
    b'""',
    b"\r",
    b"\n",
    b"\x00",
    b"9" * 5000,
)


class Mutator:
    """Makes variants of what it is given, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def json_text(self, value: Any) -> bytes:
        """Returns a variant of a JSON value, sometimes no JSON any more."""
        changed = self.value(value)
        text = json.dumps(changed, ensure_ascii=self.random.random() < 0.7).encode("utf-8", "surrogatepass")
        return self.text(text) if self.random.random() < 0.3 else text

    def value(self, value: Any) -> Any:
        """Returns a variant of a JSON value."""
        changed = {"": copy.deepcopy(value)}
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 6))):
            places = list(_places(changed))
            if not places:
                break
            holder, key = self.random.choice(places)
            self._change(holder, key, places)
        return changed.get("")

    def text(self, data: bytes) -> bytes:
        """Returns a variant of bytes."""
        found = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 5))):
            start = self.random.randrange(len(found) + 1)
            end = min(len(found), start + self.random.choice((0, 1, 1, 4, 40, 400)))
            match self.random.randrange(5):
                case 0:
                    del found[start:end]
                case 1:
                    found[start:end] = self.random.choice(_WORDS)
                case 2:
                    found[start:start] = found[start:end] * self.random.choice((1, 2, 50))
                case 3:
                    del found[start:]
                case _ if start < len(found):
                    found[start] = self.random.randrange(256)
        return bytes(found)

    def stream(self, events: list[bytes]) -> bytes:
        """Returns a variant of a stream of events."""
        changed = list(events)
        for _ in range(self.random.choice((1, 1, 2, 3, 8))):
            at = self.random.randrange(len(changed)) if changed else 0
            match self.random.randrange(6):
                case 0:
                    del changed[at : at + self.random.choice((1, 1, 3))]
                case 1:
                    changed[at:at] = changed[at : at + 2] * self.random.choice((1, 2, 20))
                case 2:
                    self.random.shuffle(changed)
                case 3:
                    changed[at : at + 1] = [self.event(part) for part in changed[at : at + 1]]
                case 4:
                    changed = [self.event(part) if self.random.random() < 0.2 else part for part in changed]
                case _:
                    return self.text(b"".join(changed))
        return b"".join(changed)

    def event(self, event: bytes) -> bytes:
        """Returns a variant of one event, with another value in its data."""
        head, mark, data = event.partition(b"data: ")
        try:
            value = json.loads(data)
        except ValueError:
            return self.text(event)
        text = json.dumps(self.value(value), ensure_ascii=self.random.random() < 0.7)
        return head + mark + text.encode("utf-8", "surrogatepass") + b"\n\n"

    def _change(self, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
        match self.random.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other_holder, other_key = self.random.choice(places)
                holder[key] = copy.deepcopy(other_holder[other_key])
            case 2 if isinstance(holder[key], list):
                holder[key] = holder[key] * self.random.choice((2, 3, 30))
            case 3 if isinstance(holder[key], str):
                holder[key] += self.random.choice(("\ud83d", "\ude00", "\u2028", "\x00", '"', "}"))
            case 4 if isinstance(holder, dict) and key:
                holder[self.random.choice([k for h, k in places if isinstance(h, dict)])] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(self.random.choice(_ODD))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Returns everything that stands in a JSON value, as its holder and its key."""
    stack = [value]
    while stack:
        holder = stack.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, child in items:
            yield holder, key
            if isinstance(child, dict | list):
                stack.append(child)
