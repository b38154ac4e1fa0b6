"""Ids that we make: a prefix and a ULID, ordered by time also within a millisecond."""

import random
import re
import time

from ulid import ULID, ValueProvider, constants

_REQUEST_ID = re.compile(r"req_[0-9A-HJKMNP-TV-Z]{26}\Z")


class _Numbers(ValueProvider):
    """Takes random bits from a generator that the system has seeded once per process.

    Ids have to be unique, not secret; asking the system for each costs more than all else in an id.
    """

    def randomness(self, current_timestamp: int | None = None) -> bytes:
        with self.lock:
            now = self.timestamp() if current_timestamp is None else current_timestamp
            if now == self.prev_timestamp:
                self.prev_randomness = self.increment_bytes(self.prev_randomness)
            else:
                # One bit is left out, so that counting up within the millisecond finds no end.
                bits = random.getrandbits(8 * constants.RANDOMNESS_LEN - 1)  # nothing secret
                self.prev_randomness = bits.to_bytes(constants.RANDOMNESS_LEN)
                self.prev_timestamp = now
            return self.prev_randomness


class _Id(ULID):
    provider = _Numbers()


def new_id(prefix: str) -> str:
    """Returns a new id such as `req_01J…`. Unique across processes, ascending within one."""
    return f"{prefix}_{_Id.from_timestamp(time.time_ns() // 1_000_000)}"


def is_request_id(text: str) -> bool:
    """Whether `text` has the shape of a request id that we made."""
    return _REQUEST_ID.match(text) is not None
