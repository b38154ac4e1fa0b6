"""Writes docs/translation.md: what each direction of translation keeps, found by translating.

python -m tests.conformance.translation_page          writes the page
python -m tests.conformance.translation_page --check  fails if the page is stale
"""

import itertools
import json
import sys
from pathlib import Path
from typing import NoReturn

from tests.conformance.anthropic_probes import anthropic_probes
from tests.conformance.chat_probes import chat_probes
from tests.conformance.probes import CONCEPTS, PROVIDER_ID, UPSTREAM_MODEL, Probe
from tests.conformance.responses_probes import responses_probes

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus_common.errors import LurusError
from lurus_dialects import translate
from lurus_dialects.dialect import Dialect
from lurus_dialects.translation import Losses, Target

PAGE = Path(__file__).parents[2] / "docs" / "translation.md"
TITLES = {
    Dialect.ANTHROPIC: "Anthropic Messages",
    Dialect.OPENAI_CHAT: "OpenAI Chat Completions",
    Dialect.OPENAI_RESPONSES: "OpenAI Responses",
}
PROBES = {
    Dialect.ANTHROPIC: anthropic_probes(),
    Dialect.OPENAI_CHAT: chat_probes(),
    Dialect.OPENAI_RESPONSES: responses_probes(),
}
# What a provider may be told to be, one by one; each is shown where it changes something.
QUIRKS: dict[str, object] = {
    "has_custom_tools": True,
    "has_mid_system": True,
    "has_tool_parts": True,
    "has_explicit_cache": True,
    "wants_reasoning_back": True,
    "no_adaptive_thinking": True,
    "has_message_phase": True,
    "anthropic_version": "2026-10-21",
}
KEPT = "kept"
LEFT_OUT = "left out without a word"
INTRODUCTION = """\
# What translation keeps

A client may speak another dialect than the provider that answers it. This page says what becomes of each part
of its request. It is written by `python -m tests.conformance.translation_page`, which translates a small
request for each line and looks at the outcome; a test fails if the page and the code differ.

- **kept**: the provider is told the same.
- **silent**: a hint is left out that changes nothing in what the answer means. It is counted in a metric.
- **warned**: something is left out or changed that the client should know of. The header `x-lurus-lossy`
  names the place. With the request header `x-lurus-strict: 1` it is refused instead.
- **refused**: the request gets status 400 before any provider is asked; the message begins with the place.

Unless a quirk is named, the provider has none set. A quirk is shown where it changes the outcome.
"""


class _Outcome(Losses):
    """Remembers why something is lost, not only what."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def warn(self, path: str, why: str) -> None:
        super().warn(path, why)
        self.words.append(f"**warned** `{path}`: {why}")

    def note(self, name: str) -> None:
        super().note(name)
        self.words.append(f"silent `{name}`")

    def refuse(self, path: str, why: str) -> NoReturn:
        self.words = [f"**refused** `{path}`: {why}"]
        super().refuse(path, why)


def outcome(source: Dialect, target: Dialect, probe: Probe, quirks: ProviderQuirks) -> str:
    """Returns what becomes of a probe, in words."""
    words, body = _translated(source, target, probe.request, quirks)
    usual, without = _translated(source, target, probe.without, quirks)
    own = [word for word in dict.fromkeys(words) if word not in usual or word.startswith("**refused**")]
    if own:
        return "; ".join(own)
    # What changes nothing on the way was lost, and nobody said so.
    return KEPT if body != without else probe.idle or LEFT_OUT


def _translated(
    source: Dialect, target: Dialect, request: dict[str, object], quirks: ProviderQuirks
) -> tuple[list[str], bytes]:
    losses = _Outcome()
    to = Target(
        dialect=target,
        upstream_model=UPSTREAM_MODEL,
        provider_id=PROVIDER_ID,
        quirks=quirks,
        max_output_tokens=100_000,
    )
    try:
        read = translate.read_request(source, json.dumps(request).encode(), losses)
        return losses.words, translate.write_request(read, to, losses, is_streaming=False).body
    except LurusError as error:
        return losses.words or [f"**refused** {error.message}"], b""


def cell(source: Dialect, target: Dialect, probe: Probe) -> str:
    """Returns what becomes of a probe, and of which quirks that depends."""
    usual = outcome(source, target, probe, ProviderQuirks())
    found = [usual]
    for name, value in QUIRKS.items():
        changed = outcome(source, target, probe, ProviderQuirks(**{name: value}))  # type: ignore[arg-type]
        if changed != usual:
            found.append(f"with `{name}`: {changed}")
    return "; ".join(found).replace("|", "\\|")


def page() -> str:
    """Returns the page."""
    return "\n".join([INTRODUCTION, *itertools.chain.from_iterable(_section(source) for source in Dialect)])


def _section(source: Dialect) -> list[str]:
    targets = [dialect for dialect in Dialect if dialect is not source]
    heads = " | ".join(f"to {TITLES[target]}" for target in targets)
    lines = [f"## From {TITLES[source]}", "", f"| | | {heads} |", "| --- | --- | --- | --- |"]
    probes = sorted(PROBES[source], key=lambda probe: list(CONCEPTS).index(probe.concept))
    for probe in probes:
        cells = " | ".join(cell(source, target, probe) for target in targets)
        what = probe.what.replace("|", "\\|")
        lines.append(f"| {probe.concept} {CONCEPTS[probe.concept]} | {what} | {cells} |")
    return [*lines, ""]


def main() -> int:
    """Writes the page, or checks it."""
    found = page()
    if "--check" in sys.argv:
        return int(PAGE.read_text() != found)
    PAGE.write_text(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
