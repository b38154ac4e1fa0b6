"""A provider on a real socket that speaks the three dialects strictly and answers by script.

It keeps no state between requests: the upstream model's name, `<scenario>/<run>`,
says what it answers, and whether results of tools have come says which turn it
is. What a request must not be is answered with 400 and kept in `records`, as is
all the rest.

    with ScriptedProvider() as provider:
        ...  # let a gateway call provider.url
        provider.records[("A", "tools/some-client")]
"""

import asyncio
import json
import threading
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from tests.sdk_matrix import anthropic_rules, chat_rules, facts, responses_rules
from tests.sdk_matrix.answers import ENCRYPTED, SIGNATURE, Answer, Call, body, pieces
from tests.sdk_matrix.clients import CLIENTS
from tests.sdk_matrix.view import View

SECRET = "secret-of-the-scripted-provider"
MAX_BODY_BYTES = 4 * 1024 * 1024
START_SECONDS = 10.0
# The scenarios that fail before they answer.
STATUSES = {"error400": 400, "error401": 401, "error429": 429}
_DIALECTS = {"/v1/messages": "A", "/v1/chat/completions": "C", "/v1/responses": "R"}
_CALLS = {
    "get_weather": Call(1, "get_weather", facts.WEATHER_ARGUMENTS),
    "get_time": Call(2, "get_time", facts.TIME_ARGUMENTS),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A request as it came, and what was understood of it."""

    body: dict[str, Any]
    headers: dict[str, str]
    view: View


class ScriptedProvider:
    """The server, in a thread of its own while the context is entered."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[Record]] = defaultdict(list)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-provider")

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(START_SECONDS), "the scripted provider does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        for path in _DIALECTS:
            app.router.add_post(path, self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = int(runner.addresses[0][1])
        self._is_up.set()
        await self._stopping.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        dialect = _DIALECTS[request.path]
        sent = json.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        model = str(sent.get("model"))
        scenario, _, client = model.partition("/")
        is_relayed = dialect == CLIENTS[client].dialect
        view = read(dialect, sent, headers, is_relayed=is_relayed)
        self.records[dialect, model].append(Record(sent, headers, view))
        if view.problems:
            return _refusal(dialect, 400, "strict: " + "; ".join(view.problems))
        if scenario in STATUSES:
            return _refusal(dialect, STATUSES[scenario], facts.BAD_REQUEST)
        answer = answer_of(scenario, view)
        if not view.is_streaming:
            return _plain(dialect, answer)
        chunks = pieces(dialect, answer, has_usage=view.has_usage, interleaves=not is_relayed)
        return await _stream(request, chunks, is_cut=answer.fault == "cut")


def read(dialect: str, sent: dict[str, Any], headers: dict[str, str], *, is_relayed: bool) -> View:
    """Returns what a request says, with all that is wrong with it."""
    if dialect == "A":
        view = anthropic_rules.read(sent, headers, frozenset({SIGNATURE}))
    elif dialect == "C":
        view = chat_rules.read(sent, is_relayed=is_relayed)
    else:
        view = responses_rules.read(sent, frozenset({ENCRYPTED}), is_relayed=is_relayed)
    presented = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    view.need(presented == SECRET, "the credential is not the provider's")
    view.need("x-lurus-strict" not in headers, "a header of the gateway")
    return view


def answer_of(scenario: str, view: View) -> Answer:
    """Returns what is said in this turn."""
    has_results = bool(view.results)
    final = Answer((*facts.FINAL, *(text for _, text in view.results)))
    match scenario:
        case "tools" | "tools_streamed":
            return final if has_results else Answer(facts.BEFORE_CALL, calls=(_CALLS["get_weather"],))
        case "parallel" | "parallel_streamed":
            return final if has_results else Answer(calls=tuple(_CALLS.values()))
        case "thinking" | "thinking_streamed":
            return final if has_results else Answer((), facts.THINKING, (_CALLS["get_weather"],))
        case "schema":
            return Answer((json.dumps(facts.STRUCTURED, ensure_ascii=False),))
        case "length":
            return Answer(facts.TEXT, is_cut_short=True)
        case "broken":
            return Answer(facts.TEXT, fault="error")
        case "cut":
            return Answer(facts.TEXT, fault="cut")
        case _:
            return Answer(facts.TEXT)


def _plain(dialect: str, answer: Answer) -> web.Response:
    return web.json_response(body(dialect, answer), headers=_ids())


async def _stream(request: web.Request, chunks: list[bytes], *, is_cut: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **_ids()})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
        await asyncio.sleep(0)
    if is_cut and request.transport is not None:
        request.transport.close()
    return response


def _refusal(dialect: str, status: int, message: str) -> web.Response:
    headers = {**_ids(), **({"retry-after": str(facts.THROTTLE_SECONDS)} if status == 429 else {})}
    if dialect == "A":
        kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
        sent = {"type": "error", "error": {"type": kinds[status], "message": message}}
        return web.json_response(sent, status=status, headers=headers)
    codes = {400: None, 401: "invalid_api_key", 429: "rate_limit_exceeded"}
    kind = "requests" if status == 429 else "invalid_request_error"
    found = {"message": message, "type": kind, "param": None, "code": codes[status]}
    return web.json_response({"error": found}, status=status, headers=headers)


def _ids() -> dict[str, str]:
    return {"request-id": "req_upstream", "x-request-id": "req_upstream"}
