"""Writes `.env` for docker-compose.yaml: fresh secrets, readable by you alone.

    python3 deploy/make_env.py [PATH]

Needs nothing but Python. An existing file is left alone: its secrets open what
is in the volumes.
"""

import base64
import os
import secrets
import sys
from pathlib import Path

HEX_NAMES = (
    "LURUS_ADMIN_TOKEN",
    "LURUS_KEY_PEPPER",
    "POSTGRES_PASSWORD",
    "NATS_TOKEN",
    "VALKEY_PASSWORD",
    "CLICKHOUSE_PASSWORD",
)


def main() -> int:
    """Writes the file; returns the exit code."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".env")
    values = {name: secrets.token_hex(32) for name in HEX_NAMES}
    values["LURUS_CREDENTIAL_KEY"] = base64.b64encode(secrets.token_bytes(32)).decode()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{path} exists and is kept: its secrets open what is in the volumes", file=sys.stderr)
        return 1
    with os.fdopen(file, "w", encoding="utf-8") as lines:
        lines.writelines(f"{name}={value}\n" for name, value in values.items())
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
