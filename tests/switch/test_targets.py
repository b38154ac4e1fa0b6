"""`lurus serve`: settings, signals and what a process imports."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lurus_switch.embedded import free_port

START_SECONDS = 30.0

Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve(python_environment: dict[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Starts a target as a process; ends those that still run at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(target: str, **settings: str) -> subprocess.Popen[str]:
        given = {f"LURUS_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "lurus_switch.targets", target],
            env={**python_environment, "LURUS_DATA_DIR": str(tmp_path), **given},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Reads the log of a process until a line has `text`."""
    assert process.stderr is not None
    deadline = time.monotonic() + START_SECONDS
    for line in process.stderr:
        if text in line:
            return
        assert time.monotonic() < deadline
    raise AssertionError(f"it ended without {text!r}")


def test_settings_that_do_not_fit_end_with_2_and_a_line_each(serve: Serve) -> None:
    process = serve("provider", edge_prot="1", log_port="99999")
    _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 2
    assert "did you mean LURUS_EDGE_PORT?" in err
    assert "LURUS_LOG_PORT: '99999' does not fit" in err
    assert "Traceback" not in err


def test_a_missing_setting_ends_with_2_and_says_what_to_write(serve: Serve) -> None:
    process = serve("billing")
    _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 2
    assert "LURUS_DATABASE_URL is not set" in err
    assert "Traceback" not in err


def test_sigterm_drains_and_ends_with_0(serve: Serve) -> None:
    port = free_port()
    process = serve("sandbox", sandbox_port=str(port))
    wait_for(process, "sandbox is serving")
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0
    assert "sandbox is draining" in err


def test_a_signal_while_a_store_is_awaited_ends_with_0_at_once(serve: Serve) -> None:
    # Accepts connections and never answers, like a database that hangs.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d"
        process = serve(
            "provider",
            database_url=url,
            admin_token="t" * 16,
            credential_key="A" * 43 + "=",
            provider_port="0",
        )
        silent.settimeout(START_SECONDS)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        _, err = process.communicate(timeout=START_SECONDS)
        connection.close()
    assert process.returncode == 0
    assert time.monotonic() - begin < 20
    assert "Traceback" not in err


def test_a_port_in_use_ends_with_1_and_names_it(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve("sandbox", sandbox_port=str(port))
        _, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 1
    assert str(port) in err
    assert "Traceback" not in err


@pytest.mark.parametrize("package", ["lurus_provider", "lurus_billing", "lurus_log"])
def test_cold_services_import_no_web_framework_and_no_command_line(
    python_environment: dict[str, str], package: str
) -> None:
    script = (
        f"import sys; import lurus_switch.targets, {package}.server\n"
        "heavy = {'fastapi', 'uvicorn', 'typer', 'rich', 'lurus_edge', 'lurus_routing'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=python_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_names_on_the_command_line_are_the_targets() -> None:
    from lurus_switch.commands.serve import NAMES
    from lurus_switch.targets import TARGETS

    assert set(NAMES) == set(TARGETS)
