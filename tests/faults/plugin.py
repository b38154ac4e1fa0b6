"""Fixtures of the fault kit, for tests with and without an event loop of their own.

    pytest_plugins = ["tests.faults.plugin"]

The provider and the proxies live on a thread of their own and listen on free loopback ports; with
pytest-xdist every worker has its own. Nothing else of pytest is changed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .provider import FaultyProvider
from .proxy import FaultProxy
from .threads import FaultLoop, ProxyHandle


@pytest.fixture(scope="session")
def fault_loop() -> Iterator[FaultLoop]:
    """The thread that the kit's servers run on."""
    loop = FaultLoop()
    yield loop
    loop.close()


@pytest.fixture
def faulty_provider(fault_loop: FaultLoop) -> Iterator[FaultyProvider]:
    """A provider whose models misbehave as they are named. Its ledger begins empty."""
    provider = FaultyProvider()
    fault_loop.run(provider.start())
    yield provider
    fault_loop.run(provider.stop())
    assert not provider.failures, f"the faulty provider itself has failed: {provider.failures}"


@pytest.fixture
def fault_proxy(fault_loop: FaultLoop) -> Iterator[Callable[..., ProxyHandle]]:
    """Makes proxies: `fault_proxy("127.0.0.1:5432")` listens on a free port in front of that."""
    made: list[FaultProxy] = []

    def make(target: str, **settings: Any) -> ProxyHandle:
        async def start() -> FaultProxy:
            proxy = FaultProxy(target, **settings)
            await proxy.start()
            return proxy

        made.append(fault_loop.run(start()))
        return ProxyHandle(fault_loop, made[-1])

    yield make
    for proxy in made:
        fault_loop.run(proxy.stop())
