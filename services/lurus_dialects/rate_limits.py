"""What is left of a client's limits, under the names that its dialect has for it (wire-contract B4)."""

import math
from datetime import UTC, datetime
from typing import Final

from lurus_dialects.dialect import Dialect

KINDS: Final = ("requests", "tokens")


def rate_limit_headers(
    dialect: Dialect, kind: str, limit: int, remaining: int, reset_seconds: float, now: float
) -> list[tuple[str, str]]:
    """Returns three headers.

    Args:
        dialect: of the client.
        kind: one of `KINDS`.
        limit: per minute.
        remaining: what may still come at once.
        reset_seconds: until all of it may.
        now: seconds since 1970.

    Source: Anthropic states the reset as a time of RFC 3339, OpenAI as a duration such as `6m0s`.
    """
    if dialect is Dialect.ANTHROPIC:
        reset = datetime.fromtimestamp(math.ceil(now + reset_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"anthropic-ratelimit-{kind}"
        return [
            (f"{name}-limit", str(limit)),
            (f"{name}-remaining", str(remaining)),
            (f"{name}-reset", reset),
        ]
    return [
        (f"x-ratelimit-limit-{kind}", str(limit)),
        (f"x-ratelimit-remaining-{kind}", str(remaining)),
        (f"x-ratelimit-reset-{kind}", _duration(reset_seconds)),
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
