"""Small requests, each with one thing that another dialect may or may not express (wire-contract C.1)."""

import json
from dataclasses import dataclass
from typing import Any

from tests.conformance.requests import request_of, text, user

from lurus.routing.v1.chat_pb2 import ChatThinking
from lurus.usage.v1.usage_pb2 import DIALECT_ANTHROPIC, DIALECT_OPENAI_CHAT, DIALECT_OPENAI_RESPONSES
from lurus_dialects import envelope
from lurus_dialects.dialect import Dialect

PROVIDER_ID, UPSTREAM_MODEL = "one", "up"
CONCEPTS = {
    "T1": "system prompt",
    "T2": "text",
    "T3": "images",
    "T4": "documents",
    "T5": "sound",
    "T6": "thinking in history",
    "T7": "calls in history",
    "T8": "ids and names",
    "T9": "results of tools",
    "T10": "function tools",
    "T11": "custom tools",
    "T12": "hosted tools",
    "T13": "choice of tools",
    "T14": "effort of thinking",
    "T15": "limit of the output",
    "T16": "sampling",
    "T17": "stop sequences",
    "T18": "shape of the answer",
    "T19": "several answers, probabilities",
    "T20": "identity",
    "T21": "tiers",
    "T22": "caching",
    "T23": "state of the provider",
    "T24": "compaction",
    "T25": "safety fields of one vendor",
    "T26": "begun answers",
    "other": "what nobody knows",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """A request with one thing in it.

    Attributes:
        concept: of `CONCEPTS`.
        what: says what is in it.
        request: holds it.
        without: the same request without it.
        idle: why the provider need not be told of it; empty if it must.
    """

    concept: str
    what: str
    request: dict[str, Any]
    without: dict[str, Any]
    idle: str = ""


GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}


def _sealed(dialect: Any, original: dict[str, Any]) -> str:
    made = ChatThinking(original=json.dumps(original).encode(), dialect=dialect)
    made.provider_id, made.upstream_model = PROVIDER_ID, UPSTREAM_MODEL
    return envelope.seal(made)


OURS_OF_A = _sealed(DIALECT_ANTHROPIC, {"type": "thinking", "thinking": "hm", "signature": "sig"})
OURS_OF_C = _sealed(DIALECT_OPENAI_CHAT, {"reasoning_content": "hm"})
OURS_OF_R = _sealed(DIALECT_OPENAI_RESPONSES, {"type": "reasoning", "id": "rs", "summary": []})


class Probes:
    """Collects the probes of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.found: list[Probe] = []
        self._base = request_of(dialect)

    def add(
        self, concept: str, what: str, request: dict[str, Any], without: Any = None, idle: str = ""
    ) -> None:
        """Adds a request, and what it is without the thing."""
        self.found.append(Probe(concept, what, request, without or self._base, idle))

    def fields(self, concept: str, **fields: Any) -> None:
        """Adds a probe for each field at the top level."""
        for name, value in fields.items():
            self.add(concept, f"`{name}: {json.dumps(value)}`", {**self._base, name: value})

    def tool(self, concept: str, what: str, tool: dict[str, Any], plain: dict[str, Any]) -> None:
        """Adds a tool beside a function, or in its place if that is the same tool without the thing."""
        is_variant = tool.get("name", tool.get("function")) == plain.get("name", plain.get("function"))
        tools = [tool] if is_variant else [plain, tool]
        self.add(concept, what, {**self._base, "tools": tools}, {**self._base, "tools": [plain]})

    def of_answer(self, concept: str, **fields: Any) -> None:
        """Adds a probe for each field that says what the answer is to look like."""
        for name, value in fields.items():
            what = f"`{name}: {json.dumps(value)}`"
            self.found.append(
                Probe(concept, what, {**self._base, name: value}, self._base, "kept, in the answer")
            )

    def turn(self, concept: str, what: str, *content: dict[str, Any], idle: str = "") -> None:
        """Adds blocks to the user's turn."""
        self.add(concept, what, self._with_content([*content]), self._with_content([]), idle)

    def choice(self, tool: dict[str, Any], choice: Any) -> None:
        """Adds a choice among the tools."""
        given = {**self._base, "tools": [tool]}
        self.add("T13", f"`tool_choice: {json.dumps(choice)}`", {**given, "tool_choice": choice}, given)

    def _with_content(self, more: list[dict[str, Any]]) -> dict[str, Any]:
        key = "input" if "input" in self._base else "messages"
        first = {"type": "input_text", "text": "hi"} if key == "input" else text("hi")
        return {**self._base, key: [user([first, *more])]}
