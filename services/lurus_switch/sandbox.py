"""The sandbox provider: a local upstream in three dialects that needs no vendor.

It is no model and says so in every answer. It exists so that the first request
works on a machine without internet or keys, and so that tests have a provider
whose answers, token counts and failures they can predict. Any non-empty key is
accepted. `GET /` lists what follows as JSON.

Models:
    sandbox-text, sandbox-echo: a few words that quote the last user text,
        streamed word by word.
    sandbox-tools: calls a tool if the request offers one (`exec_command`,
        `shell` or `Bash` with a harmless command, else the first one, with
        arguments made from its schema); after the tool's result, quotes it.
    sandbox-thinking: thinking with a signature, then text.
    sandbox-slow-<ms>: waits before the answer begins.
    sandbox-error-<status>: fails with this HTTP status, 400 to 599.
    sandbox-bad-credential: fails with 401. sandbox-throttle: 429, retry-after 2.
    sandbox-cut-<n>: drops the connection after n content events.
    sandbox-stall-<n>: falls silent after n content events.
    sandbox-garbage: not JSON, under status 200.
    sandbox-no-usage: states no usage (Anthropic's SDK cannot read such a stream).
    sandbox-long-<n>: n pieces of text as fast as they go.
    any other name: like sandbox-tools if tools are offered and the name
        contains "tools" or the last user text asks for one, else sandbox-text.

Tokens: each of `tools`, `system` or `instructions`, and every message counts a
quarter of the bytes of its compact JSON, rounded up; the output a quarter of
the bytes of its thinking, text, tool name and arguments. The last message is
always fresh input. Of what stands before it, the part that this process has
seen at the start of a prompt of the same key and model is a cache read, the
rest a cache write.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import HttpError, dialect_of_path, http_error
from lurus_switch import sandbox_wire
from lurus_switch.sandbox_request import BadRequest, Turn, input_tokens, read
from lurus_switch.sandbox_script import Behaviour, PromptCache, Script, behaviour_of, write

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_LIVE_ANSWERS = 2000
MAX_STALL_SECONDS = 600.0
WORD_DELAY_SECONDS = 0.015
THROTTLE_SECONDS = 2
SHUTDOWN_SECONDS = 1.0
EVENTS_BETWEEN_YIELDS = 50

MODELS: Final = {
    "sandbox-text": "a few words that quote the last user text",
    "sandbox-echo": "the same",
    "sandbox-tools": "calls an offered tool, then quotes its result",
    "sandbox-thinking": "thinking, then text",
    "sandbox-no-usage": "an answer without usage",
    "sandbox-slow-1000": "waits 1,000 ms before the answer begins; any number",
    "sandbox-error-500": "fails with this HTTP status; 400 to 599",
    "sandbox-bad-credential": "fails with 401",
    "sandbox-throttle": "fails with 429 and retry-after",
    "sandbox-cut-3": "drops the connection after 3 content events; any number",
    "sandbox-stall-3": "falls silent after 3 content events; any number",
    "sandbox-garbage": "not JSON, under status 200",
    "sandbox-long-1000": "1,000 pieces of text as fast as they go; any number",
}
_CREATED: Final = 1_760_000_000
_DIALECTS: Final = {
    "/v1/messages": Dialect.ANTHROPIC,
    "/v1/chat/completions": Dialect.OPENAI_CHAT,
    "/v1/responses": Dialect.OPENAI_RESPONSES,
}
_ANTHROPIC_ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_CODES: Final = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(word_delay_seconds: float = WORD_DELAY_SECONDS) -> web.Application:
    """Returns the sandbox as an application of its own state.

    Run it with `handler_cancellation=True`, so that an answer ends as soon as
    its client is gone.
    """
    sandbox = _Sandbox(word_delay_seconds)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_report_errors])
    for path in _DIALECTS:
        app.router.add_post(path, sandbox.answer)
    app.router.add_post("/v1/messages/count_tokens", sandbox.count_tokens)
    app.router.add_get("/v1/models", sandbox.list_models)
    app.router.add_get("/health", sandbox.health)
    app.router.add_get("/", sandbox.describe)
    return app


@contextlib.asynccontextmanager
async def running(host: str, port: int, word_delay_seconds: float = WORD_DELAY_SECONDS) -> AsyncIterator[int]:
    """Serves the sandbox for as long as the context is entered, and yields its port (0 finds a free one)."""
    runner = web.AppRunner(
        make_app(word_delay_seconds),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def serve(host: str, port: int, stop_event: asyncio.Event) -> None:
    """Serves the sandbox until `stop_event` is set."""
    async with running(host, port) as bound_port:
        _log.info("the sandbox provider serves http://%s:%d", host, bound_port)
        await stop_event.wait()


class _Sandbox:
    """The handlers, and what they remember between requests."""

    def __init__(self, word_delay_seconds: float) -> None:
        self._word_delay_seconds = word_delay_seconds
        self._cache = PromptCache()
        self._live_count = 0
        self._served_count = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answers a chat request of any dialect."""
        key = _key(request)
        turn = read(_DIALECTS[request.path], await _json(request))
        behaviour = behaviour_of(turn)
        if self._live_count >= MAX_LIVE_ANSWERS:
            return _vendor_error(turn.dialect, 529 if turn.dialect is Dialect.ANTHROPIC else 503)
        self._live_count += 1
        self._served_count += 1
        try:
            await asyncio.sleep(behaviour.slow_seconds)
            if behaviour.error_status:
                return _vendor_error(turn.dialect, behaviour.error_status)
            script = write(turn, behaviour, self._cache.usage(f"{key}\n{turn.model}", turn.prompt))
            if turn.is_streaming:
                return await self._stream(request, turn, behaviour, script)
            return await _plain(request, turn, behaviour, script)
        finally:
            self._live_count -= 1

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        """Counts a prompt by the rule of the module."""
        _key(request)
        return web.json_response({"input_tokens": input_tokens(Dialect.ANTHROPIC, await _json(request))})

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """Lists the models in the shape that the headers ask for."""
        _key(request)
        if "anthropic-version" in request.headers:
            return web.json_response(_anthropic_models())
        models = [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "lurus-sandbox"}
            for name in MODELS
        ]
        return web.json_response({"object": "list", "data": models})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Tells that the sandbox is alive and how many answers it is giving."""
        counts = {"live_answer_count": self._live_count, "served_answer_count": self._served_count}
        return web.json_response({"status": "ok", **counts})

    async def describe(self, request: web.Request) -> web.StreamResponse:
        """Tells what this is."""
        about = "The Lurus Switch sandbox provider. It is no model: its answers are fixed words."
        return web.json_response(
            {
                "name": "lurus-sandbox",
                "about": about,
                "models": MODELS,
                "details": (__doc__ or "").splitlines(),
            }
        )

    async def _stream(
        self, request: web.Request, turn: Turn, behaviour: Behaviour, script: Script
    ) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        response = web.StreamResponse(headers={**headers, **_request_id()})
        await response.prepare(request)
        if behaviour.is_garbage:
            await response.write(b'event: sandbox\ndata: {"garbage":\n\ndata: <html>\n\n')
            return response
        delay_seconds = 0.0 if behaviour.chunk_count is not None else self._word_delay_seconds
        content_count = 0
        for event_count, (event, is_content) in enumerate(
            sandbox_wire.stream(turn, script, behaviour.states_usage)
        ):
            if is_content and await _fails_now(request, behaviour, content_count):
                return response
            content_count += is_content
            await response.write(event)
            if is_content and (delay_seconds or event_count % EVENTS_BETWEEN_YIELDS == 0):
                await asyncio.sleep(delay_seconds)
        return response


async def _fails_now(request: web.Request, behaviour: Behaviour, content_count: int) -> bool:
    """Cuts or stalls the stream if `content_count` events were to come before that."""
    if content_count == behaviour.stall_after:
        await asyncio.sleep(MAX_STALL_SECONDS)
        return True
    if content_count == behaviour.cut_after:
        _drop(request)
        return True
    return False


async def _plain(
    request: web.Request, turn: Turn, behaviour: Behaviour, script: Script
) -> web.StreamResponse:
    if behaviour.is_garbage:
        return web.Response(text="<html>the sandbox's garbage</html>", content_type="text/html")
    if behaviour.stall_after is not None:
        await asyncio.sleep(MAX_STALL_SECONDS)
    body = sandbox_wire.encode(sandbox_wire.body(turn, script, behaviour.states_usage))
    if behaviour.cut_after is None:
        return web.Response(body=body, content_type="application/json", headers=_request_id())
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    _drop(request)
    return response


def _drop(request: web.Request) -> None:
    """Closes the connection without the end of the message."""
    if request.transport is not None:
        request.transport.close()


def _key(request: web.Request) -> str:
    """Returns the presented key.

    Raises:
        web.HTTPUnauthorized: there is none.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    key = request.headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    if not key:
        raise web.HTTPUnauthorized
    return key


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise BadRequest("body", "is not valid JSON") from None


