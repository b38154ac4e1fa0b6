"""Which request a client's `Idempotency-Key` stands for.

The key is the client's word, so it is never ours: every call has a request id of
its own and is charged by that. What a client gets of its key is the truth: a call
that repeats one which was charged is told which one that was, and a key that
comes again with another request is refused. Answers are not kept, so none is
given twice. Without Redis each worker knows only what it has seen itself.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from lurus_common.errors import Conflict, InvalidRequest
from lurus_common.large import beside_loop
from lurus_routing.call import Call
from lurus_routing.shared import Shared

HEADER = "idempotency-key"
REPEAT_HEADER = "x-lurus-repeat-of"
MAX_CHARACTERS = 255
KEEP_SECONDS = 86_400
MAX_CLAIMS = 50_000


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """The request that was the first to be charged under a key, and what it asked for."""

    request_id: str
    digest: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Claim)
# The API key's id and the client's word.
_Name = tuple[str, str]


class Repeats:
    """What one worker knows of claimed keys.

    Args:
        shared: what all workers know; None if there is only this one.
        clock: seconds, monotonic.
    """

    def __init__(self, shared: Shared | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._clock = clock
        self._claims: OrderedDict[_Name, tuple[Claim, float]] = OrderedDict()

    async def check(self, call: Call) -> None:
        """Notes in a call which earlier one it repeats.

        Raises:
            InvalidRequest: the key is too long, or not of visible characters.
            Conflict: it stands for another request already.
        """
        name = _name(call)
        if name is None:
            return
        call.digest = await beside_loop(len(call.body), _digest, call)
        claim = await self._find(name)
        if claim is None:
            return
        if claim.digest != call.digest:
            raise Conflict(f"{HEADER}: this one stands for another request, {claim.request_id}", param=HEADER)
        call.repeat_of = claim.request_id

    def claim(self, call: Call) -> None:
        """Lets a settled call have its key, if it was charged; the first one keeps it."""
        if HEADER not in call.headers or call.repeat_of or not call.used_tokens():
            return
        name = _name(call)
        if name is None or self._known(name) is not None:
            return
        claim = Claim(call.request_id, call.digest)
        self._put(name, claim)
        if self._shared is not None:
            shared_name = self._shared.name("idempotency", *name)
            self._shared.write(shared_name, _ENCODER.encode(claim), KEEP_SECONDS, is_first_only=True)

    async def _find(self, name: _Name) -> Claim | None:
        claim = self._known(name)
        if claim is not None or self._shared is None:
            return claim
        found = await self._shared.read([self._shared.name("idempotency", *name)])
        if not found or not found[0]:
            return None
        try:
            claim = _DECODER.decode(found[0])
        except msgspec.MsgspecError:
            return None
        self._put(name, claim)
        return claim

    def _known(self, name: _Name) -> Claim | None:
        claim, until = self._claims.get(name, (None, 0.0))
        return claim if self._clock() < until else None

    def _put(self, name: _Name, claim: Claim) -> None:
        self._claims[name] = (claim, self._clock() + KEEP_SECONDS)
        self._claims.move_to_end(name)
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)


def _name(call: Call) -> _Name | None:
    word = call.headers.get(HEADER, b"")
    if not word:
        return None
    if len(word) > MAX_CHARACTERS or not all(0x20 < byte < 0x7F for byte in word):
        raise InvalidRequest(f"{HEADER}: at most {MAX_CHARACTERS} visible ASCII characters", param=HEADER)
    return call.grant.key_id, word.decode()


def _digest(call: Call) -> bytes:
    """What stands for a request: where it goes and every byte of it."""
    request = call.request
    found = hashlib.blake2b(f"{request.method} {request.path}?{request.query}\n".encode(), digest_size=16)
    found.update(call.body)
    return found.digest()
