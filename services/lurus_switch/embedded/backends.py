"""The stores behind our services, each a child process here unless its URL is configured."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lurus_switch.embedded.clickhouse import ClickHouse
from lurus_switch.embedded.data_dir import DataDir
from lurus_switch.embedded.errors import EmbeddedError
from lurus_switch.embedded.nats import Nats
from lurus_switch.embedded.postgres import Postgres
from lurus_switch.embedded.spec import ProcessEvent, ProcessSpec
from lurus_switch.embedded.supervisor import Supervisor
from lurus_switch.embedded.valkey import Valkey

_T = TypeVar("_T")

NAMES = ("postgres", "nats", "valkey", "clickhouse")

_URL_OF = {
    "postgres": "database_url",
    "nats": "nats_url",
    "valkey": "redis_url",
    "clickhouse": "clickhouse_url",
}


@dataclass(frozen=True, slots=True)
class BackendUrls:
    """Where the stores are, with credentials; empty for one that is neither started nor configured."""

    database_url: str = ""
    nats_url: str = ""
    redis_url: str = ""
    clickhouse_url: str = ""


class EmbeddedBackends:
    """The chosen stores in one data directory.

    As a context manager it runs them under a supervisor of its own and gives
    up the data directory at the end; `lurus up` gives `specs` to its supervisor instead.

    Args:
        names: which to start, of `NAMES`; one whose URL is in `overrides` is not.
        overrides: URLs, by the field names of `BackendUrls`.
        ports, binaries: by the names in `NAMES`; of postgres, the directory of the programs.
    """

    def __init__(
        self,
        data_dir: DataDir,
        *,
        names: tuple[str, ...] = NAMES,
        overrides: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        binaries: Mapping[str, Path] | None = None,
        on_event: Callable[[ProcessEvent], None] | None = None,
    ) -> None:
        given, ports, binaries = (
            {k: v for k, v in (overrides or {}).items() if v},
            ports or {},
            binaries or {},
        )
        unknown = {*names, *ports, *binaries}.difference(NAMES) | given.keys() - {
            f.name for f in fields(BackendUrls)
        }
        if unknown:
            raise EmbeddedError(f"unknown backends: {', '.join(sorted(unknown))}")
        self.data_dir = data_dir
        self.supervisor = Supervisor(data_dir.logs, data_dir.run, *([on_event] if on_event else []))
        started = [name for name in NAMES if name in names and _URL_OF[name] not in given]
        self._backends = {
            name: _make(name, data_dir, ports.get(name), binaries.get(name)) for name in started
        }
        own = {_URL_OF[name]: backend.url for name, backend in self._backends.items()}
        self.urls = BackendUrls(**{**own, **given})

    def specs(self) -> list[ProcessSpec]:
        """Returns how to run those that are not overridden; they do not depend on each other."""
        return [backend.spec() for backend in self._backends.values()]

    async def __aenter__(self) -> Self:
        try:
            await self.supervisor.start(self.specs())
        except BaseException:
            self.data_dir.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.supervisor.stop()
        finally:
            self.data_dir.close()

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, path: Path | str, names: tuple[str, ...] = NAMES, overrides: Mapping[str, str] | None = None
    ) -> Iterator[Self]:
        """Runs the stores for callers without an event loop, such as a fixture of a whole test session.

        A thread supervises them; of the supervisor, `status`, `status_of`, `signal`, `wait_ready` and
        `restart` may be used meanwhile.
        """
        backends = cls(DataDir(path), names=names, overrides=overrides)
        loop_thread = _LoopThread()
        try:
            loop_thread.run(backends.__aenter__())
            try:
                yield backends
            finally:
                loop_thread.run(backends.__aexit__(None, None, None))
        finally:
            loop_thread.close()


class _LoopThread:
    """An event loop in a thread, which is the parent of what is started on it and so has to live on."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded backends")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` on the loop; if the caller is interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the loop after everything on it has ended."""
        asyncio.run_coroutine_threadsafe(_finish_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _finish_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _make(
    name: str, data_dir: DataDir, port: int | None, binary: Path | None
) -> Postgres | Nats | Valkey | ClickHouse:
    if name == "postgres":
        return Postgres(data_dir, port=port, bin_directory=binary)
    if name == "nats":
        return Nats(data_dir, port=port, binary=binary)
    if name == "valkey":
        return Valkey(data_dir, port=port, binary=binary)
    return ClickHouse(data_dir, port=port)
