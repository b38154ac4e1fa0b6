"""Who is calling: the key table in memory, and what to do with a key that is not in it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from lurus.billing.v1.billing_pb2 import KeyGrant
from lurus_common.errors import AuthenticationUnavailable, KeyInvalid, LurusError
from lurus_common.secrets import is_api_key, key_verifier

UNKNOWN_SECONDS = 2.0
MAX_UNKNOWN = 10_000
MAX_VERIFIERS = 10_000
# Keys that billing is asked for at once: somebody who makes up keys must not flood it.
MAX_LOOKUPS = 64

Lookup = Callable[[bytes], Awaitable[KeyGrant | None]]


class KeyTable:
    """All keys by their verifier.

    Args:
        pepper: of the verifiers.
        lookup: asks billing for a key that is not in the table yet; returns
            None if there is none, raises LurusError if billing cannot tell.
        clock: seconds, monotonic.
    """

    def __init__(self, pepper: str, lookup: Lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._pepper = pepper
        self._lookup = lookup
        self._clock = clock
        self._grants: dict[bytes, KeyGrant] = {}
        self._by_id: dict[str, KeyGrant] = {}
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._verifiers: OrderedDict[str, bytes] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[KeyGrant | None]] = {}

    def replace(self, grants: Iterable[KeyGrant]) -> None:
        """Takes a whole new table."""
        self._grants = {}
        self._by_id = {}
        self.update(grants)

    def update(self, grants: Iterable[KeyGrant]) -> None:
        """Takes new and changed keys. A revoked key stays, as revoked."""
        for grant in grants:
            self._grants[grant.verifier] = grant
            self._by_id[grant.key_id] = grant
            self._unknown.pop(grant.verifier, None)

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
        if grant is not None or self._is_unknown(verifier):
            return grant
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
        try:
            grant = await self._lookup(verifier)
        finally:
            del self._lookups[verifier]
        if grant is None:
            self._remember_unknown(verifier)
        elif verifier not in self._grants:  # what the watch has told meanwhile is newer
            self.update([grant])
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
