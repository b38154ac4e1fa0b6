"""What a connection may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What a connection may cost before its request is complete.

    A body has `body_seconds` to become complete, and another such window each
    time it kept `body_bytes_per_second`: a big body on a slow line passes, a
    silent one does not.
    """

    head_seconds: float = 10.0
    body_seconds: float = 60.0
    body_bytes_per_second: int = 8_000
    keep_alive_seconds: float = 75.0
    # How long a client may leave a full send buffer untouched before it is cut.
    write_stall_seconds: float = 60.0
    # How long a refused client may go on sending, so that it reads the answer and not a reset.
    linger_seconds: float = 5.0
    header_bytes: int = 32 << 10
    header_count: int = 100
    url_bytes: int = 8 << 10
    body_bytes: int = 32 << 20
