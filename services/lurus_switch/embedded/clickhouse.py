"""ClickHouse as a child process: the engine of chDB behind our HTTP front, see `clickhouse_http`."""

import base64
import os
import sys

from lurus_switch.embedded.binaries import package_directory
from lurus_switch.embedded.data_dir import DataDir
from lurus_switch.embedded.errors import BinaryNotFound
from lurus_switch.embedded.probe import expect, http_get
from lurus_switch.embedded.spec import ProcessSpec

PACKAGE = "chdb-core"
USER = DATABASE = "lurus"


class ClickHouse:
    """One embedded server."""

    def __init__(self, data_dir: DataDir, *, port: int | None = None) -> None:
        if package_directory("chdb") is None:
            raise BinaryNotFound(
                f"the ClickHouse engine was not found; install it with: pip install '{PACKAGE}'"
            )
        self.port = data_dir.port("clickhouse", port)
        self._password_path = data_dir.secret_path("clickhouse")
        self._password = data_dir.secret("clickhouse")
        self._directory = data_dir.directory("clickhouse")

    @property
    def url(self) -> str:
        return f"http://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    def spec(self) -> ProcessSpec:
        module = ["-m", "lurus_switch.embedded.clickhouse_http"]
        options = [
            f"--data-dir={self._directory}",
            f"--port={self.port}",
            f"--password-file={self._password_path}",
        ]
        return ProcessSpec(
            name="clickhouse",
            argv=[sys.executable, *module, *options],
            ready=self.ready,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PYTHONUNBUFFERED": "1",
                "TZ": "UTC",
            },
            ready_seconds=60.0,
        )

    async def ready(self) -> None:
        """Asks the engine a question as an ordinary client."""
        credentials = base64.b64encode(f"{USER}:{self._password}".encode()).decode()
        question = http_get("/?query=SELECT%201", f"Authorization: Basic {credentials}\r\n")
        await expect(self.port, question, b"\r\n\r\n1\n", b"\r\n\r\n1\n")
