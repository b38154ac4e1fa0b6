"""What providers are sent: the client's own bytes, or its request in the provider's dialect.

A request is translated only when a candidate of another dialect is tried, from
the client's original each time: a failover loses nothing twice.
"""

import time
from dataclasses import dataclass, field
from typing import Final

import msgspec

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus_common.errors import InvalidRequest, Untranslatable
from lurus_common.large import LARGE_BYTES, beside_loop
from lurus_common.settings import Settings
from lurus_dialects import translate
from lurus_dialects.counting import count_body
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Kind
from lurus_dialects.foreign_thinking import without_foreign_thinking
from lurus_dialects.headers import to_other_dialect, to_upstream
from lurus_dialects.params import Param, with_params
from lurus_dialects.request import Peek, request_include_usage, splice_model
from lurus_dialects.translation import Asked, Losses, Target, Written
from lurus_routing import metrics
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate
from lurus_routing.incoming import COUNT_PATHS

_THINKING: Final = frozenset({chat_pb2.CHAT_REASONING_MODE_ADAPTIVE, chat_pb2.CHAT_REASONING_MODE_BUDGET})
_RULES: Final = frozenset({chat_pb2.CHAT_ROLE_SYSTEM, chat_pb2.CHAT_ROLE_DEVELOPER})
_ABOUT_STORES: Final = frozenset({Kind.STORED, Kind.BATCHES})
STRICT: Final = "x-lurus-strict"
# Where a Responses request has them, whose answer repeats them.
_INSTRUCTIONS: Final = "instructions"
_CHAT_PATHS: Final = {
    Dialect.ANTHROPIC: "/v1/messages",
    Dialect.OPENAI_CHAT: "/v1/chat/completions",
    Dialect.OPENAI_RESPONSES: "/v1/responses",
}
# A chat provider cannot count.
_COUNT_PATHS: Final = {
    Dialect.ANTHROPIC: "/v1/messages/count_tokens",
    Dialect.OPENAI_RESPONSES: "/v1/responses/input_tokens",
}
_STREAM: Final = Param("stream", b"true")
_ID_PREFIXES: Final = {
    Dialect.ANTHROPIC: "msg_",
    Dialect.OPENAI_CHAT: "chatcmpl-",
    Dialect.OPENAI_RESPONSES: "resp_",
}


