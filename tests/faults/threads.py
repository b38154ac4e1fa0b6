"""Runs the kit's servers on a thread of their own, for tests that have no event loop, or another one."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .proxy import FaultProxy

CALL_SECONDS = 30.0
Result = TypeVar("Result")


class FaultLoop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-kit", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine there, waits for it and returns its result."""
        found: Future[Result] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return found.result(CALL_SECONDS)

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()


class ProxyHandle:
    """A running proxy, switched from any thread. Reads go to the proxy itself."""

    def __init__(self, loop: FaultLoop, proxy: FaultProxy) -> None:
        self._loop = loop
        self.proxy = proxy

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT."""
        return self.proxy.address

    @property
    def url(self) -> str:
        """Where it listens, as a base URL."""
        return self.proxy.url

    def change(self, **faults: Any) -> None:
        """Does as `FaultProxy.change`."""
        self._loop.run(self.proxy.change(**faults))

    def heal(self) -> None:
        """Takes all faults away."""
        self._loop.run(self.proxy.heal())

    def cut(self) -> None:
        """Breaks the connections that are open now."""
        self._loop.run(self.proxy.cut())
