"""Where a gateway worker's time goes under paced streams, as a flame graph.

    python -m benchmarks.flame --out docs/performance/flame.svg [--test pace64] [--seconds 20]

Needs py-spy, which `make bench-peers` installs under `.bench/`. To see how another commit did, lay this
folder and `tests/` over a worktree of it and run the same there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from tests.support.mesh import free_ports

from benchmarks.gateways import TESTS, foreign_seconds
from benchmarks.targets import PEERS, started

RATE = 50
MAX_BYTES = 300_000
LOAD_SPARE_SECONDS = 8.0
WARM_SECONDS = 3.0


def main() -> int:
    """Loads a mesh, samples its worker and keeps the graph; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="SVG")
    parser.add_argument("--test", default="pace64", choices=TESTS)
    parser.add_argument("--seconds", type=int, default=20, help="of samples")
    parser.add_argument("--rate", type=int, default=RATE, help="samples a second")
    parser.add_argument("--py-spy", default=str(PEERS / "py-spy/bin/py-spy"))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the mesh: max_loop_late_seconds=0",
    )
    given = parser.parse_args()
    settings = dict(each.split("=", 1) for each in given.set)
    program = shutil.which(given.py_spy) or shutil.which("py-spy")
    if program is None:
        print("py-spy is not installed (make bench-peers)", file=sys.stderr)
        return 2
    console, test = Console(stderr=True), TESTS[given.test]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lurus-flame-")))
        upstream, port = free_ports(2)
        provider = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fake_provider", "--port", str(upstream)]
        )
        stack.callback(provider.wait, 10)
        stack.callback(provider.terminate)
        target = stack.enter_context(started("ours", port, upstream, [test.model], folder / "ours", settings))
        load = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.load", "--port", str(target.port), "--key", target.key),
                *("--dialect", test.dialect, "--model", test.model, "--streams", str(test.streams)),
                *("--seconds", str(given.seconds + LOAD_SPARE_SECONDS), "--stream"),
                *("--warmup-seconds", str(WARM_SECONDS)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert load.stdout is not None
        load.stdout.readline()
        console.print(f"sampling for {given.seconds} s ...")
        (worker,) = target.processes
        before, foreign = sum(worker.cpu_times()[:2]), foreign_seconds()
        subprocess.run(
            [
                *(program, "record", "--pid", str(worker.pid), "--duration", str(given.seconds)),
                *("--rate", str(given.rate), "--function", "--format", "flamegraph"),
                *("--output", str(given.out)),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        cores = (sum(worker.cpu_times()[:2]) - before) / given.seconds
        foreign_cores = (foreign_seconds() - foreign) / given.seconds
        (result,) = [json.loads(line) for line in load.stdout if "errors" in line]
        load.wait()
    figures = {"cores": round(cores, 2), "per_second": result["per_second"], "errors": result["errors"]}
    print(json.dumps({"test": given.test, **figures, "foreign_cores": round(foreign_cores, 2)}))
    size = given.out.stat().st_size
    console.print(f"{given.out}: {size} bytes" + (", too many to keep" if size > MAX_BYTES else ""))
    return int(result["errors"] > 0 or size > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
