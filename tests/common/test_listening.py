"""Sockets that a process inherits, and the life that it has with them."""

import os
import socket
import subprocess
import sys

import pytest

from lurus_common.life import Life
from lurus_common.listening import inherited_listener, listen
from lurus_common.settings import Settings, SettingsError
from lurus_switch.embedded import launch

SHOW = (
    "import os; from lurus_common.listening import inherited_listener\n"
    "found = inherited_listener(os.environ)\n"
    "print(found.getsockname()[1], found.fileno(), os.get_inheritable(found.fileno()))"
)


def test_a_launched_process_finds_the_socket_where_systemd_would_leave_it() -> None:
    with listen("127.0.0.1", 0) as listener:
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "9", "-", "-"]
        shown = subprocess.run(
            [*launcher, str(listener.fileno()), "--", sys.executable, "-c", SHOW],
            pass_fds=(listener.fileno(),),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.split() == [str(listener.getsockname()[1]), "3", "False"]


def test_a_socket_for_somebody_else_is_not_ours() -> None:
    assert inherited_listener({}) is None
    assert inherited_listener({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None


def test_more_sockets_than_one_stop_the_start() -> None:
    with pytest.raises(SettingsError, match="must be 1"):
        inherited_listener({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"})


def test_what_the_kernel_keeps_for_a_client_is_bounded() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 512 * 1024


@pytest.mark.parametrize(
    ("profile", "is_replaced", "seconds"), [("prod", False, 5.0), ("prod", True, 0.0), ("dev", False, 0.0)]
)
def test_an_end_is_announced_where_somebody_watches(profile: str, is_replaced: bool, seconds: float) -> None:
    life = Life(has_started=False)
    assert life.problem == "it is starting"
    life.has_started = True
    assert not life.problem
    life.end(is_replaced=is_replaced)
    life.end(is_replaced=not is_replaced)  # the first one counts
    assert life.problem == "it is draining"
    assert life.announce_seconds(Settings(profile=profile)) == seconds  # type: ignore[arg-type]
