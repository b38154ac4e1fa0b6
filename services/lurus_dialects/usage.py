"""Token counts of an answer, merged from the pieces in which a provider states them.

The three dialects count differently: Anthropic's input excludes what the cache
read and wrote, OpenAI's includes it. Only this module knows; everybody else
sees `Tokens`, in which no token is counted twice.
"""

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

import msgspec

from lurus_common.money import Tokens
from lurus_dialects import loose
from lurus_dialects.dialect import Dialect
from lurus_dialects.units import UnitMeter

# No answer of any model comes near; a greater count is a defect upstream.
MAX_TOKEN_COUNT = 100_000_000
# The limit of the usage event's field.
MAX_RAW_USAGE_BYTES = 65_536
BYTES_PER_ESTIMATED_TOKEN = 4

_OPENAI_PATHS: Final = {
    "cache_read": ("cached_tokens",),
    "cache_write": ("cache_write_tokens",),
    "cache_write_30m": ("cache_write_tokens_details", "ttl_30m_tokens"),
    "cache_write_12h": ("cache_write_tokens_details", "ttl_12h_tokens"),
}

_PATHS: Final[dict[Dialect, dict[str, tuple[str, ...]]]] = {
    Dialect.ANTHROPIC: {
        "input": ("input_tokens",),
        "cache_read": ("cache_read_input_tokens",),
        "cache_write": ("cache_creation_input_tokens",),
        "cache_write_5m": ("cache_creation", "ephemeral_5m_input_tokens"),
        "cache_write_1h": ("cache_creation", "ephemeral_1h_input_tokens"),
        "output": ("output_tokens",),
        "reasoning": ("output_tokens_details", "thinking_tokens"),
    },
    Dialect.OPENAI_CHAT: {
        "input": ("prompt_tokens",),
        **{name: ("prompt_tokens_details", *path) for name, path in _OPENAI_PATHS.items()},
        "output": ("completion_tokens",),
        "reasoning": ("completion_tokens_details", "reasoning_tokens"),
    },
    Dialect.OPENAI_RESPONSES: {
        "input": ("input_tokens",),
        **{name: ("input_tokens_details", *path) for name, path in _OPENAI_PATHS.items()},
        "output": ("output_tokens",),
        "reasoning": ("output_tokens_details", "reasoning_tokens"),
    },
}


# All counts of a `Tokens`, in its own order.
_counts_of = attrgetter(*(field.name for field in fields(Tokens)))
_OUTPUT_NAMES: Final = frozenset(
    paths[name][0] for paths in _PATHS.values() for name in ("output", "reasoning")
)


