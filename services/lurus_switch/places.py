"""Where a mesh lives: its data directory, and the file that tells other commands about a running one."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lurus_common.settings import Settings, SettingsError, read_settings
from lurus_switch.embedded.data_dir import write_private
from lurus_switch.embedded.identity import start_time
from lurus_switch.failures import UNREACHABLE, USAGE, CommandFailed

RUN_FILE = "run.json"
FIRST_KEY_FILE = "first-key"
ADMIN_TOKEN = "admin-token"  # noqa: S105  (the name of a file)
AREAS = ("routing", "provider", "log", "billing")


class ProcessRow(msgspec.Struct, kw_only=True):
    """What a process of the mesh is doing."""

    name: str
    state: str
    pid: int | None = None
    restarts: int = 0
    since: float = 0.0
    last_exit: str | None = None
    log_path: str = ""


class ReloadStep(msgspec.Struct, kw_only=True):
    """One worker of a reload: `waiting`, `starting`, `draining` (the old one), `done` or `failed`."""

    process: str
    state: str = "waiting"
    old_pid: int | None = None
    new_pid: int | None = None
    # From the start of the new one: until it was ready, and until the old one had ended.
    ready_seconds: float | None = None
    drained_seconds: float | None = None


class ReloadRow(msgspec.Struct, kw_only=True):
    """A rolling restart of the gateway's workers."""

    # Counts those of this run of the mesh, from 1.
    number: int
    start_time: float
    end_time: float | None = None
    # Why it stopped before its end; empty if it did not.
    problem: str = ""
    steps: list[ReloadStep] = []


class RunFile(msgspec.Struct, kw_only=True):
    """A running mesh, as `lurus up` describes it. Addresses are HOST:PORT, times Unix seconds."""

    version: str
    pid: int
    # Tells a live supervisor from another process that got its pid.
    pid_start: str
    start_time: float
    # By area, and `edge` and `sandbox`.
    addresses: dict[str, str]
    # Ops ports by process.
    ops: dict[str, str]
    # Stores by name.
    stores: dict[str, str]
    processes: list[ProcessRow] = []
    # The last one, or the one under way.
    reload: ReloadRow | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return start_time(self.pid) == self.pid_start


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Returns the nearest data directory: $LURUS_DATA_DIR, else ./.lurus if there is one, else ~/.lurus."""
    if named := environment.get("LURUS_DATA_DIR"):
        return Path(named)
    here = Path.cwd() / ".lurus"
    return here if here.is_dir() else Path.home() / ".lurus"


def read_run_file(data_dir: Path) -> RunFile | None:
    """Returns what runs in a data directory, or None if nothing does or it cannot be read."""
    try:
        return msgspec.json.decode((data_dir / RUN_FILE).read_bytes(), type=RunFile)
    except (OSError, msgspec.MsgspecError):
        return None


def write_run_file(data_dir: Path, run: RunFile) -> None:
    """Replaces the description of what runs in a data directory; readable by us alone."""
    write_private(
        data_dir / RUN_FILE, msgspec.json.format(msgspec.json.encode(run), indent=1).decode() + "\n"
    )


class Place:
    """What a command knows about the mesh that it speaks to.

    A setting in the environment counts first, then the running mesh in the data
    directory, then the default.
    """

    def __init__(self, data_dir: Path | None, environment: Mapping[str, str]) -> None:
        try:
            self.settings: Settings = read_settings(environment)
        except SettingsError as error:
            raise CommandFailed(str(error), exit_code=USAGE) from None
        self.data_dir = data_dir or default_data_dir(environment)
        self.run = read_run_file(self.data_dir)
        self._environment = environment

    @classmethod
    def here(cls, data_dir: Path | None) -> "Place":
        """Returns the place that the process's own environment and directory mean."""
        return cls(data_dir, os.environ)

    @property
    def is_here(self) -> bool:
        """Whether a mesh has ever run in the data directory."""
        return (self.data_dir / "secrets" / ADMIN_TOKEN).exists()

    def address(self, area: str) -> str:
        """Returns HOST:PORT of a service."""
        name = f"{area}_address"
        if self.run and f"LURUS_{name.upper()}" not in self._environment:
            return self.run.addresses[area]
        return str(getattr(self.settings, name))

    def admin_token(self) -> str:
        """Returns the operator's token.

        Raises:
            CommandFailed: if there is none.
        """
        if self.settings.admin_token:
            return self.settings.admin_token
        try:
            return (self.data_dir / "secrets" / ADMIN_TOKEN).read_text().strip()
        except OSError:
            raise CommandFailed(
                f"no mesh is known in {self.data_dir}",
                remedy="Start one with `lurus up`, name another directory with --data-dir,\n"
                "or set LURUS_ADMIN_TOKEN and the addresses, e.g. LURUS_BILLING_ADDRESS=HOST:PORT.",
                exit_code=UNREACHABLE,
            ) from None

    def base_url(self) -> str:
        """Returns what clients of the HTTP APIs use, without `/v1`."""
        if url := self._environment.get("LURUS_BASE_URL"):
            return url.rstrip("/")
        if self.run:
            return f"http://{self.run.addresses['edge']}"
        return f"http://{self.settings.host}:{self.settings.edge_port}"

    def api_key(self, given: str | None = None) -> str:
        """Returns the key given, else $LURUS_API_KEY, else the first key of the mesh.

        Raises:
            CommandFailed: if there is none.
        """
        if key := given or self._environment.get("LURUS_API_KEY"):
            return key
        try:
            return (self.data_dir / FIRST_KEY_FILE).read_text().strip()
        except OSError:
            raise CommandFailed(
                "no API key is known",
                remedy="Set LURUS_API_KEY, or make one with `lurus key create`.",
                exit_code=USAGE,
            ) from None
