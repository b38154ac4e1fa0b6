"""`lurus top`: what it shows of a budget and of requests, and that it goes on when a service comes back."""

import re

import pytest
from tests.switch.conftest import Run
from tests.switch.scripted import ScriptedMesh
from tests.switch.test_cli import event

from lurus.billing.v1 import billing_pb2 as pb
from lurus.log.v1 import log_pb2
from lurus_common.errors import InvalidRequest, NotFound, Overloaded
from lurus_switch.commands import top
from lurus_switch.commands.top import MAX_MODELS, RECENT_REQUESTS, View


def budget(balance: int = 5_000_000_000, **left: int) -> pb.WatchBudgetResponse:
    money = pb.GetBalanceResponse(
        balance_nano_usd=balance,
        leased_nano_usd=1_000_000_000,
        reserved_nano_usd=20_000_000,
        available_nano_usd=balance - 1_020_000_000,
    )
    quota = pb.GetQuotaResponse(daily_used_nano_usd=3_000_000, monthly_used_nano_usd=4_000_000, **left)
    return pb.WatchBudgetResponse(balance=money, quota=quota)


def used(**changes: object) -> log_pb2.WatchUsageResponse:
    return log_pb2.WatchUsageResponse(event=event(**changes))


class TestView:
    def test_it_shows_money_totals_and_the_newest_request_first(self) -> None:
        view = View("acct_a")
        assert "waiting for the ledger" in view.lines()
        view.take_budget(budget(daily_left_nano_usd=7_000_000_000))
        view.take_usage(log_pb2.WatchUsageResponse())  # a sign of life
        for model in ("cheap", "dear", "dear"):
            view.take_usage(used(model=model, cost_nano_usd=10**9 if model == "dear" else 1))
        view.take_usage(used(model="dear", http_status=529))
        shown = [re.split(r"  +", line.strip()) for line in view.lines()]
        assert ["balance $5.00", "leased $1.00", "reserved $0.02", "available $3.98"] in shown
        assert ["used today $0.003, this month $0.004", "left of the caps: today $7.00"] in shown
        names = [line[0] for line in shown]
        assert shown[names.index("dear")] == ["dear", "3", "1", "$2.000765"]
        assert names.index("dear") < names.index("cheap")
        recent = [line for line in shown if "complete" in line]
        assert [line[1] for line in recent] == ["dear", "dear", "dear", "cheap"]

    def test_it_stays_small_whatever_comes(self) -> None:
        view = View("acct_a")
        for number in range(500):
            view.take_usage(used(model=f"m{number}\x1b[2J"))
        assert len(view.totals) == MAX_MODELS + 1
        assert view.totals["others"].request_count == 500 - MAX_MODELS
        assert len(view.lines()) <= MAX_MODELS + RECENT_REQUESTS + 10
        assert "\x1b" not in "".join(view.lines())


class TestTop:
    def test_elsewhere_than_on_a_terminal_it_prints_what_comes(
        self, command: Run, mesh: ScriptedMesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(top, "RECONNECT_SECONDS", 0.05)
        ledgers = [[budget(), Overloaded("stopping")], [budget(4_000_000_000)], [InvalidRequest("enough")]]
        mesh.answers["WatchBudget"] = lambda _: ledgers.pop(0)
        mesh.answers["WatchUsage"] = lambda _: [used()] if len(ledgers) == 3 else []
        code, out, err = command("top", "acct_a")
        assert code == 1
        assert (out.count("balance $5.00"), out.count("balance $4.00")) == (1, 1)
        assert "the ledger has gone; waiting for it" in err
        assert "enough" in err
        assert mesh.last(pb.WatchBudgetRequest).account_id == "acct_a"
        assert mesh.last(log_pb2.WatchUsageRequest).filter.account_id == "acct_a"

    def test_a_request_is_a_line(
        self, command: Run, mesh: ScriptedMesh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(top, "RECONNECT_SECONDS", 0.05)
        tails = [[used(), used(is_unpriced=True)], [InvalidRequest("enough")]]
        mesh.answers["WatchBudget"] = [budget()]
        mesh.answers["WatchUsage"] = lambda _: tails.pop(0)
        code, out, _ = command("top")
        assert code == 1
        assert len([line for line in out.splitlines() if "sandbox-text" in line]) == 2
        assert "unpriced" in out

    def test_an_unknown_account_ends_it(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["WatchBudget"] = [NotFound("no such account")]
        mesh.answers["WatchUsage"] = []
        code, _, err = command("top", "acct_nobody")
        assert (code, "no such account" in err) == (1, True)
