"""`lurus receipt` and `lurus deadletter` against scripted services: what they ask, print, do not make up."""

import json
from datetime import UTC, datetime

import pytest
from tests.switch.conftest import Run
from tests.switch.scripted import ScriptedMesh
from tests.switch.test_cli import REQUEST_ID, event

from lurus.billing.v1 import billing_pb2 as pb
from lurus.log.v1 import log_pb2
from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import DependencyUnavailable, FailedPrecondition, NotFound

TOKENS = usage_pb2.Tokens(input=7, cache_read=50_001, cache_write_1h=11, output=2_345)
PRICE = provider_pb2.Price(
    price_id="price_1",
    model="m",
    effective_time=datetime(2026, 1, 1, tzinfo=UTC),
    input_nano_usd=3_000_000_001,
    cache_read_nano_usd=300_000_000,
    cache_write_1h_nano_usd=6_000_000_000,
    output_nano_usd=15_000_000_000,
    source="the vendor's page",
)


def booked(**changes: object) -> pb.Transaction:
    found = pb.Transaction(
        transaction_id=REQUEST_ID,
        account_id="acct_default",
        kind=pb.TRANSACTION_KIND_USAGE,
        amount_nano_usd=-50_262_301,
        model="m",
        price_id="price_1",
        tokens=TOKENS,
        token_source=usage_pb2.TOKEN_SOURCE_PARTIAL,
    )
    found.create_time.FromSeconds(1_795_000_000)
    found.MergeFrom(pb.Transaction(**changes))  # type: ignore[arg-type]
    return found


def receipt(**changes: object) -> pb.GetReceiptResponse:
    failed = usage_pb2.Attempt(provider_id="first", http_status=529, error_reason="UPSTREAM_FAILED")
    failed.total_duration.FromMilliseconds(812)
    answered = usage_pb2.Attempt(provider_id="second", http_status=200)
    cut = event(attempts=[failed, answered], error_reason="UPSTREAM_CUT", tokens=TOKENS)
    cut.terminal = usage_pb2.TERMINAL_TRUNCATED
    found = pb.GetReceiptResponse(
        event=cut, transaction=booked(), price=PRICE, gaps=[pb.RECEIPT_GAP_UPSTREAM_COST]
    )
    found.MergeFrom(pb.GetReceiptResponse(**changes))  # type: ignore[arg-type]
    return found


