"""Makes a chaos audit and prints what it found; ends with 1 if an invariant is broken."""

import argparse
import random
import sys
from pathlib import Path

from tests.chaos import audit

MAX_SEED = 10**6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of calls and kills; a random one if it is not given")
    parser.add_argument("--seconds", type=float, default=25.0, help="of load, with kills in it")
    parser.add_argument(
        "--kill-every", type=float, default=audit.MEAN_PAUSE_SECONDS, help="seconds, on average"
    )
    parser.add_argument("--quiet-seconds", type=float, default=audit.QUIET_SECONDS, help="to settle, at most")
    parser.add_argument("--data-dir", type=Path, help="of the mesh; must be empty")
    parser.add_argument("--json", action="store_true", help="instead of the table")
    return parser.parse_args()


def main() -> int:
    """Makes the audit."""
    arguments = _arguments()
    seed = random.randrange(MAX_SEED) if arguments.seed is None else arguments.seed
    report = audit.run(
        seed,
        arguments.seconds,
        data_dir=arguments.data_dir,
        kill_pause_seconds=arguments.kill_every,
        quiet_seconds=arguments.quiet_seconds,
    )
    sys.stdout.write((report.as_json() if arguments.json else report.as_text()) + "\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
