"""Asks the gateway in one dialect what a provider answers in another, and looks at both ends."""

import json
from dataclasses import dataclass
from typing import Any

from tests.conformance.requests import MODEL, A, C, R
from tests.conformance.rig import PATHS, Gateway, Provider
from tests.conformance.rig import Told as Answered
from tests.support import provider_streams as streams
from tests.support.client_streams import told, told_by_body
from tests.support.scripted_upstream import ReceivedRequest, Script, plain, stream
from tests.support.told import Told

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_dialects.dialect import Dialect

LETTERS = {A: "A", C: "C", R: "R"}


@dataclass(slots=True)
class Sent:
    """One request, and what came of it at both ends."""

    client: Dialect
    is_streaming: bool
    provider: Provider
    answered: Answered

    @property
    def status(self) -> int:
        """The status that the client saw."""
        return self.answered.status

    @property
    def body(self) -> bytes:
        """The bytes that the client got."""
        return self.answered.body

    @property
    def received(self) -> ReceivedRequest:
        """What the provider got; fails unless it was asked once, and answered."""
        assert self.status == 200, f"{self.status}: {self.body!r}"
        return self.answered.upstream

    @property
    def upstream(self) -> Any:
        """The body that the provider got."""
        assert self.received.method == "POST"
        return self.received.json()

    @property
    def upstream_bytes(self) -> bytes:
        """The same as bytes."""
        return self.received.body

    @property
    def lossy(self) -> list[str]:
        """What the client is told of losses."""
        named = self.answered.header("x-lurus-lossy")
        return [path.strip() for path in named.split(",")] if named else []

    @property
    def told(self) -> Told:
        """What the client makes of the answer; fails if that is against its grammar."""
        assert self.status == 200, f"{self.status}: {self.body!r}"
        found = (told if self.is_streaming else told_by_body)(self.client, self.body)
        found.assert_calls()
        return found

    def json(self) -> Any:
        """The answer as JSON."""
        return self.answered.json()

    async def event(self) -> UsageEvent:
        """The usage event."""
        return await self.answered.record()

    def assert_refused(self, path: str, code: str = "unsupported_parameter") -> None:
        """Fails unless the client was refused for this place, and the provider was not asked."""
        assert self.status == 400, f"{self.status}: {self.body!r}"
        assert self.answered.upstreams == [], "the provider was asked"
        error = self.json()["error"]
        assert error["type"] == "invalid_request_error"
        if self.client is A:
            assert error["message"].startswith(path), error
        else:
            assert (error["param"], error["code"]) == (path, code), error


async def ask(
    gateway: Gateway,
    client: Dialect,
    provider: Dialect | Provider,
    request: dict[str, Any] | bytes,
    *headers: str,
    answer: Script | None = None,
    **quirks: Any,
) -> Sent:
    """Sends a request and returns what came of it.

    Args:
        gateway: of the test.
        client: whose words the request is in.
        provider: what dialect this test's provider speaks, or which provider it is.
        request: `MODEL` stands for the name of the provider's model.
        headers: lines of the request.
        answer: of the provider; a short one by default.
        quirks: of the provider.
    """
    dialect = (
        next(d for d in LETTERS if LETTERS[d] == provider.dialect)
        if isinstance(provider, Provider)
        else provider
    )
    asked = provider if isinstance(provider, Provider) else await gateway.default(LETTERS[dialect], quirks)
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    body = body.replace(f'"model": "{MODEL}"'.encode(), f'"model": "{asked.model}"'.encode())
    is_streaming = json.loads(body).get("stream") is True
    asked.upstream.scripts = [answer or _short(dialect, is_streaming)]
    answered = await gateway.post(PATHS[LETTERS[client]], body, headers)
    asked.upstream.scripts = []
    return Sent(client, is_streaming, asked, answered)


def _short(dialect: Dialect, is_streaming: bool) -> Script:
    events = streams.ResponsesStream()
    if is_streaming:
        whole = {
            A: [streams.a_start(), streams.a_text(0, "ok"), streams.a_end()],
            C: [streams.c_start(), streams.c_text("ok"), streams.c_finish("stop")],
            R: [events.start(), events.text("ok"), events.end()],
        }
        return stream(whole[dialect])
    events.text("ok")
    bodies = {
        A: streams.a_body([{"type": "text", "text": "ok"}]),
        C: streams.c_body({"content": "ok"}),
        R: streams.r_body(events.items),
    }
    return plain(bodies[dialect])
