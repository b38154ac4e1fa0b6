"""Generates `gen/` from `proto/`, or with `--check` proves that it is current.

    python proto/generate.py            # writes gen/
    python proto/generate.py --check    # exit 1 and a list of files if gen/ is stale

Everything is made in a temporary directory and swapped in at the end, so that a
failing plugin cannot leave `gen/` half empty.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTO = Path(__file__).resolve().parent
GEN = PROTO.parent / "gen"
BETTERPROTO = "betterproto[compiler]==2.0.0b7"
# What betterproto's templates need; its own bounds admit releases that break them.
BETTERPROTO_WITH = ("setuptools<80",)


def main() -> int:
    """Writes or checks `gen/`; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="compare instead of writing")
    check = arguments.parse_args().check
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate_grpcio(fresh)
        generate_betterproto(fresh)
        if check:
            stale = differences(fresh, GEN)
            print("\n".join(f"stale: gen/{name}" for name in stale) or "gen/ is current")
            return 1 if stale else 0
        shutil.rmtree(GEN, ignore_errors=True)
        shutil.copytree(fresh, GEN)
    return 0


def generate_grpcio(target: Path) -> None:
    """Messages, stubs and their types for grpcio, below `lurus` and `buf`."""
    files = sorted([*PROTO.glob("lurus/**/*.proto"), PROTO / "buf/validate/validate.proto"])
    services = [file for file in files if "service " in file.read_text()]
    run_protoc(files, f"--python_out={target}", f"--mypy_out=quiet:{target}")
    run_protoc(services, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,async_only:{target}")
    for directory in {parent for file in target.rglob("*.py") for parent in file.relative_to(target).parents}:
        if directory != Path():
            (target / directory / "__init__.py").touch()
    (target / "lurus" / "py.typed").touch()


def run_protoc(files: list[Path], *options: str) -> None:
    """Runs grpcio-tools' protoc with the plugins of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    includes = [PROTO, resources.files("grpc_tools") / "_proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{include}" for include in includes)]
    subprocess.run([*command, *options, *map(str, files)], check=True, env={**os.environ, "PATH": path})


def generate_betterproto(target: Path) -> None:
    """The dataclass client for internal Python teams, in `lurus_client`.

    Its compiler wants old releases of black and isort, so it runs in an
    environment of its own.
    """
    client = target / "lurus_client"
    client.mkdir()
    files = sorted(PROTO.glob("lurus/**/*.proto"))
    uvx = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--python", sys.executable]
    extras = [item for name in BETTERPROTO_WITH for item in ("--with", name)]
    tool = [*uvx, "--from", BETTERPROTO, *extras, "--with", "grpcio-tools==1.85.1", "python", "-m"]
    command = [*tool, "grpc_tools.protoc", f"-I{PROTO}", f"--python_betterproto_out={client}"]
    subprocess.run([*command, *map(str, files)], check=True, cwd=PROTO, stderr=subprocess.DEVNULL)
    (client / "py.typed").touch()


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of files that differ or stand on one side only."""
    names = {
        str(file.relative_to(root))
        for root in (fresh, committed)
        for file in root.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return sorted(name for name in names if not same(fresh / name, committed / name))


def same(one: Path, other: Path) -> bool:
    """Whether both files exist and hold the same bytes."""
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    raise SystemExit(main())
