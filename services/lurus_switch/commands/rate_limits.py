"""Options and words for the rate limits of keys and accounts."""

from typing import Annotated

import typer

from lurus.billing.v1 import billing_pb2 as pb

RequestsPerMinute = Annotated[
    int | None,
    typer.Option("--requests-per-minute", min=0, metavar="N", help="Requests begun per minute; 0: any."),
]
TokensPerMinute = Annotated[
    int | None,
    typer.Option("--tokens-per-minute", min=0, metavar="N", help="Tokens of all kinds per minute; 0: any."),
]
ConcurrentRequests = Annotated[
    int | None,
    typer.Option("--concurrent-requests", min=0, metavar="N", help="Requests at the same time; 0: any."),
]
_UNITS = {"requests_per_minute": "req/min", "tokens_per_minute": "tok/min", "concurrent_requests": "at once"}


def rate_limits(limits: pb.RateLimits) -> str:
    """Returns limits in words; `none` without any."""
    stated = [f"{getattr(limits, name)} {unit}" for name, unit in _UNITS.items() if getattr(limits, name)]
    return ", ".join(stated) or "none"
