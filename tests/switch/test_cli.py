"""The command line against scripted services: what it sends, prints and says when something is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.switch.scripted import TOKEN, ScriptedMesh

from lurus.billing.v1 import billing_pb2
from lurus.log.v1 import log_pb2
from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import AlreadyExists, DependencyUnavailable, InvalidRequest, NotFound
from lurus_switch import cli

Run = Callable[..., tuple[int, str, str]]
REQUEST_ID = "req_01M82YF0JKE1ERYP4Z21PWHP6S"


def event(**changes: object) -> usage_pb2.UsageEvent:
    found = usage_pb2.UsageEvent(
        request_id=REQUEST_ID,
        account_id="acct_default",
        model="sandbox-text",
        provider_id="sandbox",
        http_status=200,
        terminal=usage_pb2.TERMINAL_COMPLETE,
        cost_nano_usd=765_000,
        tokens=usage_pb2.Tokens(input=8, cache_read=2, output=49),
    )
    found.event_time.FromSeconds(1_795_000_000)
    found.MergeFrom(usage_pb2.UsageEvent(**changes))  # type: ignore[arg-type]
    return found


class TestLists:
    def test_pages_are_put_together_and_asked_for_with_the_admin_token(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        pages = {
            "": billing_pb2.ListKeysResponse(keys=[billing_pb2.Key(key_id="key_1")], next_page_token="two"),
            "two": billing_pb2.ListKeysResponse(keys=[billing_pb2.Key(key_id="key_2")]),
        }
        mesh.answers["ListKeys"] = lambda request: pages[request.page_token]
        code, out, _ = command("key", "list", "--account", "acct_a")
        assert code == 0
        assert "key_1" in out and "key_2" in out
        assert [request.account_id for request in mesh.requests] == ["acct_a", "acct_a"]
        assert set(mesh.tokens) == {TOKEN}

    def test_json_is_the_response_as_rest_prints_it(self, command: Run, mesh: ScriptedMesh) -> None:
        account = billing_pb2.Account(account_id="acct_a", credit_limit_nano_usd=2**53 + 1)
        mesh.answers["ListAccounts"] = billing_pb2.ListAccountsResponse(accounts=[account])
        code, out, _ = command("account", "list", "--json")
        tree = json.loads(out)
        assert code == 0
        assert tree["accounts"][0]["account_id"] == "acct_a"
        assert tree["accounts"][0]["credit_limit_nano_usd"] == str(2**53 + 1)
        assert tree["next_page_token"] == ""

    def test_a_limit_bounds_rows_and_pages(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListLogs"] = log_pb2.ListLogsResponse(events=[event()] * 5, next_page_token="more")
        code, out, _ = command("logs", "-n", "3")
        assert code == 0
        assert out.count(REQUEST_ID) == 3
        assert [request.page_size for request in mesh.requests] == [3]

    def test_an_empty_list_says_what_to_do(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListProviders"] = provider_pb2.ListProvidersResponse()
        assert command("provider", "list") == (
            0,
            "",
            "no providers; add one with `lurus provider create`\n",
        )

    def test_what_strangers_wrote_cannot_command_the_terminal(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListLogs"] = log_pb2.ListLogsResponse(events=[event(model="a\x1b[2Jb\nc\u202e")])
        _, out, _ = command("logs")
        assert "a?[2Jb c?" in out


class TestProviders:
    def test_create_sends_all_that_was_said_and_never_shows_the_secret(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["CreateProvider"] = lambda request: provider_pb2.CreateProviderResponse(
            provider=request.provider
        )
        code, out, err = command(
            *("provider", "create", "house", "--base-url", "https://api.example.com"),
            *("--dialect", "chat", "--dialect", "anthropic", "--model", "a-*", "--map", "b=c"),
            *("--level", "3", "--multiplier", "1.25", "--idle-timeout", "1.5", "--no-stream-options"),
            *("--streams-only", "--on-disconnect", "drain", "--drop-param", "top_k"),
            *("--set-param", 'service_tier="flex"', "--set-param", "seed=7"),
            *("--endpoint", "embeddings", "--batch-account", "acct_research"),
            *("--secret-env", "HOUSE_KEY"),
            HOUSE_KEY="sk-very-secret",
        )
        sent = mesh.requests[-1].provider
        assert code == 0
        assert list(sent.dialects) == [usage_pb2.DIALECT_OPENAI_CHAT, usage_pb2.DIALECT_ANTHROPIC]
        assert (sent.level, sent.cost_multiplier_ppm) == (3, 1_250_000)
        assert sent.limits.idle_timeout.ToMilliseconds() == 1500
        assert sent.quirks.no_stream_options and sent.quirks.wants_streams
        assert list(sent.quirks.dropped_params) == ["top_k"]
        assert sent.on_disconnect == provider_pb2.ON_DISCONNECT_DRAIN
        assert list(sent.extra_endpoints) == [provider_pb2.EXTRA_ENDPOINT_EMBEDDINGS]
        assert list(sent.batch_account_ids) == ["acct_research"]
        assert [(row.name, row.json) for row in sent.quirks.set_params] == [
            ("service_tier", '"flex"'),
            ("seed", "7"),
        ]
        assert sent.model_mappings[0].upstream_model == "c"
        assert sent.credentials[0] == provider_pb2.Credential(
            credential_id="default", secret="sk-very-secret"
        )
        assert "sk-very-secret" not in out + err

    def test_a_secret_comes_from_standard_input(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["CreateProvider"] = lambda request: provider_pb2.CreateProviderResponse(
            provider=request.provider
        )
        arguments = ("provider", "create", "house", "--base-url", "https://a.b", "--dialect", "responses")
        assert command(*arguments, "--secret-stdin", stdin="from-stdin\n")[0] == 0
        assert mesh.requests[-1].provider.credentials[0].secret == "from-stdin"
        code, _, err = command(*arguments)
        assert code == 2
        assert "--secret-stdin or --secret-env" in err

    def test_update_names_only_what_changes(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["UpdateProvider"] = provider_pb2.UpdateProviderResponse()
        assert command("provider", "update", "house", "--enable", "--idle-timeout", "3", "--tag", "")[0] == 0
        sent = mesh.requests[-1]
        assert sorted(sent.update_mask.paths) == ["is_disabled", "limits.idle_timeout", "tags"]
        assert not sent.provider.is_disabled
        assert list(sent.provider.tags) == []
        code, _, err = command("provider", "update", "house")
        assert code == 2
        assert "say what to change" in err

    def test_another_secret_leaves_the_other_credentials_alone(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        names = ("default", "second")
        stored = provider_pb2.Provider(
            provider_id="house", credentials=[provider_pb2.Credential(credential_id=name) for name in names]
        )
        mesh.answers["GetProvider"] = provider_pb2.GetProviderResponse(provider=stored)
        mesh.answers["UpdateProvider"] = provider_pb2.UpdateProviderResponse()
        arguments = ("provider", "update", "house", "--credential", "second", "--secret-stdin")
        assert command(*arguments, stdin="new")[0] == 0
        sent = mesh.requests[-1]
        assert list(sent.update_mask.paths) == ["credentials"]
        assert [(row.credential_id, row.secret) for row in sent.provider.credentials] == [
            ("default", ""),
            ("second", "new"),
        ]

    def test_check_ends_with_1_if_no_credential_is_taken(self, command: Run, mesh: ScriptedMesh) -> None:
        refused = provider_pb2.CredentialHealth(credential_id="default", http_status=401, detail="bad key")
        mesh.answers["CheckHealth"] = provider_pb2.CheckHealthResponse(credentials=[refused])
        code, out, _ = command("provider", "check", "house")
        assert code == 1
        assert "bad key" in out

    def test_nothing_is_deleted_without_a_yes(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["DeleteProvider"] = provider_pb2.DeleteProviderResponse()
        assert command("provider", "delete", "house")[0] == 2
        assert mesh.requests == []
        assert command("provider", "delete", "house", "--yes")[0] == 0


class TestMoney:
    def test_a_price_is_usd_per_million_tokens_and_no_token_is_free(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["CreatePrice"] = lambda request: provider_pb2.CreatePriceResponse(price=request.price)
        code, out, _ = command(
            "price", "create", "m", "--input", "3", "--output", "15", "--cache-read", "0.3"
        )
        sent = mesh.requests[-1].price
        assert code == 0
        assert (sent.input_nano_usd, sent.output_nano_usd) == (3_000_000_000, 15_000_000_000)
        assert sent.cache_read_nano_usd == 300_000_000
        assert sent.cache_write_5m_nano_usd == sent.cache_write_12h_nano_usd == 3_000_000_000
        assert "$0.30 per million tokens" in out

    def test_credit_moves_exact_amounts_under_an_id(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["CreateTransaction"] = billing_pb2.CreateTransactionResponse()
        assert command("account", "credit", "acct_a", "0.000000001", "--id", "tx_1")[0] == 0
        assert command("account", "credit", "acct_a", "-12.50")[0] == 0
        first, second = mesh.requests
        assert (first.transaction_id, first.amount_nano_usd) == ("tx_1", 1)
        assert first.kind == billing_pb2.TRANSACTION_KIND_TOP_UP
        assert (second.amount_nano_usd, second.kind) == (
            -12_500_000_000,
            billing_pb2.TRANSACTION_KIND_REFUND,
        )
        assert second.transaction_id.startswith("tx_")
        assert command("account", "credit", "acct_a", "1.0000000001")[0] == 2

    def test_a_credit_with_an_open_end_tells_its_id(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["CreateTransaction"] = DependencyUnavailable("no database", dependency="postgresql")
        code, _, err = command("account", "credit", "acct_a", "5")
        assert code == 3
        assert f"--id {mesh.requests[-1].transaction_id}" in err

    def test_quota_sets_what_is_given_and_keeps_the_rest(self, command: Run, mesh: ScriptedMesh) -> None:
        stored = billing_pb2.Quota(monthly_limit_nano_usd=7, daily_limit_nano_usd=5)
        mesh.answers["GetQuota"] = billing_pb2.GetQuotaResponse(account_id="acct_a", quota=stored)
        mesh.answers["UpdateQuota"] = billing_pb2.UpdateQuotaResponse()
        assert command("quota", "acct_a", "--daily", "0", "--total", "2.5")[0] == 0
        sent = mesh.last(billing_pb2.UpdateQuotaRequest).quota
        assert (sent.daily_limit_nano_usd, sent.monthly_limit_nano_usd) == (0, 7)
        assert sent.total_limit_nano_usd == 2_500_000_000

    def test_only_the_secret_of_a_new_key_is_on_standard_output(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        key = billing_pb2.Key(key_id="key_1", account_id="acct_default")
        mesh.answers["CreateKey"] = billing_pb2.CreateKeyResponse(key=key, secret="lsk_secret")
        code, out, _ = command("key", "create", "--model", "claude-*", "--expires", "30d")
        assert (code, out) == (0, "lsk_secret\n")
        sent = mesh.requests[-1].key
        assert (sent.account_id, list(sent.allowed_models)) == ("acct_default", ["claude-*"])
        assert sent.HasField("expire_time")
        mesh.answers["CreateKey"] = billing_pb2.CreateKeyResponse(key=key)
        assert command("key", "create", "--id", "key_1")[:2] == (1, "")

    def test_rate_limits_are_named_one_by_one(self, command: Run, mesh: ScriptedMesh) -> None:
        limits = billing_pb2.RateLimits(requests_per_minute=60, concurrent_requests=2)
        key = billing_pb2.Key(key_id="key_1", rate_limits=limits)
        mesh.answers["UpdateKey"] = billing_pb2.UpdateKeyResponse(key=key)
        code, out, _ = command(
            "key", "update", "key_1", "--requests-per-minute", "60", "--tokens-per-minute", "0"
        )
        assert code == 0
        assert "60 req/min, 2 at once" in out
        sent = mesh.last(billing_pb2.UpdateKeyRequest)
        assert list(sent.update_mask.paths) == [
            "rate_limits.requests_per_minute",
            "rate_limits.tokens_per_minute",
        ]
        assert sent.key.rate_limits == billing_pb2.RateLimits(requests_per_minute=60)

    def test_demands_are_named_one_by_one(self, command: Run, mesh: ScriptedMesh) -> None:
        stated = billing_pb2.Demands(required_tags=["eu"], max_output_nano_usd=15 * 10**9)
        key = billing_pb2.Key(key_id="key_1", demands=stated)
        mesh.answers["UpdateKey"] = billing_pb2.UpdateKeyResponse(key=key)
        code, out, _ = command("key", "update", "key_1", "--require-tag", "eu", "--max-output-price", "15")
        assert code == 0
        assert "tag eu, output at most $15" in out
        sent = mesh.last(billing_pb2.UpdateKeyRequest)
        assert list(sent.update_mask.paths) == ["demands.required_tags", "demands.max_output_nano_usd"]
        assert sent.key.demands == stated
        assert command("key", "update", "key_1", "--require-tag", "")[0] == 0
        sent = mesh.last(billing_pb2.UpdateKeyRequest)
        assert (list(sent.update_mask.paths), list(sent.key.demands.required_tags)) == (
            ["demands.required_tags"],
            [],
        )


class TestLogs:
    def test_filters_are_sent(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListLogs"] = log_pb2.ListLogsResponse()
        assert (
            command("logs", "--errors", "--model", "a-*", "--since", "2h", "--terminal", "truncated")[0] == 0
        )
        wanted = mesh.requests[-1].filter
        assert (wanted.min_http_status, wanted.model) == (400, "a-*")
        assert wanted.terminal == usage_pb2.TERMINAL_TRUNCATED
        assert wanted.HasField("start_time") and not wanted.HasField("end_time")

    def test_follow_prints_a_line_an_event_and_says_what_was_skipped(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["WatchUsage"] = [
            log_pb2.WatchUsageResponse(),
            log_pb2.WatchUsageResponse(event=event(), skipped_count=2),
            InvalidRequest("enough"),
        ]
        code, out, err = command("logs", "--follow", "--json")
        assert code == 1
        assert json.loads(out)["request_id"] == REQUEST_ID
        assert "skipped 2 requests" in err

    def test_show_tells_the_attempts(self, command: Run, mesh: ScriptedMesh) -> None:
        failed = usage_pb2.Attempt(provider_id="first", http_status=529, error_reason="UPSTREAM_FAILED")
        mesh.answers["GetLog"] = log_pb2.GetLogResponse(event=event(attempts=[failed]))
        code, out, _ = command("logs", "show", REQUEST_ID)
        assert code == 0
        assert "8 in, 49 out, 2 cache read" in out
        assert "UPSTREAM_FAILED" in out

    def test_show_tells_the_plan_and_its_reasons(self, command: Run, mesh: ScriptedMesh) -> None:
        rows = [
            {"providerId": "p", "credentialId": "c", "level": 1, "latencyDuration": "0.120s"},
            {"providerId": "q", "credentialId": "c", "level": 1, "skipReason": "benched: throttled"},
        ]
        decision = json.dumps({"candidates": rows, "policy": "least_latency"}).encode()
        mesh.answers["GetLog"] = log_pb2.GetLogResponse(event=event(decision=decision))
        out = command("logs", "show", REQUEST_ID)[1]
        assert "plan (by least latency)" in out
        assert "p/c" in out and "0.120s" in out and "not asked: benched: throttled" in out
        for odd in (b"{", b"7", b'{"candidates": 7}', b'{"candidates": [7]}'):
            mesh.answers["GetLog"] = log_pb2.GetLogResponse(event=event(decision=odd))
            assert command("logs", "show", REQUEST_ID)[0] == 0

    def test_stats_have_a_column_for_each_group(self, command: Run, mesh: ScriptedMesh) -> None:
        row = log_pb2.StatsRow(model="m", request_count=1234, cost_nano_usd=5_000_000_000)
        row.bucket_time.FromSeconds(1_795_392_000)
        mesh.answers["GetStats"] = log_pb2.GetStatsResponse(rows=[row])
        code, out, _ = command("stats", "--by", "model,day")
        header, line = out.splitlines()
        assert code == 0
        assert header.split()[:3] == ["MODEL", "DAY", "(UTC)"]
        assert line.split()[:3] == ["m", "2026-11-23", "1,234"]
        assert list(mesh.requests[-1].group_by) == [log_pb2.STATS_GROUP_MODEL, log_pb2.STATS_GROUP_DAY]
        assert command("stats", "--by", "colour")[0] == 2


def relayed(*chunks: bytes, status: int = 200, has_end: bool = True) -> list[routing_pb2.RelayResponse]:
    head = routing_pb2.RelayHead(status=status, request_id=REQUEST_ID, is_streaming=status == 200)
    end = routing_pb2.RelayEnd(
        tokens=usage_pb2.Tokens(input=5, output=2),
        cost_nano_usd=31_000,
        provider_id="sandbox",
        upstream_model="sandbox-text",
        terminal=usage_pb2.TERMINAL_COMPLETE,
    )
    ends = [routing_pb2.RelayResponse(end=end)] if has_end else []
    data = [routing_pb2.RelayResponse(data=chunk) for chunk in chunks]
    return [routing_pb2.RelayResponse(head=head), *data, *ends]


class TestAsk:
    EVENTS = (
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\nda',
        'ta: {"choices":[{"delta":{"content":"lo, \u4e16"}}]}\n\ndata: [DONE]\n\n'.encode(),
    )

    def test_text_goes_to_standard_output_and_usage_to_standard_error(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["Relay"] = relayed(*self.EVENTS)
        code, out, err = command("ask", "hi", "--dialect", "chat", LURUS_API_KEY="lsk_mine")
        sent = mesh.last(routing_pb2.RelayRequest)
        assert (code, out) == (0, "Hello, \u4e16\n")
        assert "5 in, 2 out · $0.000031 · sandbox (sandbox-text) · complete" in err
        assert list(sent.credentials) == ["lsk_mine"]
        assert sent.path == "/v1/chat/completions"
        assert json.loads(sent.body)["messages"] == [{"role": "user", "content": "hi"}]

    @pytest.mark.parametrize(
        ("dialect", "stream"),
        [
            (
                "anthropic",
                b'event: content_block_delta\ndata: {"type":"content_block_delta",'
                b'"delta":{"type":"text_delta","text":"Hi"}}\n\n',
            ),
            ("responses", b'data: {"type":"response.output_text.delta","delta":"Hi"}\n\n'),
        ],
    )
    def test_it_reads_the_other_dialects(
        self, command: Run, mesh: ScriptedMesh, dialect: str, stream: bytes
    ) -> None:
        mesh.answers["Relay"] = relayed(stream)
        code, out, _ = command("ask", "-", "--dialect", dialect, "--json", stdin="hi", LURUS_API_KEY="k")
        tree = json.loads(out)
        assert (code, tree["text"], tree["end"]["cost_nano_usd"]) == (0, "Hi", "31000")

    def test_it_speaks_a_dialect_in_which_somebody_serves_the_model(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        served = routing_pb2.ServedModel(model_id="m", dialects=[usage_pb2.DIALECT_OPENAI_RESPONSES])
        mesh.answers["ListModels"] = routing_pb2.ListModelsResponse(models=[served])
        mesh.answers["Relay"] = relayed()
        command("ask", "hi", "--model", "m", LURUS_API_KEY="k")
        assert mesh.last(routing_pb2.RelayRequest).path == "/v1/responses"

    def test_an_error_in_the_answer_ends_with_1(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["Relay"] = relayed(b'{"error":{"message":"no such mo', b'del"}}', status=404)
        code, out, err = command("ask", "hi", "--dialect", "chat", LURUS_API_KEY="k")
        assert (code, out) == (1, "")
        assert f"error: no such model [HTTP 404, {REQUEST_ID}]" in err

    def test_a_cut_answer_ends_with_1_after_what_came(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["Relay"] = relayed(*self.EVENTS[:2], has_end=False)
        code, out, err = command("ask", "hi", "--dialect", "chat", LURUS_API_KEY="k")
        assert (code, out) == (1, "Hel\n")
        assert "the answer was cut" in err

    def test_without_a_key_it_says_how_to_get_one(self, command: Run) -> None:
        code, _, err = command("ask", "hi")
        assert code == 2
        assert "lurus key create" in err


class TestRoutes:
    def test_explain_shows_the_order_and_the_reasons(self, command: Run, mesh: ScriptedMesh) -> None:
        benched = routing_pb2.CandidateExplanation(
            provider_id="p",
            credential_id="c",
            skip_reason="throttled",
            breaker=routing_pb2.BREAKER_STATE_OPEN,
        )
        benched.bench_duration.FromMilliseconds(12_300)
        mesh.answers["ExplainRoute"] = routing_pb2.ExplainRouteResponse(candidates=[benched])
        code, out, _ = command("explain", "m", "--dialect", "anthropic")
        assert code == 0
        assert "p/c" in out and "open" in out and "12.3 s" in out and "throttled" in out
        assert mesh.requests[-1].dialect == usage_pb2.DIALECT_ANTHROPIC

    def test_routes_show_their_state(self, command: Run, mesh: ScriptedMesh) -> None:
        row = routing_pb2.CandidateExplanation(
            provider_id="p",
            credential_id="c",
            upstream_model="m",
            breaker=routing_pb2.BREAKER_STATE_HALF_OPEN,
        )
        row.latency_duration.FromMilliseconds(120)
        mesh.answers["WatchRoutes"] = [routing_pb2.WatchRoutesResponse(candidates=[row], is_snapshot=True)]
        code, out, _ = command("routes")
        assert code == 0
        assert "p/c" in out and "half_open" in out and "120 ms" in out

    def test_models_are_those_of_the_key(self, command: Run, mesh: ScriptedMesh) -> None:
        model = routing_pb2.ServedModel(model_id="m", dialects=[usage_pb2.DIALECT_ANTHROPIC])
        mesh.answers["ListModels"] = routing_pb2.ListModelsResponse(models=[model])
        assert command("models", LURUS_API_KEY="lsk_mine")[0] == 0
        assert mesh.tokens == ["lsk_mine"]

    def test_status_without_a_mesh_here_asks_the_addresses_of_the_settings(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["ListModels"] = routing_pb2.ListModelsResponse()
        code, out, _ = command("status", "--json")
        tree = json.loads(out)
        assert code == 0
        assert [(row["name"], row["problem"]) for row in tree["probes"]] == [
            (area, "") for area in ("routing", "provider", "log", "billing")
        ]


class TestFailures:
    def test_a_refusal_is_one_sentence_its_reason_and_a_remedy(
        self, command: Run, mesh: ScriptedMesh
    ) -> None:
        mesh.answers["GetAccount"] = NotFound("no such account", resource="account", id="acct_x")
        code, out, err = command("account", "show", "acct_x")
        assert (code, out) == (1, "")
        assert err.startswith("error: no such account [id acct_x, resource account] (NOT_FOUND)\n  ")
        mesh.answers["CreateModel"] = AlreadyExists("this id exists", resource="model", id="m")
        assert "`update`" in command("model", "create", "m")[2]

    def test_a_store_that_is_away_is_exit_code_3(self, command: Run, mesh: ScriptedMesh) -> None:
        mesh.answers["ListPrices"] = DependencyUnavailable("no database", dependency="postgresql")
        code, _, err = command("price", "list")
        assert code == 3
        assert "DEPENDENCY_UNAVAILABLE" in err

    def test_nobody_there_is_exit_code_3_with_a_way_out(self, lurus: Run) -> None:
        code, _, err = lurus("balance", LURUS_BILLING_ADDRESS="127.0.0.1:9", LURUS_ADMIN_TOKEN="t")
        assert code == 3
        assert "Start the mesh with `lurus up`" in err

    def test_no_mesh_at_all_is_exit_code_3(self, lurus: Run, tmp_path: Path) -> None:
        code, _, err = lurus("balance")
        assert code == 3
        assert f"no mesh is known in {tmp_path}" in err

    def test_a_wrong_token_says_where_tokens_come_from(self, command: Run, mesh: ScriptedMesh) -> None:
        code, _, err = command("balance", LURUS_ADMIN_TOKEN="wrong")
        assert code == 1
        assert "KEY_INVALID" in err and "--data-dir" in err

    def test_an_unknown_setting_is_exit_code_2(self, lurus: Run) -> None:
        code, _, err = lurus("balance", LURUS_DATABASE_ULR="x")
        assert code == 2
        assert "did you mean LURUS_DATABASE_URL?" in err

    def test_an_unknown_command_is_exit_code_2_with_a_suggestion(self, lurus: Run) -> None:
        code, _, err = lurus("proivder", "list")
        assert code == 2
        assert "provider" in err


class TestHelp:
    @pytest.mark.parametrize("name", cli.ENTRIES)
    def test_every_command_has_help(self, lurus: Run, name: str) -> None:
        code, out, _ = lurus(name, "--help")
        assert code == 0
        assert f"Usage: lurus {name}" in out

    def test_the_first_help_imports_nothing_heavy(self) -> None:
        script = (
            "import sys; from lurus_switch import cli; sys.argv = ['lurus', '--help']\n"
            "try: cli.main()\n"
            "except SystemExit: pass\n"
            "heavy = {'grpc', 'google.protobuf', 'aiohttp', 'rich', 'asyncio', 'msgspec'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "lurus up" in done.stdout


class TestConnect:
    def test_it_prints_what_to_set_for_each_client(self, lurus: Run) -> None:
        given = {"LURUS_API_KEY": "lsk_k", "LURUS_BASE_URL": "http://gw:1"}
        code, out, _ = lurus("connect", "codex", "--model", "gpt-5.2", **given)
        assert code == 0
        assert 'base_url = "http://gw:1/v1"' in out and 'wire_api = "responses"' in out
        assert 'model = "gpt-5.2"' in out and "export LURUS_API_KEY=lsk_k" in out
        for client in ("claude-code", "openai", "anthropic", "curl"):
            assert "http://gw:1" in lurus("connect", client, **given)[1]
        assert lurus("connect", "emacs", **given)[0] == 2

    def test_the_shell_form_can_be_evaluated(self, lurus: Run) -> None:
        given = {"LURUS_API_KEY": "lsk_k'; exit 9", "LURUS_BASE_URL": "http://gw:1"}
        _, out, _ = lurus("connect", "claude-code", "--shell", **given)
        shown = subprocess.run(
            ["sh", "-c", f'{out}\nprintf %s "$ANTHROPIC_BASE_URL $ANTHROPIC_AUTH_TOKEN"'],
            capture_output=True,
            text=True,
        )
        assert shown.stdout == "http://gw:1 lsk_k'; exit 9"


class TestDoctor:
    def test_settings_are_listed_with_defaults_and_without_secrets(self, lurus: Run) -> None:
        code, out, _ = lurus(
            *("doctor", "--settings", "--json"),
            LURUS_ADMIN_TOKEN="hush-hush",
            LURUS_DATABASE_URL="postgresql://me:hush-hush@db/lurus",
        )
        rows = {row["name"]: row for row in json.loads(out)}
        assert code == 0
        assert "hush" not in out
        assert rows["LURUS_EDGE_PORT"]["default"] == "18100"
        assert rows["LURUS_DATABASE_URL"]["value"] == "postgresql://…@db/lurus"

    def test_a_wrong_setting_is_found_with_a_remedy(self, lurus: Run) -> None:
        code, out, _ = lurus("doctor", "--json", LURUS_EDGE_PORT="99999")
        found = [row for row in json.loads(out) if row["verdict"] == "problem"]
        assert code == 1
        assert found[0]["subject"] == "settings"
        assert "LURUS_EDGE_PORT" in found[0]["text"] and found[0]["remedy"]
