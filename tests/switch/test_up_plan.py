"""What `lurus up` would run: ports, settings, secrets, environments. Starts nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lurus_common.settings import Settings, read_settings
from lurus_switch.embedded import DataDir
from lurus_switch.failures import CommandFailed
from lurus_switch.mesh_plan import SERVICE_NAMES, MeshPlan, host_port, make_plan, process_environment
from lurus_switch.places import ProcessRow, RunFile, read_run_file, write_run_file
from lurus_switch.screen import Screen

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    with DataDir(tmp_path / "data") as made:
        yield made


def plan_of(data_dir: DataDir, port: str | None = "auto", workers: int = 1, **given: str) -> MeshPlan:
    return make_plan(Settings(**given), frozenset(given), data_dir, port, workers)


def free_base() -> int:
    """A port that is free together with the next five."""
    for base in range(21000, 32000, 17):
        if all(_is_free(base + distance) for distance in range(len(SERVICE_NAMES))):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def test_ports_follow_the_one_that_is_given(data_dir: DataDir) -> None:
    base = free_base()
    settings = plan_of(data_dir, str(base)).settings
    ports = [getattr(settings, f"{name}_port") for name in SERVICE_NAMES]
    assert ports == list(range(base, base + 6))
    assert settings.billing_address == f"127.0.0.1:{base + 3}"


def test_taken_ports_are_named_with_a_way_out(data_dir: DataDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = taken.getsockname()[1]
        with pytest.raises(CommandFailed) as failed:
            plan_of(data_dir, str(base))
    assert failed.value.exit_code == 2
    assert f"{base} (edge)" in failed.value.message
    assert "--port auto" in failed.value.remedy


def test_a_taken_sandbox_port_is_nobodys_business(data_dir: DataDir) -> None:
    base = free_base()
    with socket.create_server(("127.0.0.1", base + 5)):
        assert plan_of(data_dir, str(base)).settings.sandbox_port != base + 5


def test_free_ports_are_the_same_at_the_next_start(data_dir: DataDir) -> None:
    first, second = plan_of(data_dir).settings, plan_of(data_dir).settings
    assert first == second


def test_secrets_are_made_once_and_fit(data_dir: DataDir) -> None:
    settings = plan_of(data_dir).settings
    assert len(settings.credential_key_bytes()) == 32
    assert len({settings.admin_token, settings.key_pepper}) == 2
    assert plan_of(data_dir, admin_token="mine").settings.admin_token == "mine"


def test_a_store_of_the_settings_is_not_started_here(data_dir: DataDir) -> None:
    plan = plan_of(data_dir, redis_url="redis://:pw@cache.internal:6379/0")
    assert [spec.name for spec in plan.backends.specs()] == ["postgres", "nats", "clickhouse"]
    assert plan.settings.redis_url == "redis://:pw@cache.internal:6379/0"
    assert plan.stores["valkey"] == "cache.internal:6379"


def test_each_process_gets_all_settings_and_workers_differ(data_dir: DataDir) -> None:
    plan = plan_of(data_dir, workers=2)
    environments = [spec.env or {} for spec in plan.gateway_specs()]
    own = [read_settings({k: v for k, v in env.items() if k.startswith("LURUS_")}) for env in environments]
    assert [settings.worker_id for settings in own] == ["gateway-0", "gateway-1"]
    assert own[0].ops_port != own[1].ops_port
    assert own[0].edge_port == own[1].edge_port
    assert own[0].database_url == plan.backends.urls.database_url


def test_the_sandbox_gets_no_secret(data_dir: DataDir) -> None:
    plan = plan_of(data_dir)
    sandbox = next(spec for spec in plan.services() if spec.name == "sandbox")
    secrets = {plan.settings.admin_token, plan.settings.key_pepper, plan.settings.database_url}
    assert not secrets & set((sandbox.env or {}).values())


def test_bytecode_is_kept_in_the_data_directory_where_it_is_unwanted_elsewhere(data_dir: DataDir) -> None:
    kept = process_environment(data_dir, {"PYTHONDONTWRITEBYTECODE": "1", "LURUS_HOST": "x", "HOME": "/h"})
    assert kept["PYTHONPYCACHEPREFIX"] == str(data_dir.path / "bytecode")
    assert kept["HOME"] == "/h"
    assert "PYTHONDONTWRITEBYTECODE" not in kept
    assert "LURUS_HOST" not in kept


def test_addresses_are_those_that_a_client_here_can_use() -> None:
    assert host_port("0.0.0.0", 1) == "127.0.0.1:1"
    assert host_port("::1", 1) == "[::1]:1"
    assert host_port("10.0.0.5", 1) == "10.0.0.5:1"


def test_the_run_file_is_private_and_tells_a_dead_supervisor(tmp_path: Path) -> None:
    run = RunFile(
        version="1",
        pid=2**22 + 1,
        pid_start="1",
        start_time=0.0,
        addresses={},
        ops={},
        stores={},
        processes=[ProcessRow(name="nats", state="ready")],
    )
    write_run_file(tmp_path, run)
    assert read_run_file(tmp_path) == run
    assert not run.is_alive
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "run.json").write_text("{")
    assert read_run_file(tmp_path) is None


def test_the_screen_has_no_colours_in_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        screen = Screen(file)
        screen.begin("Starting")
        screen.line("one", "bold")
        screen.stopping()
    assert (tmp_path / "out").read_text().splitlines()[:2] == ["Starting", "one"]
