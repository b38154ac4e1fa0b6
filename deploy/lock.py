"""Resolves the lock files: hashes, no URLs, every platform. Run by `make lock`.

| file | for |
| --- | --- |
| requirements-dev.lock | `make test`, `make check`: everything |
| requirements.lock | `make up`: the runtime and the embedded stores |
| deploy/requirements.lock | the container image: the runtime alone |
| requirements-uv.lock | the installer itself |
| tests/clients/requirements.lock | LangChain, which tests drive in an environment of its own |
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--universal"]
OPTIONS = ["--no-emit-index-url", "--no-emit-find-links", "--python-version", "3.11", "--no-header"]


def compile_lock(source: str, target: str, extras: tuple[str, ...] = (), constraint: str = "") -> None:
    """Writes one lock file; `constraint` names another whose versions it must keep."""
    more = [item for extra in extras for item in ("--extra", extra)]
    more += ["--constraint", constraint] if constraint else []
    subprocess.run([*COMPILE, *OPTIONS, *more, source, "--output-file", target], check=True, cwd=ROOT)


def main() -> None:
    """Writes all of them; the narrower ones keep the versions of the widest."""
    widest = "requirements-dev.lock"
    compile_lock("pyproject.toml", widest, ("embedded", "sdk", "build", "dev"))
    compile_lock("pyproject.toml", "requirements.lock", ("embedded", "build"), widest)
    compile_lock("pyproject.toml", "deploy/requirements.lock", ("build",), widest)
    compile_lock("tests/clients/requirements.in", "tests/clients/requirements.lock")
    subprocess.run(
        [*COMPILE, *OPTIONS, "-", "--constraint", widest, "--output-file", "requirements-uv.lock"],
        input="uv\n",
        text=True,
        check=True,
        cwd=ROOT,
    )


if __name__ == "__main__":
    main()
