"""Every command of the grpcurl cookbook works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.mesh import Mesh

PAGE = Path(__file__).parents[2] / "docs" / "grpcurl.md"
GRPCURL = Path(sys.executable).with_name("grpcurl")
_BLOCK = re.compile(r"```sh(?P<kind>[a-z ]*)\n(?P<commands>.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^(?:grpcurl|curl) .*?(?=^(?:grpcurl|curl) |\Z)", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(not GRPCURL.exists(), reason="grpcurl's wheel exists for Linux x86-64 only")


def commands() -> list[str]:
    blocks = [block for block in _BLOCK.finditer(PAGE.read_text()) if block["kind"].strip() != "setup"]
    return [command.strip() for block in blocks for command in _COMMAND.findall(block["commands"])]


def test_the_page_has_commands() -> None:
    assert len(commands()) > 20


def test_every_command_of_the_page_works_in_order(mesh: Mesh) -> None:
    areas = ("PROVIDER", "LOG", "BILLING", "ROUTING")
    environment = {
        "PATH": f"{GRPCURL.parent}:/usr/local/bin:/usr/bin:/bin",
        "ADMIN": f"authorization: Bearer {mesh.admin_token}",
        "KEY": mesh.key,
        "EDGE": mesh.base_url,
        **{area: f"127.0.0.1:{mesh.ports[area]}" for area in areas},
    }
    try:
        for command in commands():
            text = command.replace("127.0.0.1:18105", f"127.0.0.1:{mesh.ports['SANDBOX']}")
            done = subprocess.run(
                ["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=30
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip(), f"{command} printed nothing"
    finally:
        headers = {"authorization": f"Bearer {mesh.admin_token}"}
        mesh.http.delete("/api/v1/providers/house-llm", headers=headers)
