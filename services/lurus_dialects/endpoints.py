"""The paths that clients call, and what is done at each.

A path names an id in exactly one spelling: letters, digits, `_` and `-`, no
escape. So nothing that reaches a provider's URL can leave the place where the
id belongs.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lurus_dialects.dialect import Dialect


class Kind(StrEnum):
    """What is done with a request."""

    # A chat: relayed or translated, charged.
    CHAT = "chat"
    # A count of tokens: never charged.
    COUNT = "count"
    # A conversation made shorter: relayed only, charged.
    COMPACT = "compact"
    # OpenAI's first API and embeddings: relayed only, by providers that are set up for it, charged.
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    # An answer that a provider keeps: asked of its holder, charged only if its making was not.
    STORED = "stored"
    # Anthropic's batches: for accounts that are set up for it, never charged.
    BATCHES = "batches"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is served at a path."""

    dialect: Dialect
    kind: Kind
    methods: tuple[str, ...] = ("POST",)


_A, _C, _R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
FIXED: Final = {
    "/v1/messages": Endpoint(_A, Kind.CHAT),
    "/v1/messages/count_tokens": Endpoint(_A, Kind.COUNT),
    "/v1/messages/batches": Endpoint(_A, Kind.BATCHES, ("GET", "POST")),
    "/v1/chat/completions": Endpoint(_C, Kind.CHAT),
    "/v1/completions": Endpoint(_C, Kind.COMPLETIONS),
    "/v1/embeddings": Endpoint(_C, Kind.EMBEDDINGS),
    "/v1/responses": Endpoint(_R, Kind.CHAT),
    "/v1/responses/input_tokens": Endpoint(_R, Kind.COUNT),
    "/v1/responses/compact": Endpoint(_R, Kind.COMPACT),
}
_OF_ID: Final = {
    "/v1/responses": {
        "": Endpoint(_R, Kind.STORED, ("GET", "DELETE")),
        "/cancel": Endpoint(_R, Kind.STORED),
        "/input_items": Endpoint(_R, Kind.STORED, ("GET",)),
    },
    "/v1/messages/batches": {
        "": Endpoint(_A, Kind.BATCHES, ("GET", "DELETE")),
        "/cancel": Endpoint(_A, Kind.BATCHES),
        "/results": Endpoint(_A, Kind.BATCHES, ("GET",)),
    },
}
_ID_PATH: Final = re.compile(
    r"(/v1/responses|/v1/messages/batches)/([A-Za-z0-9_-]{1,256})(/[a-z_]{1,16}|)", re.ASCII
)


def endpoint_of(path: str) -> Endpoint | None:
    """Returns what is served at a path with the prefix `/v1`, None if nothing is."""
    fixed = FIXED.get(path)
    if fixed is not None:
        return fixed
    found = _ID_PATH.fullmatch(path)
    return _OF_ID[found[1]].get(found[3]) if found else None


def id_in(path: str) -> str:
    """Returns the id in the path of an endpoint that has one; empty if it has none."""
    found = _ID_PATH.fullmatch(path)
    return found[2] if found else ""
