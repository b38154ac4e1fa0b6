"""Who is calling: the key table in memory, and what to do with a key that is not in it.

The table is told by billing and kept on disk. What comes from the disk is
believed only as long as billing cannot be asked, and nothing is believed once
billing has been silent for too long; a key that is known as revoked stays so.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from lurus.billing.v1.billing_pb2 import KeyGrant, WatchKeysResponse
from lurus_common.errors import AuthenticationUnavailable, KeyInvalid, LurusError
from lurus_common.secrets import is_api_key, key_verifier

UNKNOWN_SECONDS = 2.0
MAX_UNKNOWN = 10_000
MAX_VERIFIERS = 10_000
# Keys that billing is asked for at once: somebody who makes up keys must not flood it.
MAX_LOOKUPS = 64
# After a start billing is asked for the keys from disk, one by one, until it has told all of them,
# until it is known to be away, or for so long.
DOUBT_SECONDS = 2.0

Lookup = Callable[[bytes], Awaitable[KeyGrant | None]]


class KeyTable:
    """All keys by their verifier.

    Args:
        pepper: of the verifiers.
        lookup: asks billing for a key that is not in the table yet; returns
            None if there is none, raises LurusError if billing cannot tell.
        max_age_seconds: for so long known keys work without a word of billing.
        on_found: called when a look-up has changed the table.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        pepper: str,
        lookup: Lookup,
        max_age_seconds: float,
        on_found: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pepper = pepper
        self._lookup = lookup
        self._clock = clock
        self._max_age_seconds = max_age_seconds
        self._on_found = on_found
        self._is_stale = False
        self._doubt_until = 0.0
        # Those that a table has named which is being told; None if none is.
        self._told: set[bytes] | None = None
        self._grants: dict[bytes, KeyGrant] = {}
        self._by_id: dict[str, KeyGrant] = {}
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._verifiers: OrderedDict[str, bytes] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[KeyGrant | None]] = {}

    def restore(self, grants: Iterable[KeyGrant]) -> None:
        """Takes what was known before the start."""
        self._put(grants)
        self._doubt_until = self._clock() + DOUBT_SECONDS

    def take(self, message: WatchKeysResponse) -> bool:
        """Takes a message of `WatchKeys`; returns whether it changes anything.

        A whole table may come in several messages. Meanwhile what was known goes
        on to count; what the new table does not name goes when it is complete.
        """
        self._is_stale = False
        if message.is_snapshot:
            self._told = set()
        self._put(message.grants)
        if self._told is not None:
            self._told.update(grant.verifier for grant in message.grants)
        if not message.is_complete:
            return bool(message.grants)
        self._doubt_until = 0.0
        gone = self._grants.keys() - self._told if self._told is not None else set()
        self._told = None
        for verifier in gone:
            self._drop(verifier)
        return bool(message.grants or gone)

    def note_silence(self, seconds: float) -> None:
        """Notes for how long billing has told nothing: beyond the limit, known keys do not count."""
        self._is_stale = seconds > self._max_age_seconds

    def note_outage(self) -> None:
        """Notes that billing cannot be asked: what is known counts."""
        self._doubt_until = 0.0
        self._told = None

    @property
    def grants(self) -> Sequence[KeyGrant]:
        """All that is known, revoked ones too."""
        return tuple(self._grants.values())

    def _put(self, grants: Iterable[KeyGrant]) -> None:
        for grant in grants:
            self._grants[grant.verifier] = grant
            self._by_id[grant.key_id] = grant
            self._unknown.pop(grant.verifier, None)

    def _drop(self, verifier: bytes) -> None:
        grant = self._grants.pop(verifier, None)
        if grant is not None:
            self._by_id.pop(grant.key_id, None)

    def by_id(self, key_id: str) -> KeyGrant | None:
        """Returns a key of the table."""
        return self._by_id.get(key_id)

    async def authenticate(self, credentials: Sequence[str]) -> KeyGrant:
        """Returns the first live key among what a caller presented.

        Raises:
            KeyInvalid: none is live; the same words for every cause.
            AuthenticationUnavailable: one is unknown here, and billing cannot be asked.
        """
        unavailable: AuthenticationUnavailable | None = None
        for credential in credentials:
            if credential not in self._verifiers and not is_api_key(credential):
                continue
            try:
                grant = await self._find(self._verifier(credential))
            except AuthenticationUnavailable as error:
                unavailable = error
                continue
            if grant is not None and _is_live(grant):
                return grant
        raise unavailable or KeyInvalid("the API key is missing, unknown, expired or revoked")

    def _verifier(self, credential: str) -> bytes:
        """The verifier of a key; those in use are remembered: to make one is a twentieth of a call."""
        verifier = self._verifiers.get(credential)
        if verifier is None:
            verifier = key_verifier(self._pepper, credential)
            if verifier in self._grants:
                self._verifiers[credential] = verifier
                if len(self._verifiers) > MAX_VERIFIERS:
                    self._verifiers.popitem(last=False)
        return verifier

    async def _find(self, verifier: bytes) -> KeyGrant | None:
        grant = self._grants.get(verifier)
        if grant is not None:
            is_doubtful = self._is_stale or (self._doubt_until and self._clock() < self._doubt_until)
            return await self._find_again(grant) if is_doubtful and not grant.is_revoked else grant
        if self._is_unknown(verifier):
            return None
        return await self._ask(verifier)

    async def _find_again(self, grant: KeyGrant) -> KeyGrant | None:
        """Asks billing about a known key; while it cannot answer the key counts, unless it is too old."""
        try:
            async with asyncio.timeout(DOUBT_SECONDS):
                return await self._ask(grant.verifier)
        except (AuthenticationUnavailable, TimeoutError) as error:
            if self._is_stale:
                raise _unavailable() from error
            return self._grants.get(grant.verifier)

    async def _ask(self, verifier: bytes) -> KeyGrant | None:
        task = self._lookups.get(verifier)
        if task is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                raise _unavailable()
            task = self._lookups[verifier] = asyncio.create_task(self._look_up(verifier))
            task.add_done_callback(_note_failure)
        try:
            # Others may wait for the same key: who leaves does not end the question.
            return await asyncio.shield(task)
        except LurusError as error:
            raise _unavailable() from error

    async def _look_up(self, verifier: bytes) -> KeyGrant | None:
        before = self._grants.get(verifier)
        try:
            grant = await self._lookup(verifier)
        finally:
            del self._lookups[verifier]
        if self._grants.get(verifier) is before:  # what the watch has told meanwhile is newer
            if grant is None:
                self._drop(verifier)
                self._remember_unknown(verifier)
            elif grant != before:
                self._put([grant])
                self._on_found()
        return self._grants.get(verifier)

    def _is_unknown(self, verifier: bytes) -> bool:
        until = self._unknown.get(verifier)
        return until is not None and self._clock() < until

    def _remember_unknown(self, verifier: bytes) -> None:
        self._unknown[verifier] = self._clock() + UNKNOWN_SECONDS
        self._unknown.move_to_end(verifier)
        if len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)


def _note_failure(task: "asyncio.Task[KeyGrant | None]") -> None:
    """Those who waited have been told; with nobody left, nobody needs to be."""
    if not task.cancelled():
        task.exception()


def _unavailable() -> AuthenticationUnavailable:
    return AuthenticationUnavailable(
        "the API key cannot be checked now; try again soon", retry_after_seconds=5
    )


def _is_live(grant: KeyGrant) -> bool:
    if grant.is_revoked:
        return False
    return not grant.HasField("expire_time") or grant.expire_time.ToNanoseconds() > time.time_ns()
