"""A provider in three dialects whose models fail as they are named; it keeps a ledger of what it has served.

    async with FaultyProvider() as provider:
        ...  # POST provider.url + "/v1/messages" with the model "fault-cut-3"
        assert provider.calls[-1].sent_text == "w0 w1 w2 "

Over HTTP: `GET /` lists the models, `GET /ledger` returns the calls, `DELETE /ledger` forgets them.
"""

import json
import socket
from collections import Counter
from typing import Any

from .answers import ANTHROPIC, INPUT_TOKENS, error_body
from .behaviours import BEHAVIOURS, UnknownBehaviour, parse, run
from .calls import Call, ServedCall, dialect_of, now
from .scripted import Exchange, ScriptedUpstream

MAX_CALLS = 100_000


class FaultyProvider(ScriptedUpstream):
    """The provider. `scripts` of a test come first, one a request; then the model's name decides."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        # The ledger, in order of arrival; the oldest are forgotten.
        self.calls: list[ServedCall] = []
        # How often somebody has followed a redirect of the behaviour `redirect`.
        self.redirected_count = 0
        self._count_of_model: Counter[str] = Counter()
        self._number = 0
        self._refusing = socket.socket()

    @property
    def refused_url(self) -> str:
        """A base URL whose connections are refused: its port is taken, and nobody listens."""
        return f"http://127.0.0.1:{self._refusing.getsockname()[1]}"

    async def start(self) -> None:
        """Listens, on the port of the last time if there was one."""
        await super().start()
        if self._refusing.fileno() < 0:
            self._refusing = socket.socket()
        if not self._refusing.getsockname()[1]:
            self._refusing.bind(("127.0.0.1", 0))

    async def stop(self) -> None:
        """Refuses new connections and breaks the open ones."""
        await super().stop()
        self._refusing.close()

    def of_model(self, model: str) -> list[ServedCall]:
        """Returns the calls of a model."""
        return [entry for entry in self.calls if entry.model == model]

    def of_answer(self, answer_id: str) -> ServedCall:
        """Returns the call whose answer has this id, with or without the dialect's prefix.

        Raises:
            KeyError: there is none.
        """
        for entry in self.calls:
            if answer_id.endswith(entry.answer_id):
                return entry
        raise KeyError(answer_id)

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        dialect = dialect_of(request.target)
        if request.method != "POST" or dialect is None:
            await self._answer_other(exchange)
            return
        asked = _object(request.body)
        model = str(asked.get("model", ""))
        try:
            name, numbers = parse(model)
        except UnknownBehaviour:
            await _send_json(exchange, 400, {**error_body(dialect, 400), "known": sorted(BEHAVIOURS)})
            return
        call = self._begin(exchange, dialect, model, name, asked)
        entry = call.entry
        try:
            await run(call, name, numbers)
        finally:
            entry.ended = now()
            entry.is_peer_gone = request.gone_at is not None and not entry.is_complete

    def _begin(
        self, exchange: Exchange, dialect: str, model: str, behaviour: str, asked: dict[str, Any]
    ) -> Call:
        self._number += 1
        self._count_of_model[model] += 1
        entry = ServedCall(
            number=self._number,
            answer_id=f"fault{self.port}x{self._number}",
            dialect=dialect,
            model=model,
            behaviour=behaviour,
            is_streaming=asked.get("stream") is True,
            asked=asked,
            arrived=now(),
        )
        self.calls.append(entry)
        del self.calls[:-MAX_CALLS]
        return Call(exchange, entry, self.url, self._count_of_model[model])

    async def _answer_other(self, exchange: Exchange) -> None:
        request = exchange.request
        path = request.target.partition("?")[0]
        if path.endswith("/redirected"):
            self.redirected_count += 1
            await _send_json(exchange, 200, {})
        elif path.endswith("/messages/count_tokens"):
            await _send_json(exchange, 200, {"input_tokens": INPUT_TOKENS})
        elif path == "/ledger":
            found = [entry.as_json() for entry in self.calls]
            if request.method == "DELETE":
                self.calls.clear()
            await _send_json(exchange, 200, {"calls": found})
        elif path in ("/", "/v1/models"):
            await _send_json(exchange, 200, catalogue() if path == "/" else _models())
        else:
            await _send_json(exchange, 404, error_body(ANTHROPIC, 404))


def catalogue() -> dict[str, Any]:
    """Returns all behaviours with what they do and their numbers."""
    return {
        f"fault-{name}": {"about": found.about, "numbers": dict(found.numbers)}
        for name, found in sorted(BEHAVIOURS.items())
    }


def _models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in catalogue()]}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _send_json(exchange: Exchange, status: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    named = {"content-type": "application/json", "content-length": str(len(data))}
    await exchange.send_head(status, named)
    await exchange.send(data)