class UsageMeter:
    """Merges usage objects of one answer and tells its tokens.

    The last cumulative value of each count wins, unless it is smaller: an
    absent or null count keeps its value and counts never shrink. What a count
    cannot be (negative, fractional, absurdly large, not a number) is clamped
    or ignored, and counted in `anomaly_count`. Of these an absurdly large one
    makes all that was stated unusable: it is not charged, estimates are.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._counts: dict[str, int] = {}
        self._units = UnitMeter()
        self._raw: dict[str, bytes] = {}
        self._broken_count = 0
        # What `_counts` say without compactions, until one of them changes.
        self._found: tuple[Tokens, bool] | None = None
        self._has_compactions = False
        self.is_used = False
        # A count of what was asked, or of what was answered, is beyond `MAX_TOKEN_COUNT`.
        self.is_input_absurd = self.is_output_absurd = False

    def add(self, usage: bytes | msgspec.Raw) -> bool:
        """Merges one usage object, given as JSON, and returns whether there was one."""
        if not usage:
            return False
        text = bytes(usage)
        value = loose.decode(text)
        if not isinstance(value, dict):
            self._broken_count += value is not None
            return False
        self.is_used = True
        self._keep_raw(text)
        self._merge(value, "")
        self._units.add(value)
        self._merge_compactions(value.get("iterations"))
        return True

    @property
    def is_absurd(self) -> bool:
        """Whether a stated count is one that no model reaches."""
        return self.is_input_absurd or self.is_output_absurd

    def add_tools(self, tool_usage: bytes | msgspec.Raw) -> None:
        """Merges what Responses states of its hosted tools beside the usage object, given as JSON."""
        value = loose.decode(bytes(tool_usage)) if tool_usage else None
        if isinstance(value, dict):
            self._units.add({"tool_usage": value})
            self._raw["tool_usage"] = bytes(tool_usage)

    def units(self) -> dict[str, int]:
        """Returns what was counted besides tokens, by kind; nothing that is 0."""
        return {kind: count for kind, count in self._units.counts.items() if count}

    @property
    def anomaly_count(self) -> int:
        """How often the provider's numbers could not be true."""
        contradictions = sum(is_contradictory for _, is_contradictory in self._parts())
        return self._broken_count + self._units.anomaly_count + contradictions

    @property
    def raw(self) -> bytes:
        """The usage as the provider stated it, pieces merged, as JSON; empty if over 64 KiB."""
        if not self._raw:
            return b"{}" if self.is_used else b""
        members = (msgspec.json.encode(name) + b":" + value for name, value in self._raw.items())
        text = b"{" + b",".join(members) + b"}"
        return text if len(text) <= MAX_RAW_USAGE_BYTES else b""

    def tokens(self) -> Tokens:
        """Returns what was counted so far."""
        parts = [tokens for tokens, _ in self._parts()]
        return Tokens(*(sum(counts) for counts in zip(*map(_counts_of, parts), strict=True)))

    def _merge(self, usage: Mapping[str, Any], prefix: str) -> None:
        for name, path in _PATHS[self._dialect].items():
            self._raise_to(prefix + name, self._count(usage, path))

    def _merge_compactions(self, iterations: object) -> None:
        # The only iterations that the top-level counts do not contain.
        if not isinstance(iterations, list) or self._dialect is not Dialect.ANTHROPIC:
            return
        compactions = [i for i in iterations if isinstance(i, dict) and i.get("type") == "compaction"]
        self._has_compactions |= bool(compactions)
        if not self._has_compactions:
            return
        for name, path in _PATHS[self._dialect].items():
            self._raise_to("compaction_" + name, sum(self._count(i, path) or 0 for i in compactions))

    def _raise_to(self, name: str, count: int | None) -> None:
        if count is None:
            return
        previous = self._counts.get(name, 0)
        self._broken_count += count < previous
        self._counts[name] = max(previous, count)
        self._found = None

    def _count(self, usage: Mapping[str, Any], path: tuple[str, ...]) -> int | None:
        value: Any = usage
        for name in path:
            if value is None:
                return None
            value = value.get(name) if isinstance(value, dict) else False
        if type(value) is int and 0 <= value <= MAX_TOKEN_COUNT:
            return value
        if value is None:
            return None
        self._broken_count += 1
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return None
        if value > MAX_TOKEN_COUNT:
            if path[0] in _OUTPUT_NAMES:
                self.is_output_absurd = True
            else:
                self.is_input_absurd = True
            return None
        return int(max(value, 0))

    def _keep_raw(self, usage: bytes) -> None:
        try:
            pieces = msgspec.json.decode(usage, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._raw.update({name: bytes(piece) for name, piece in pieces.items() if bytes(piece) != b"null"})

    def _parts(self) -> list[tuple[Tokens, bool]]:
        """Returns the answer's own counts, and those of its compactions if it had any."""
        if self._found is None:
            self._found = self._part("")
        return [self._found, self._part("compaction_")] if self._has_compactions else [self._found]

    def _part(self, prefix: str) -> tuple[Tokens, bool]:
        """Returns the tokens under `prefix` and whether the stated counts contradict each other."""
        counts = {name: self._counts.get(prefix + name, 0) for name in _PATHS[self._dialect]}
        is_anthropic = self._dialect is Dialect.ANTHROPIC
        by_lifetime = {name: count for name, count in counts.items() if name.startswith("cache_write_")}
        stated = sum(by_lifetime.values())
        unstated = max(0, counts["cache_write"] - stated)
        by_lifetime["cache_write_5m" if is_anthropic else "cache_write_30m"] += unstated
        cached = 0 if is_anthropic else counts["cache_read"] + stated + unstated
        tokens = Tokens(
            input=max(0, counts["input"] - cached),
            cache_read=counts["cache_read"],
            output=counts["output"],
            reasoning=min(counts["reasoning"], counts["output"]),
            **by_lifetime,
        )
        is_contradictory = (
            cached > counts["input"]
            or counts["reasoning"] > counts["output"]
            or stated > counts["cache_write"] > 0
        )
        return tokens, is_contradictory


def text_bytes(text: str) -> int:
    """Returns the size of `text` in UTF-8; a lone surrogate counts 3."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimated_tokens(byte_count: int) -> int:
    """Returns how many tokens text of this size is taken for: a quarter, rounded up."""
    return -(-byte_count // BYTES_PER_ESTIMATED_TOKEN)
