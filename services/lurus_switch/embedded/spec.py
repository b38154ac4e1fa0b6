"""What a process is, what it is doing and what happened to it."""

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class ProcessState(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one process.

    `env` is its whole environment; None means ours. `prepare` runs before
    every start, `ready` after it, again and again until it does not raise.
    `death_signal` is what the process gets when the supervisor is killed; it
    must end the process and all below it without anybody's help. Ends with one of
    `clean_exit_codes` are reported as such; a process that ends by itself is
    started again in any case. `after` names processes that must be ready first.
    `listener` is the descriptor of a listening socket that the process inherits
    as systemd would hand it over; it stays ours.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], Awaitable[None]]
    prepare: Callable[[], Awaitable[None]] = _nothing
    env: Mapping[str, str] | None = None
    cwd: Path = Path("/")
    user: int | None = None
    group: int | None = None
    after: tuple[str, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    ready_seconds: float = 30.0
    death_signal: signal.Signals = signal.SIGKILL
    listener: int | None = None
    clean_exit_codes: frozenset[int] = field(default_factory=lambda: frozenset({0}))


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What a process is doing. `since` is when `state` began, in Unix seconds; `last_exit` is for people."""

    name: str
    pid: int | None
    state: ProcessState
    restarts: int
    since: float
    last_exit: str | None
    log_path: Path


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A process entered `state`; `message` says why, where that is not obvious."""

    name: str
    state: ProcessState
    pid: int | None
    message: str
