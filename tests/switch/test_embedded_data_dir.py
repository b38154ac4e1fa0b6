"""The data directory: one owner, private secrets, ports that stay."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from lurus_switch.embedded import AlreadyRunning, DataDir, DataDirUnusable, PortTaken, free_port
from lurus_switch.embedded.data_dir import HIGHEST_PORT, LOWEST_PORT
from lurus_switch.embedded.identity import record


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestLock:
    def test_a_second_instance_is_refused_and_told_who_runs(
        self, tmp_path: Path, python_environment: dict[str, str]
    ) -> None:
        code = f"from lurus_switch.embedded import DataDir; DataDir({str(tmp_path)!r})"
        with DataDir(tmp_path):
            second = subprocess.run(
                [sys.executable, "-c", code],
                env=python_environment,
                capture_output=True,
                text=True,
                check=False,
            )
            with pytest.raises(
                AlreadyRunning, match=f"already running as process {os.getpid()} in {tmp_path}"
            ):
                DataDir(tmp_path)
        assert f"already running as process {os.getpid()} in {tmp_path}" in second.stderr

    def test_it_ends_with_close(self, tmp_path: Path) -> None:
        DataDir(tmp_path).close()
        DataDir(tmp_path).close()

    def test_children_do_not_inherit_it(self, tmp_path: Path) -> None:
        with DataDir(tmp_path), subprocess.Popen(["sleep", "600"], close_fds=False) as child:
            child.kill()
            assert child.wait() == -signal.SIGKILL
        DataDir(tmp_path).close()

    def test_a_reader_needs_no_lock_and_makes_nothing(self, tmp_path: Path) -> None:
        with DataDir(tmp_path / "data") as owner:
            secret = owner.secret("admin_token")
            reader = DataDir(tmp_path / "data", exclusive=False)
            assert reader.secret("admin_token") == secret
            with pytest.raises(DataDirUnusable, match="has no secret 'other'"):
                reader.secret("other")
        DataDir(tmp_path / "missing", exclusive=False)
        assert not (tmp_path / "missing").exists()

    def test_a_place_that_cannot_be_used_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataDirUnusable, match="cannot use the data directory"):
            DataDir(tmp_path / "file" / "data")

    def test_processes_of_a_lost_supervisor_are_ended_and_others_are_not(
        self, tmp_path: Path, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        with DataDir(tmp_path) as data_dir:
            run = data_dir.run
        with subprocess.Popen(["sleep", "600"]) as orphan, subprocess.Popen(["sleep", "600"]) as stranger:
            record(run / "orphan.pid", orphan.pid)
            record(run / "reused.pid", stranger.pid)
            words = (run / "reused.pid").read_text().split()
            (run / "reused.pid").write_text(f"{words[0]} {int(words[1]) - 1} {words[2]}\n")
            (run / "torn.pid").write_text("")
            with DataDir(tmp_path):
                wait_until_gone([orphan.pid])
                assert psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE
            assert list(run.iterdir()) == []
            stranger.kill()


class TestSecret:
    def test_secrets_are_private_random_and_stay(self, tmp_path: Path) -> None:
        with DataDir(tmp_path / "data") as data_dir:
            first, key = data_dir.secret("key_pepper"), data_dir.secret("kek", 16)
            assert len(bytes.fromhex(first)) == 32
            assert len(bytes.fromhex(key)) == 16
            assert mode(data_dir.secret_path("kek")) == 0o600
            assert mode(data_dir.secret_path("kek").parent) == 0o700
            assert mode(tmp_path / "data") & 0o066 == 0
        with DataDir(tmp_path / "data") as data_dir:
            assert (data_dir.secret("key_pepper"), data_dir.secret("kek", 16)) == (first, key)

    def test_nothing_in_the_directory_is_readable_by_others(self, tmp_path: Path) -> None:
        with DataDir(tmp_path / "data") as data_dir:
            data_dir.secret("one")
            data_dir.port("one")
            data_dir.directory("one")
            open_paths = [path for path in data_dir.path.rglob("*") if mode(path) & 0o077]
        assert open_paths == []


class TestPort:
    def test_a_free_port_is_below_the_ephemeral_range(self) -> None:
        assert all(LOWEST_PORT <= free_port() <= HIGHEST_PORT for _ in range(50))

    def test_it_is_remembered_while_it_is_free(self, tmp_path: Path) -> None:
        with DataDir(tmp_path) as data_dir:
            port, other = data_dir.port("nats"), data_dir.port("valkey")
            assert port != other
        with DataDir(tmp_path) as data_dir:
            assert data_dir.port("nats") == port
        with DataDir(tmp_path) as data_dir, socket.create_server(("127.0.0.1", port)):
            assert data_dir.port("nats") != port

    def test_a_configured_port_is_used_or_refused(self, tmp_path: Path) -> None:
        port = free_port()
        with DataDir(tmp_path) as data_dir:
            assert data_dir.port("postgres", port) == port
            with (
                socket.create_server(("127.0.0.1", port)),
                pytest.raises(PortTaken, match=f"port {port}.*postgres"),
            ):
                data_dir.port("postgres", port)
