"""Who holds what later requests may come back to.

State that a provider keeps (answers, conversations, threads) is of use only
with the credential that made it (wire-contract B7). The memory of the worker
comes first; behind it all workers share one, so that another worker or one that
was restarted finds the holder too. Away from that, memory is all there is.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import PreviousResponseNotFound
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.request import Peek
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate
from lurus_routing.held import Held
from lurus_routing.shared import Shared

MAX_HELD = 100_000
KEEP_SECONDS = 30 * 86_400
# A provider's id is of its own choice; a longer one is not remembered.
MAX_ID_CHARACTERS = 512
# What another worker has just learned may be on its way.
SECOND_LOOK_SECONDS = 0.05
NOT_THE_HOLDER = "may not hold the answer that is continued"
ANSWER, CONVERSATION = "answer", "conversation"
_RESPONSES = usage_pb2.DIALECT_OPENAI_RESPONSES


@dataclass(frozen=True, slots=True)
class Continued:
    """What a request continues, and what is known of that."""

    param: str
    held: Held | None
    is_of_another: bool


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Held)
# Account, kind and id.
_Key = tuple[str, str, str]


class Holders:
    """What one worker knows of holders.

    Args:
        shared: what all workers know; None if there is only this one.
    """

    def __init__(self, shared: Shared | None) -> None:
        self._shared = shared
        self._held: OrderedDict[_Key, Held] = OrderedDict()
        # Whose an id was first. Ids of providers are no secrets: who knows one must not get what it names.
        self._owners: OrderedDict[tuple[str, str], str] = OrderedDict()

    def learn(self, call: Call, *, is_over: bool = False) -> None:
        """Notes who holds the answer of a call, if anybody may come back to it. Repeats do nothing.

        Args:
            call: of which something has been answered.
            is_over: it is settled, so it is known whether its usage is still owed.
        """
        answer, candidate = call.answer, call.candidate
        if answer is None or candidate is None or call.is_free or not candidate.is_relay:
            return
        is_kept, conversation = answer.response_id and _is_kept(call), _conversation(call)
        if not is_kept and not conversation:
            return
        held = Held(*candidate.key[:2], call.model, candidate.upstream_model)
        account_id = call.grant.account_id
        if conversation:
            self.keep(account_id, CONVERSATION, conversation, held)
        if is_kept:
            debt = call.debt() if is_over else None
            self.keep(account_id, ANSWER, answer.response_id, msgspec.structs.replace(held, debt=debt))

    def keep(self, account_id: str, kind: str, name: str, held: Held) -> None:
        """Remembers a holder, here and for all workers."""
        key = (account_id, kind, name)
        if len(name) > MAX_ID_CHARACTERS or self._held.get(key) == held:
            return
        self._put(key, held)
        if self._owners.setdefault((kind, name), account_id) == account_id:
            self._owners.move_to_end((kind, name))
        if self._shared is not None:
            owned, owner = self._names(key)
            self._shared.write(owned, _ENCODER.encode(held), KEEP_SECONDS)
            self._shared.write(owner, self._shared.digest(account_id), KEEP_SECONDS, is_first_only=True)

    async def find(self, account_id: str, kind: str, name: str) -> tuple[Held | None, bool]:
        """Returns who holds something of an account, and whether it is known to be another account's."""
        key = (account_id, kind, name)
        held = self._held.get(key)
        if held is not None or len(name) > MAX_ID_CHARACTERS:
            return held, False
        if self._owners.get((kind, name), account_id) != account_id:
            return None, True
        held, owner = await self._look(key)
        if held is None and not owner:
            await asyncio.sleep(SECOND_LOOK_SECONDS)
            held, owner = await self._look(key)
        if held is not None:
            self._put(key, held)
        is_of_another = held is None and bool(owner) and owner != self._digest(account_id)
        return held, is_of_another

    async def continued_by(self, call: Call) -> Continued | None:
        """Returns what a call continues, None if that is nothing, or nothing that can be looked up."""
        if call.peeked is None or not call.request.dialect:
            return None
        param, kind, name = "previous_response_id", ANSWER, call.peeked.previous_response_id
        if not name:
            param, kind, name = "conversation", CONVERSATION, _conversation(call)
        if not name:
            return None
        held, is_of_another = await self.find(call.grant.account_id, kind, name)
        return Continued(param, held, is_of_another)

    async def _look(self, key: _Key) -> tuple[Held | None, bytes]:
        """Returns what all workers know: the holder, and the owner's digest."""
        if self._shared is None:
            return None, b""
        found = await self._shared.read(self._names(key))
        if found is None:
            return None, b""
        value, owner = found
        try:
            return (_DECODER.decode(value) if value else None), owner or b""
        except msgspec.MsgspecError:
            return None, owner or b""

    def _names(self, key: _Key) -> tuple[str, str]:
        assert self._shared is not None
        return self._shared.name("held", *key), self._shared.name("owner", *key[1:])

    def _digest(self, account_id: str) -> bytes:
        return self._shared.digest(account_id) if self._shared is not None else b""

    def _put(self, key: _Key, held: Held) -> None:
        self._held[key] = held
        self._held.move_to_end(key)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
        if len(self._owners) > MAX_HELD:
            self._owners.popitem(last=False)


