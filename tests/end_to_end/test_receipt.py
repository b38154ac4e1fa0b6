"""`lurus receipt` on a real mesh: what a request cost agrees with its rates; a refused one cost nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.mesh import SETTLE_SECONDS, Mesh, eventually

BODY = {"model": "sandbox-text", "messages": [{"role": "user", "content": "Hello, what do you cost?"}]}
KINDS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "output",
)


def lurus(mesh: Mesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("lurus")), *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, env=mesh.environment, capture_output=True, text=True, timeout=60)


def receipt(mesh: Mesh, request_id: str) -> dict[str, Any]:
    """The receipt, once there is one."""

    def found() -> dict[str, Any] | None:
        done = lurus(mesh, "receipt", request_id, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    return eventually(found, SETTLE_SECONDS)


def test_tokens_by_rates_are_what_was_charged(mesh: Mesh) -> None:
    answer = mesh.http.post("/v1/chat/completions", json=BODY, headers=mesh.headers())
    found = receipt(mesh, answer.headers["request-id"])
    tokens, price = found["transaction"]["tokens"], found["price"]
    assert tokens["output"] == str(answer.json()["usage"]["completion_tokens"])
    scaled = sum(int(tokens[kind]) * int(price[f"{kind}_nano_usd"]) for kind in KINDS)
    assert int(found["transaction"]["amount_nano_usd"]) == scaled // -1_000_000 < 0
    assert found["event"]["attempts"][0]["provider_id"] == "sandbox"
    assert found["event"]["decision"] == found["event"]["user_agent"] == ""
    assert found["gaps"] == []
    assert found["upstream_cost_nano_usd"] == found["event"]["cost_nano_usd"]
    assert found["event"]["charge_reason"] == "CHARGE_REASON_COMPLETE"
    shown = lurus(mesh, "receipt", answer.headers["request-id"])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "complete: the provider finished its answer" in shown.stdout


def test_a_refused_request_is_in_the_log_and_not_in_the_ledger(mesh: Mesh) -> None:
    body = {**BODY, "model": "nobody-serves-this"}
    answer = mesh.http.post("/v1/chat/completions", json=body, headers=mesh.headers())
    assert answer.status_code == 404
    request_id = answer.headers["request-id"]
    assert mesh.log_row(request_id)["terminal"] == "TERMINAL_REFUSED"
    # Settled in order: when a later request is booked, this one would be too.
    later = mesh.http.post("/v1/chat/completions", json=BODY, headers=mesh.headers())
    mesh.transaction(later.headers["request-id"])
    path = f"transactions?account_id=acct_default&transaction_id={request_id}"
    assert mesh.rest("GET", path)["transactions"] == []
    found = receipt(mesh, request_id)
    assert (found["event"]["request_id"], found.get("transaction")) == (request_id, None)
    assert "nothing: the request was refused" in lurus(mesh, "receipt", request_id).stdout