@web.middleware
async def _report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives every refusal the shape of the dialect that the path implies."""
    try:
        return await handler(request)
    except BadRequest as error:
        return _refusal(request, "INVALID_REQUEST", str(error), {"param": error.param})
    except web.HTTPUnauthorized:
        return _refusal(request, "KEY_INVALID", "the sandbox takes any key, but not none", {})
    except web.HTTPMethodNotAllowed as error:
        return _refusal(
            request, "METHOD_NOT_ALLOWED", "no such method", {"allow": ", ".join(error.allowed_methods)}
        )
    except web.HTTPRequestEntityTooLarge:
        return _refusal(request, "REQUEST_TOO_LARGE", "the body is too large", {})
    except web.HTTPNotFound:
        return _refusal(request, "PATH_NOT_FOUND", "the sandbox has no such path", {})


def _refusal(request: web.Request, reason: str, message: str, metadata: dict[str, str]) -> web.Response:
    dialect = dialect_of_path(request.path, request.headers.items())
    return _response(http_error(dialect, reason, message, metadata, _request_id()["request-id"]))


def _response(error: HttpError) -> web.Response:
    response = web.Response(status=error.status, body=error.body)
    for name, value in error.headers:
        response.headers[name] = value
    return response


def _vendor_error(dialect: Dialect, status: int) -> web.Response:
    """Returns a failure as a vendor would report it."""
    message = f"the Lurus Switch sandbox was asked to fail with {status}"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": None, "code": _OPENAI_CODES.get(status)}
    }
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": message}}
    retry = {"retry-after": str(THROTTLE_SECONDS)} if status == 429 else {}
    return web.json_response(body, status=status, headers={**_request_id(), **retry})


def _request_id() -> dict[str, str]:
    value = f"req_sandbox_{uuid.uuid4().hex[:20]}"
    return {"request-id": value, "x-request-id": value}


def _anthropic_models() -> dict[str, Any]:
    models = [
        {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "2025-10-09T08:53:20Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
            "capabilities": None,
        }
        for name in MODELS
    ]
    return {"data": models, "first_id": models[0]["id"], "last_id": models[-1]["id"], "has_more": False}


async def _main(host: str, port: int) -> None:
    stop_event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop_event.set)
    await serve(host, port, stop_event)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serves the Lurus Switch sandbox provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18199)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(_main(arguments.host, arguments.port))
