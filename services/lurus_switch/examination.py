"""What `lurus doctor` looks at, and what it advises. No check changes anything."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from lurus_common.settings import PREFIX, SECRET_SETTINGS, Settings, SettingsError, read_settings
from lurus_switch.embedded import NAMES, DataDir, EmbeddedBackends, EmbeddedError
from lurus_switch.embedded.data_dir import port_is_free
from lurus_switch.failures import CommandFailed
from lurus_switch.mesh_plan import SERVICE_NAMES
from lurus_switch.places import Place, default_data_dir

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 2 * 1024**3
MIN_MEMORY_BYTES = 1024**3
SECRETS = frozenset({"admin_token", "key_pepper", "credential_key"})
URLS = frozenset({"database_url", "nats_url", "redis_url", "clickhouse_url"})


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do; empty if nothing."""

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """It works, and somebody should know."""
    return Finding(Verdict.WARNING, subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(Verdict.PROBLEM, subject, text, remedy)


def local_findings(data_dir: Path | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Looks at what can be seen without a running mesh: Python, programs, settings, directory, ports."""
    yield _python()
    yield from _settings(environment)
    yield from _programs(environment)
    directory = data_dir or default_data_dir(environment)
    yield from _directory(directory)
    yield _memory()
    try:
        place = Place(data_dir, environment)
    except CommandFailed:  # the settings have been reported above
        return
    if place.run is not None and place.run.is_alive:
        yield ok("mesh", f"runs as process {place.run.pid} on {place.base_url()}")
        return
    if place.run is not None:
        yield warning("mesh", f"process {place.run.pid} was killed", "Start it again with `lurus up`.")
    yield from _ports(place.settings)


def _python() -> Finding:
    shown = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        return problem("python", shown, "Install Python 3.11 or newer: make PYTHON=python3.12 up")
    return ok("python", f"{shown} in {sys.prefix}")


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        settings = read_settings(environment)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield problem("settings", line, "`lurus doctor --settings` lists all settings.")
        return
    count = sum(name.startswith(PREFIX) for name in environment)
    yield ok("settings", f"profile {settings.profile}, {count} from the environment")
    if settings.profile == "prod":
        try:
            settings.require(*SECRETS)
        except SettingsError as error:
            yield problem("settings", str(error), "Set it in the environment of every process.")


_PROGRAMS = {
    "postgres": "postgres",
    "nats": "nats-server",
    "valkey": "-server",
    "clickhouse": "lurus_switch.embedded.clickhouse",
}


def _programs(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Looks for each store's program as `lurus up` would; one whose URL is set needs none."""
    urls = {"postgres": "DATABASE", "nats": "NATS", "valkey": "REDIS", "clickhouse": "CLICKHOUSE"}
    with tempfile.TemporaryDirectory() as path, DataDir(path) as scratch:
        for name in NAMES:
            setting = f"{PREFIX}{urls[name]}_URL"
            if environment.get(setting):
                yield ok(f"program {name}", f"not needed: {setting} is set")
                continue
            try:
                argv = EmbeddedBackends(scratch, names=(name,)).specs()[0].argv
                yield ok(f"program {name}", next(word for word in argv if _PROGRAMS[name] in Path(word).name))
            except EmbeddedError as error:
                text, _, remedy = str(error).partition("; ")
                yield problem(f"program {name}", text, remedy or f"Set {setting} to one that runs elsewhere.")


def _directory(directory: Path) -> Iterator[Finding]:
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "Choose another one with --data-dir, or change its owner."
        yield problem("data directory", f"{existing} is not ours to write", remedy)
        return
    yield ok("data directory", f"{directory}{'' if directory.exists() else ' (not there yet)'}")
    free = shutil.disk_usage(existing).free
    shown = f"{free / 1024**3:.1f} GiB free at {existing}"
    if free < MIN_FREE_BYTES:
        yield warning("disk", shown, "Make room: the stores need 2 GiB to work well.")
    else:
        yield ok("disk", shown)
    if directory.exists() and directory.stat().st_mode & 0o006:
        yield warning("data directory", "others can list it", f"chmod 700 {directory}")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return ok("memory", "not known on this system")
    shown = f"{available / 1024**3:.1f} GiB available"
    if available < MIN_MEMORY_BYTES:
        return warning("memory", shown, "The mesh takes about half a GiB at rest, more under load.")
    return ok("memory", shown)


def _ports(settings: Settings) -> Iterator[Finding]:
    taken = []
    for name in SERVICE_NAMES:
        port = getattr(settings, f"{name}_port")
        if port and not port_is_free(port):
            taken.append(f"{port} ({name})")
    if taken:
        remedy = "`lurus up --port 18200` or `--port auto` uses others; `ss -ltnp` shows who has them."
        yield problem("ports", f"in use: {', '.join(taken)}", remedy)
    else:
        yield ok("ports", f"{settings.edge_port} and the other {len(SERVICE_NAMES) - 1} are free")
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:
        yield warning("names", "`localhost` has no address", "Add `127.0.0.1 localhost` to /etc/hosts.")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, for people."""

    name: str
    value: str
    default: str
    is_set: bool


def all_settings(environment: Mapping[str, str]) -> list[Setting]:
    """Returns every setting with its value and default; secrets and credentials in URLs are not shown."""
    found = []
    for entry in msgspec.structs.fields(Settings):
        name = f"{PREFIX}{entry.name.upper()}"
        given = environment.get(name)
        default = "" if entry.default is msgspec.NODEFAULT else str(entry.default)
        value = default if given is None else _shown(entry.name, given)
        found.append(Setting(name, value, default, given is not None))
    return found


def _shown(name: str, value: str) -> str:
    if name in SECRET_SETTINGS:
        return "(set)" if value else ""
    if name in URLS and "@" in value:
        scheme, _, rest = value.partition("://")
        return f"{scheme}://…@{rest.rpartition('@')[2]}"
    return value
