"""Sessions that a failover has moved to another credential, where they stay.

What a session's first choice is, every worker computes alike. That it has
moved must be told: a worker that did not hear of it would take the session back
as soon as its first choice recovers, and pay for a cold cache twice. All moves
of the last hour are in the memory of each worker, so no request waits for them.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from lurus_routing.shared import NEWS_SECONDS, News, Shared

MAX_MOVES = 50_000
# Since its last use. No longer than the news live from which a new worker learns it.
MOVE_SECONDS = float(NEWS_SECONDS)
# A move in use is told again after this long, so that all workers keep it.
TELL_AGAIN_SECONDS = MOVE_SECONDS / 4

CredentialKey = tuple[str, str]


@dataclass(slots=True)
class _Move:
    to: CredentialKey
    until: float
    told: float


class Moves:
    """The moved sessions that one worker knows.

    Args:
        shared: None if there are no other workers to tell.
        clock: seconds, monotonic.
    """

    def __init__(self, shared: Shared | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._clock = clock
        self._moves: OrderedDict[bytes | str, _Move] = OrderedDict()

    def of(self, session: str) -> CredentialKey | None:
        """Returns where a session has moved to, which is a use of it; None if it has not."""
        if not self._moves or not session:
            return None
        name = self._name(session)
        move = self._moves.get(name)
        now = self._clock()
        if move is None or now >= move.until:
            self._moves.pop(name, None)
            return None
        move.until = now + MOVE_SECONDS
        if now - move.told >= TELL_AGAIN_SECONDS:
            self._tell(name, move, now)
        return move.to

    def note(self, session: str, to: CredentialKey) -> None:
        """A session has moved."""
        now = self._clock()
        name = self._name(session)
        move = _Move(to, now + MOVE_SECONDS, now)
        self._put(name, move)
        self._tell(name, move, now)

    def take(self, age_seconds: float, news: News) -> None:
        """Takes what a worker told; of several, the last one counts."""
        try:
            to = (news[b"provider"].decode(), news[b"credential"].decode())
            name = news[b"session"]
        except (KeyError, UnicodeDecodeError):
            return
        left = MOVE_SECONDS - age_seconds
        if left > 0:
            now = self._clock()
            self._put(name, _Move(to, now + left, now - age_seconds))

    def _put(self, name: bytes | str, move: _Move) -> None:
        self._moves[name] = move
        self._moves.move_to_end(name)
        if len(self._moves) > MAX_MOVES:
            self._moves.popitem(last=False)

    def _name(self, session: str) -> bytes | str:
        return self._shared.digest("session", session) if self._shared is not None else session

    def _tell(self, name: bytes | str, move: _Move, now: float) -> None:
        move.told = now
        if self._shared is not None and isinstance(name, bytes):
            provider_id, credential_id = move.to
            self._shared.tell(
                {b"session": name, b"provider": provider_id.encode(), b"credential": credential_id.encode()}
            )