_EXTRA_ENDPOINTS = {
    Kind.COMPLETIONS: provider_pb2.EXTRA_ENDPOINT_COMPLETIONS,
    Kind.EMBEDDINGS: provider_pb2.EXTRA_ENDPOINT_EMBEDDINGS,
}


def serving(call: Call, matches: list[Candidate]) -> list[Candidate]:
    """Returns those of `matches` that serve the path of a call; what is not a chat is never translated."""
    kind = call.endpoint.kind if call.endpoint is not None else Kind.CHAT
    if kind is Kind.CHAT or kind is Kind.COUNT:
        return matches
    extra = _EXTRA_ENDPOINTS.get(kind)
    return [
        candidate
        for candidate in matches
        if candidate.is_relay and (extra is None or extra in candidate.extra_endpoints)
    ]


def may_continue(call: Call, peeked: Peek) -> bool:
    """Whether a call names something that a provider holds."""
    return bool(peeked.previous_response_id) or "conversation" in peeked.members


def among(call: Call, matches: list[Candidate], continued: Continued | None) -> list[Candidate]:
    """Returns those of `matches` that may hold what a call continues; all if it continues nothing.

    Raises:
        PreviousResponseNotFound: nobody does, or it is somebody else's.
    """
    if continued is None:
        return matches
    relays = [candidate for candidate in matches if candidate.is_relay and not continued.is_of_another]
    if continued.held is not None:
        relays = [candidate for candidate in relays if candidate.key[:2] == continued.held.credential]
    if relays:
        return relays
    is_unknown = continued.held is None and not continued.is_of_another
    is_an_answer = continued.param == "previous_response_id"
    if is_unknown and not (is_an_answer and call.request.dialect == _RESPONSES):
        return matches  # A writer says better what it cannot say.
    raise PreviousResponseNotFound(
        "the answer that this request continues is not held by any provider; send the whole history",
        param=continued.param,
    )


def _is_kept(call: Call) -> bool:
    """Whether the provider keeps the answer: Responses unless told otherwise, Anthropic in a thread only."""
    if call.peeked is None:
        return False
    if call.request.dialect == _RESPONSES:
        stored = call.peeked.members.get("store")
        return stored is None or bytes(stored) != b"false"
    return call.request.dialect == usage_pb2.DIALECT_ANTHROPIC and "thread" in call.peeked.members


def _conversation(call: Call) -> str:
    """The conversation that a Responses request names, by its id or as an object; empty if none."""
    if call.peeked is None or call.peeked.dialect is not Dialect.OPENAI_RESPONSES:
        return ""
    raw = call.peeked.members.get("conversation")
    if raw is None or len(memoryview(raw)) > 2 * MAX_ID_CHARACTERS:
        return ""
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return ""
    name = value.get("id") if isinstance(value, dict) else value
    return name if isinstance(name, str) else ""
