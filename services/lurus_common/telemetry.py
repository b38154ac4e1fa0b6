"""Logs, metrics and the ops port: /health, /ready, /status, /metrics."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import REGISTRY, Gauge
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from lurus_common.status import Status

# Answers why a process is not ready; an empty mapping means it is.
Readiness = Callable[[], Awaitable[dict[str, str]]]

TASKS = Gauge("lurus_tasks", "Tasks of the event loop that have not ended.")


def start_logging(level: str, process: str) -> None:
    """Logs one JSON object a line to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("nats", "aiohttp.access", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel("WARNING")


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def exposition() -> bytes:
    """Returns all metrics of this process in the OpenMetrics format."""
    return bytes(generate_latest(REGISTRY))  # type: ignore[no-untyped-call]  # the library has no types here


@asynccontextmanager
async def ops_server(
    host: str, port: int, readiness: Readiness, status: Status | None = None
) -> AsyncIterator[int]:
    """Serves the ops port; yields the port it got. Loopback unless the settings say otherwise."""
    loop = asyncio.get_running_loop()
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(_: web.Request) -> web.Response:
        problems = await readiness()
        status = {"status": "not ready", "problems": problems} if problems else {"status": "ready"}
        return web.json_response(status, status=503 if problems else 200)

    async def show_status(_: web.Request) -> web.Response:
        return web.Response(text=(status or Status("")).json(), content_type="application/json")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    app = web.Application()
    handlers = {"/health": health, "/ready": ready, "/status": show_status, "/metrics": metrics}
    app.add_routes([web.get(path, handler) for path, handler in handlers.items()])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_address=True)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
