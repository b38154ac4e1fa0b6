"""What a provider counts besides tokens: searches, fetched pages, images, and whatever it counts next.

Anthropic states `server_tool_use.web_search_requests` in its usage; OpenAI
Responses states `tool_usage.web_search.num_requests` beside it. A unit's kind
is the tool's name, with what is counted of it behind unless that is requests.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_UNIT_COUNT = 100_000_000
# Further kinds are not counted, and noted as odd.
MAX_KINDS = 32
_KIND = re.compile(r"[a-z0-9_]{1,48}\Z")
_REQUESTS = "_requests"
# Sums of what is counted by itself.
_SUMS = frozenset({"total_tokens"})


class UnitMeter:
    """Merges what the pieces of one answer state: the last cumulative value counts, and none shrinks."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.anomaly_count = 0

    def add(self, usage: Mapping[str, Any]) -> None:
        """Merges the units of one usage object, `tool_usage` included."""
        for kind, value in _stated(usage):
            self._raise_to(kind, value)

    def _raise_to(self, kind: str, value: object) -> None:
        is_count = type(value) is int and 0 <= value <= MAX_UNIT_COUNT
        is_room = kind in self.counts or len(self.counts) < MAX_KINDS
        if not is_count or not is_room or not _KIND.match(kind):
            self.anomaly_count += value is not None
            return
        previous = self.counts.get(kind, 0)
        self.anomaly_count += value < previous  # type: ignore[operator]  # it is a count
        self.counts[kind] = max(previous, value)  # type: ignore[call-overload]


def _stated(usage: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    own = usage.get("server_tool_use")
    if isinstance(own, dict):
        yield from ((name.removesuffix(_REQUESTS), value) for name, value in own.items())
    hosted = usage.get("tool_usage")
    if isinstance(hosted, dict):
        for tool, counts in hosted.items():
            if isinstance(counts, dict):
                yield from _of_tool(tool, counts)


def _of_tool(tool: str, counts: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in counts.items():
        if name == "num_requests":
            yield tool, value
        elif name not in _SUMS and not isinstance(value, dict | list):
            yield f"{tool}_{name}", value