def rows(out: str) -> list[list[str]]:
    """The cells of all lines, which stand two blanks apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


class TestReceipt:
    def test_it_tells_tokens_rates_attempts_and_what_is_not_known(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["GetReceipt"] = receipt()
        code, out, err = command("receipt", REQUEST_ID)
        assert (code, err) == (0, "")
        assert mesh.last(pb.GetReceiptRequest).request_id == REQUEST_ID
        lines = rows(out)
        assert ["charged", "$0.050262301"] in lines
        assert [
            "ended",
            "truncated: the provider's answer ended without its terminator [UPSTREAM_CUT]",
        ] in lines
        assert ["counted by", "partial: the provider's numbers so far, of an answer that was cut"] in lines
        assert ["input", "7", "$3.000000001", "1,000,000", "$0.000021000000007"] in lines
        assert ["cache read", "50,001", "$0.30", "1,000,000", "$0.0150003"] in lines
        assert ["cache write 1h", "11", "$6.00", "1,000,000", "$0.000066"] in lines
        assert ["output", "2,345", "$15.00", "1,000,000", "$0.035175"] in lines
        assert not any(line[0] == "cache write 5m" for line in lines if line)
        assert ["first", "529", "UPSTREAM_FAILED", "812 ms", "$0.00"] in lines
        assert ["second", "200", "unknown"] in lines
        assert "price_1, in effect since 2026-01-01" in out
        assert "not known: what every attempt cost at its provider" in out

    def test_json_is_the_receipt_with_its_gaps(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["GetReceipt"] = receipt()
        code, out, _ = command("receipt", REQUEST_ID, "--json")
        tree = json.loads(out)
        assert code == 0
        assert tree["gaps"] == ["RECEIPT_GAP_UPSTREAM_COST"]
        assert tree["price"]["input_nano_usd"] == "3000000001"
        assert tree["event"]["attempts"][0]["error_reason"] == "UPSTREAM_FAILED"

    def test_rates_that_nobody_knows_are_not_made_up(self, command: Run, mesh: ScriptedMesh) -> None:
        found = receipt(gaps=[pb.RECEIPT_GAP_PRICE])
        found.ClearField("price")
        mesh.answers["GetReceipt"] = found
        _, out, _ = command("receipt", REQUEST_ID)
        assert ["output", "2,345", "unknown", "1,000,000", "unknown"] in rows(out)
        assert ["price", "price_1"] in rows(out)
        assert "not known: the rates of the price" in out

    def test_a_tier_units_multipliers_and_a_lost_cache_are_shown(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        price = provider_pb2.Price()
        price.CopyFrom(PRICE)
        price.tiers.add(above_input_tokens=200, input_nano_usd=6 * 10**9, output_nano_usd=10**9)
        price.unit_rates.add(kind="web_search", nano_usd_per_thousand=10 * 10**9)
        found = receipt(tier_above_input_tokens=200, upstream_cost_nano_usd=7_000)
        found.price.CopyFrom(price)
        told = found.event
        told.units.add(kind="web_search", count=3)
        told.provider_multiplier_ppm, told.account_multiplier_ppm = 500_000, 1_250_000
        told.charge_reason = usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY
        told.waived_nano_usd, told.lost_cache_tokens, told.lost_cache_nano_usd = 9_000, 1_234, 55
        told.attempts[1].price_id, told.attempts[1].cost_nano_usd = "price_1", 7_000
        mesh.answers["GetReceipt"] = found
        _, out, _ = command("receipt", REQUEST_ID)
        lines = rows(out)
        assert ["input", "7", "$6.00", "1,000,000", "$0.000042"] in lines
        assert ["web_search", "3", "$10.00", "1,000", "$0.03"] in lines
        assert ["multipliers", "0.5 of the provider, 1.25 of the account"] in lines
        assert ["why", "interrupted; the account's policy waives it"] in lines
        assert ["waived", "$0.000009"] in lines
        assert ["upstream cost", "$0.000007"] in lines
        lost = "1,234 tokens were cached at another credential, which cost $0.000000055"
        assert ["lost cache", lost] in lines
        assert "rates above 200 input tokens" in out

    def test_corrections_are_added_up(self, command: Run, mesh: ScriptedMesh) -> None:
        one = booked(description="half back", transaction_id="tx_1")
        one.amount_nano_usd, one.kind = 25_000_000, pb.TRANSACTION_KIND_ADJUSTMENT
        mesh.answers["GetReceipt"] = receipt(corrections=[one])
        _, out, _ = command("receipt", REQUEST_ID)
        assert ["after corrections", "$0.025262301"] in rows(out)
        assert any(line[1:] == ["$0.025", "half back", "tx_1"] for line in rows(out))

    def test_a_reservation_has_no_event_and_says_so(self, command: Run, mesh: ScriptedMesh) -> None:
        transaction = booked(transaction_id="rsv_1")
        transaction.ClearField("tokens")
        mesh.answers["GetReceipt"] = pb.GetReceiptResponse(
            transaction=transaction, gaps=[pb.RECEIPT_GAP_EVENT]
        )
        code, out, _ = command("receipt", "rsv_1")
        assert code == 0
        assert ["ended", "unknown"] in rows(out)
        assert "booked without its event" in out
        assert "COUNT" not in out

    def test_a_refused_request_was_charged_nothing(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["GetReceipt"] = NotFound("nothing is booked")
        refused = event(error_reason="QUOTA_EXCEEDED")
        refused.terminal, refused.cost_nano_usd = usage_pb2.TERMINAL_REFUSED, 0
        refused.ClearField("tokens")
        mesh.answers["GetLog"] = log_pb2.GetLogResponse(event=refused)
        code, out, err = command("receipt", REQUEST_ID)
        assert code == 0
        assert ["charged", "nothing: the request was refused, and nothing is booked"] in rows(out)
        assert "[QUOTA_EXCEEDED]" in out
        assert "no provider was called" in err

    def test_a_request_that_is_not_booked_yet_is_no_free_one(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["GetReceipt"] = NotFound("nothing is booked")
        mesh.answers["GetLog"] = log_pb2.GetLogResponse(event=event())
        code, out, err = command("receipt", REQUEST_ID)
        assert (code, out) == (1, "")
        assert "not booked yet" in err

    @pytest.mark.parametrize(
        ("failure", "code"), [(NotFound("no such request"), 1), (DependencyUnavailable("away"), 3)]
    )
    def test_failures_of_the_ledger_are_told(
        self, command: Run, mesh: ScriptedMesh, failure: Exception, code: int
    ) -> None:
        mesh.answers["GetReceipt"] = failure
        mesh.answers["GetLog"] = NotFound("no such request")
        found, out, err = command("receipt", REQUEST_ID)
        assert (found, out) == (code, "")
        assert str(failure) in err

    def test_what_strangers_wrote_cannot_command_the_terminal(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["GetReceipt"] = receipt(transaction=pb.Transaction(model="a\x1b[2Jb"))
        _, out, _ = command("receipt", REQUEST_ID)
        assert "a?[2Jb" in out


class TestCorrections:
    def test_a_correction_is_an_adjustment_that_names_what_it_corrects(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["CreateTransaction"] = pb.CreateTransactionResponse()
        assert command("account", "credit", "acct_a", "0.12", "--corrects", REQUEST_ID)[0] == 0
        sent = mesh.last(pb.CreateTransactionRequest)
        assert (sent.corrects_transaction_id, sent.kind) == (REQUEST_ID, pb.TRANSACTION_KIND_ADJUSTMENT)


class TestDeadLetter:
    def letter(self, **changes: object) -> pb.DeadLetter:
        payload = event(account_id="acct_a").SerializeToString()
        found = pb.DeadLetter(
            dead_letter_id="dl_7", cause=pb.DEAD_LETTER_CAUSE_PARKED, reason="refused: why", payload=payload
        )
        found.create_time.FromSeconds(1_795_000_000)
        found.MergeFrom(pb.DeadLetter(**changes))  # type: ignore[arg-type]
        return found

    def test_list_shows_what_can_be_read_of_each(self, command: Run, mesh: ScriptedMesh) -> None:
        garbage = self.letter(dead_letter_id="dl_8")
        garbage.payload = b"\xff"
        mesh.answers["ListDeadLetters"] = pb.ListDeadLettersResponse(dead_letters=[garbage, self.letter()])
        code, out, _ = command("deadletter", "list", "--cause", "parked")
        assert code == 0
        first, second = rows(out)[1:]
        assert first[1:] == ["parked", "$0.00", "refused: why", "dl_8"]
        assert second[1:] == ["parked", "acct_a", "$0.000765", "refused: why", REQUEST_ID, "dl_7"]
        sent = mesh.last(pb.ListDeadLettersRequest)
        assert (sent.cause, sent.includes_resolved) == (pb.DEAD_LETTER_CAUSE_PARKED, False)
        assert command("deadletter", "list", "--all")[0] == 0
        assert mesh.last(pb.ListDeadLettersRequest).includes_resolved

    def test_an_empty_list_says_so(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListDeadLetters"] = pb.ListDeadLettersResponse()
        assert command("deadletter", "list") == (0, "", "no dead letters\n")

    def test_replay_tells_what_became_of_it(self, command: Run, mesh: ScriptedMesh) -> None:
        done = self.letter(resolution="replayed: booked")
        mesh.answers["ReplayDeadLetter"] = pb.ReplayDeadLetterResponse(dead_letter=done)
        code, out, _ = command("deadletter", "replay", "dl_7")
        assert code == 0
        assert ["resolution", "replayed: booked"] in rows(out)
        assert mesh.last(pb.ReplayDeadLetterRequest).dead_letter_id == "dl_7"
        mesh.answers["ReplayDeadLetter"] = FailedPrecondition("the event still cannot be booked: why")
        code, out, err = command("deadletter", "replay", "dl_7")
        assert (code, out) == (1, "")
        assert "still cannot be booked: why" in err

    def test_nothing_is_resolved_without_a_yes_and_a_note(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ResolveDeadLetter"] = pb.ResolveDeadLetterResponse(dead_letter=self.letter())
        assert command("deadletter", "resolve", "dl_7", "--yes")[0] == 2
        assert command("deadletter", "resolve", "dl_7", "--note", "a test")[0] == 2
        assert mesh.requests == []
        assert command("deadletter", "resolve", "dl_7", "--note", "a test", "--yes")[0] == 0
        sent = mesh.last(pb.ResolveDeadLetterRequest)
        assert (sent.dead_letter_id, sent.resolution) == ("dl_7", "a test")
