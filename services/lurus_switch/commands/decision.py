"""Shows the decision that is stored with a request: who was to be asked, in order, and who not."""

import json
from collections.abc import Mapping
from typing import Any

from lurus_switch.output import Column, print_table

Row = Mapping[str, Any]


def print_decision(decision: bytes) -> None:
    """Prints a decision as a table; nothing if there is none, or it is none that we know."""
    try:
        found = json.loads(decision or b"null")
    except ValueError:
        found = None
    rows = found.get("candidates") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        return
    known = [row for row in rows if isinstance(row, dict)]
    policy = f"by {found.get('policy', 'weight')}".replace("_", " ")
    print(f"plan ({policy}{', last resort: nobody was healthy' if found.get('isLastResort') else ''})")
    print_table(_COLUMNS, list(enumerate(known, 1)), "")
    print()


def _text(row: Row, *names: str) -> str:
    return "/".join(str(row[name]) for name in names if row.get(name))


def _why(row: Row) -> str:
    if row.get("skipReason"):
        return f"not asked: {row['skipReason']}"
    return "in reserve: its breaker is open" if row.get("isReserve") else ""


_COLUMNS: list[Column[tuple[int, Row]]] = [
    ("", lambda pair: "-" if pair[1].get("skipReason") else str(pair[0])),
    ("PROVIDER", lambda pair: _text(pair[1], "providerId", "credentialId")),
    ("ASKED FOR", lambda pair: _text(pair[1], "upstreamModel")),
    ("IN", lambda pair: _text(pair[1], "dialect")),
    ("RULE", lambda pair: _text(pair[1], "rule") or "every model"),
    ("LEVEL", lambda pair: _text(pair[1], "level")),
    ("WEIGHT", lambda pair: _text(pair[1], "weight")),
    ("LATENCY", lambda pair: _text(pair[1], "latencyDuration")),
    ("WHY", lambda pair: _why(pair[1])),
]
