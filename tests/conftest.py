"""Fixtures that every package's tests share: the real stores, started once for the whole run."""

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from lurus_switch.embedded import EmbeddedBackends, data_dir
from tests.conformance import table as conformance_table
from tests.sdk_matrix import table as matrix_table
from tests.support import ports, rows

# Their files take longest, as each starts a mesh. Begun last, one of them would keep a whole run waiting.
_LONG = ("end_to_end", "chaos", "sdk_matrix", "fault_matrix", "switch", "conformance")
_FRESH_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}", re.IGNORECASE)


def pytest_configure() -> None:
    """Gives this process ports of its own, and lets events pass that come for a loop which has ended.

    grpc.aio keeps one queue of events for all loops of a process. What comes late for a loop of an
    earlier test is handed to it by the loop of another one, which would fail of its refusal.
    """
    own = ports.of_stores()
    data_dir.LOWEST_PORT, data_dir.HIGHEST_PORT = own[0], own[-1]
    for kind in (asyncio.BaseEventLoop, uvloop.Loop):
        kind.call_soon_threadsafe = _unless_closed(kind.call_soon_threadsafe)  # type: ignore[method-assign]


def _unless_closed(call_soon_threadsafe: Callable[..., Any]) -> Callable[..., Any]:
    def call(loop: Any, *arguments: Any, **named: Any) -> Any:
        return None if loop.is_closed() else call_soon_threadsafe(loop, *arguments, **named)

    return call


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the tables of a run; here, so that the process that collects all results does it, too."""
    conformance_table.print_table(terminalreporter)
    matrix_table.print_table(terminalreporter)
    rows.print_tables(terminalreporter)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take long first; notes which rows of the matrices a test stands for."""
    items.sort(key=lambda item: item.path.parent.name not in _LONG)
    rows.note_rows(items)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a case after its argument if its value holds a fresh id, so that all processes find one name."""
    return argname if isinstance(val, str) and _FRESH_ID.search(val) else None


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """PostgreSQL, NATS, Valkey and ClickHouse, with `.urls`. Shared: a test makes its own database."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("backends")) as running:
        yield running