@dataclass(frozen=True, slots=True)
class Translation:
    """How an answer goes back to a client of another dialect, or of none (None)."""

    client: Dialect | None
    written: Written
    asked: Asked
    lossy_fields: list[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one candidate is sent."""

    # The one that it is asked in.
    dialect: Dialect
    # Path and query.
    target: str
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    # None for a relay.
    translation: Translation | None = None
    # Of a relay: the client's fields that its provider refuses, or gets with other values.
    replaced_fields: tuple[str, ...] = ()
    # A stream is asked for, and the client wants a plain answer.
    is_gathered: bool = False
    method: str = "POST"


class Outgoing:
    """A call's request in whatever form a candidate needs.

    Args:
        typed: the request of a caller who speaks no dialect.

    Raises:
        InvalidRequest: its headers are such that no provider would take them.
    """

    def __init__(
        self, call: Call, peeked: Peek, settings: Settings, typed: StreamChatRequest | None = None
    ) -> None:
        request = call.request
        self.client = None if typed is not None else peeked.dialect
        self.is_streaming = peeked.is_streaming
        self._thinks_first = call.thinks_first or peeked.wants_thinking
        # Count requests tell nothing about a model's health and are never charged.
        self.counts_only = request.path in COUNT_PATHS
        self.kind = call.endpoint.kind if call.endpoint is not None else Kind.CHAT
        # A batch that was made twice is paid for twice.
        self.may_repeat = not self.counts_only and self.kind is not Kind.BATCHES
        # A chat client that did not ask for its usage is not shown the chunk that states it.
        self.strips_usage = self.client is Dialect.OPENAI_CHAT and not peeked.asks_for_usage
        self._call = call
        self._peeked = peeked
        self._target = f"{request.path}?{request.query}" if request.query else request.path
        given = [(header.name, header.value.decode("latin-1")) for header in request.headers]
        self._headers = to_upstream(peeked.dialect, given)
        self._is_strict = call.headers.get(STRICT, b"").strip().lower() in (b"1", b"true")
        self._typed = typed
        self._read_losses = Losses(self._is_strict)
        self._ready: tuple[Candidate, Prepared] | None = None

    def deadline(self, candidate: Candidate, started: float) -> float:
        """Returns until when an attempt that begins at `started` (monotonic) must show its first event.

        A plain answer may take minutes before its first byte, and has the time of the whole request.
        """
        if not self.is_streaming:
            return self._call.start + candidate.unary_total_seconds
        return started + (candidate.thinking_seconds if self._thinks_first else candidate.first_event_seconds)

    async def prepare(self, candidate: Candidate) -> Prepared:
        """Returns what `candidate` is sent. Asked again at once, the same.

        Raises:
            Untranslatable: the request cannot be said in any dialect of this candidate.
            InvalidRequest: it is none of the client's dialect.
        """
        if self._ready is not None and self._ready[0] is candidate:
            return self._ready[1]
        work = self._relayed if candidate.is_relay else self._translated
        prepared = await beside_loop(self._peeked.body_bytes, work, candidate)
        self._ready = candidate, prepared
        return prepared

    def hub(self) -> StreamChatRequest:
        """Returns the request in the form that all translations pass through.

        Raises:
            Untranslatable, InvalidRequest: it cannot be read.
        """
        if self._typed is None:
            self._typed = translate.read_request(self._peeked.dialect, self._call.body, self._read_losses)
            if self.client is Dialect.ANTHROPIC and not self._typed.prompt_cache_key:
                # What keeps a session with its cache elsewhere; a digest, since it may name a person.
                self._typed.prompt_cache_key = self._call.cache_key()
        return self._typed

    def _relayed(self, candidate: Candidate) -> Prepared:
        peeked = self._peeked
        if self.kind in _ABOUT_STORES:
            request = self._call.request
            return Prepared(
                peeked.dialect, self._target, self._headers, self._call.body, method=request.method or "POST"
            )
        body = splice_model(self._call.body, peeked, candidate.upstream_model)
        body = without_foreign_thinking(peeked.dialect, body, candidate.provider_id, candidate.upstream_model)
        replaced: list[str] = []
        if candidate.params:
            body, replaced = self._with_params(candidate, body)
        is_gathered = self._is_gathered(candidate)
        if is_gathered:
            body, _ = with_params(body, [_STREAM])
        is_stream = peeked.is_streaming or is_gathered
        if peeked.dialect is Dialect.OPENAI_CHAT and is_stream and candidate.has_stream_options:
            body = request_include_usage(body)
        return Prepared(
            peeked.dialect,
            self._target,
            self._headers,
            body,
            replaced_fields=tuple(replaced),
            is_gathered=is_gathered,
        )

    def _is_gathered(self, candidate: Candidate) -> bool:
        is_chat = self.kind is Kind.CHAT
        return candidate.wants_streams and is_chat and not self.is_streaming

    def _with_params(self, candidate: Candidate, body: bytes) -> tuple[bytes, list[str]]:
        # A count is of what the client sends: nothing is written into it.
        wanted = [param for param in candidate.params if param.json is None or not self.counts_only]
        body, changed = with_params(body, wanted)
        losses = Losses(self._is_strict)
        for name in changed:
            losses.warn(name, "is left out or replaced for this provider")
        return body, losses.warned

    def _translated(self, candidate: Candidate) -> Prepared:
        refusal: Untranslatable | None = None
        for target in candidate.targets:
            try:
                return self._written(target, candidate)
            except Untranslatable as error:
                refusal = refusal or error
        raise refusal or Untranslatable("the provider cannot count tokens")

    def _written(self, target: Target, candidate: Candidate) -> Prepared:
        if self.counts_only and target.dialect not in _COUNT_PATHS:
            raise Untranslatable("the provider's dialect has no way to count tokens")
        losses = Losses(self._is_strict)
        hub = self.hub()
        is_gathered = self._is_gathered(candidate)
        is_streaming = self.is_streaming or is_gathered
        written = translate.write_request(hub, target, losses, is_streaming=is_streaming)
        path, body = _CHAT_PATHS[target.dialect], written.body
        if self.counts_only:
            path, body = _COUNT_PATHS[target.dialect], count_body(target.dialect, body)
        elif set_params := [param for param in candidate.params if param.json is not None]:
            # What is left out, the writer has left out and named.
            body, _ = with_params(body, set_params)
        headers = to_other_dialect(
            target.dialect,
            is_streaming=is_streaming,
            anthropic_version=target.quirks.anthropic_version,
        )
        lossy = list(dict.fromkeys([*self._read_losses.warned, *losses.warned]))
        metrics.count_losses(
            self.client, target.dialect, len(self._read_losses.silent) + len(losses.silent), len(lossy)
        )
        translation = Translation(self.client, written, self._asked(hub, target), lossy)
        return Prepared(target.dialect, path, headers, body, translation, is_gathered=is_gathered)

    def _asked(self, hub: StreamChatRequest, target: Target) -> Asked:
        peeked = self._peeked
        prefix = _ID_PREFIXES[self.client] if self.client else ""
        return Asked(
            request=hub if peeked.body_bytes <= LARGE_BYTES else _without_turns(hub),
            response_id=prefix + self._call.request_id.removeprefix("req_"),
            create_seconds=int(time.time()),
            includes_usage=peeked.asks_for_usage,
            estimated_input_tokens=peeked.estimated_input_tokens(),
            hides_reasoning=target.quirks.hides_reasoning,
            provider_id=target.provider_id,
            upstream_model=target.upstream_model,
        )


def _without_turns(hub: StreamChatRequest) -> StreamChatRequest:
    """What an answer says again of a large request: all of it would be held until the last byte is out."""
    kept = StreamChatRequest()
    for member, value in hub.ListFields():
        if member.name == "messages":
            kept.messages.extend(turn for turn in hub.messages[:1] if turn.source_path == _INSTRUCTIONS)
        elif member.is_repeated:
            getattr(kept, member.name).MergeFrom(value)
        elif member.message_type is not None:
            getattr(kept, member.name).CopyFrom(value)
        else:
            setattr(kept, member.name, value)
    return kept


def peek_typed(request: StreamChatRequest, *, is_streaming: bool) -> Peek:
    """Returns what routing needs of a typed request."""
    # What a conversation repeats, in place of the JSON of a dialect.
    instructions = [message for message in request.messages[:1] if message.role in _RULES]
    parts = {"system": instructions, "tools": request.tools}
    members = {
        name: msgspec.Raw(b"".join([part.SerializeToString() for part in found]))
        for name, found in parts.items()
    }
    return Peek(
        dialect=Dialect.ANTHROPIC,  # of no importance: nothing is ever relayed
        model=request.model,
        is_streaming=is_streaming,
        max_tokens=request.max_output_tokens or None,
        asks_for_usage=False,
        has_tools=bool(request.tools),
        user_id=request.end_user_id,
        prompt_cache_key=request.prompt_cache_key,
        previous_response_id=request.previous_response_id,
        body_bytes=request.ByteSize(),
        members=members,
        spans={},
        end=0,
        wants_thinking=request.reasoning.mode in _THINKING or bool(request.reasoning.effort),
    )


async def take_first_possible(call: Call, outgoing: Outgoing) -> None:
    """Leaves out candidates at the head of the plan that cannot be asked this.

    So a request that nobody can be asked is refused before anything is reserved for it.

    Raises:
        Untranslatable, InvalidRequest: nobody can; the reason of the first of them.
    """
    refusal: Untranslatable | InvalidRequest | None = None
    while call.plan.candidates:
        try:
            await outgoing.prepare(call.plan.candidates[0])
            return
        except (Untranslatable, InvalidRequest) as error:
            refusal = refusal or error
            call.plan.skip_first(f"cannot be asked this: {error.message}")
    if refusal is not None:
        raise refusal
