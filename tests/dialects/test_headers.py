"""Which headers pass, in both directions."""

from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_client, to_upstream, upstream_request_id

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def names(headers: list[tuple[str, str]]) -> set[str]:
    return {name for name, _ in headers}


class TestToUpstream:
    def test_h09_credentials_identity_and_the_connection_stay_here(self) -> None:
        given = [
            ("Authorization", "Bearer x"),
            ("x-api-key", "x"),
            ("X_Api_Key", "x"),
            ("api-key", "x"),
            ("Cookie", "x"),
            ("Host", "x"),
            ("Content-Length", "3"),
            ("Content-Encoding", "gzip"),
            ("Accept-Encoding", "gzip, br"),
            ("Connection", "keep-alive, X-Foo, x_bar"),
            ("X-Foo", "x"),
            ("X-Bar", "x"),
            ("Keep-Alive", "x"),
            ("Proxy-Authorization", "x"),
            ("TE", "x"),
            ("Trailer", "x"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "websocket"),
            ("X-Forwarded-For", "x"),
            ("X_Forwarded_Host", "x"),
            ("Forwarded", "x"),
            ("Via", "x"),
            ("X-Lurus-Strict", "1"),
            ("X_Lurus_Account", "x"),
            ("X-User-ID", "x"),
            ("X_User_Id", "x"),
            ("grpc-timeout", "1S"),
            ("traceparent", "junk"),
            ("OpenAI-Organization", "x"),
        ]
        assert to_upstream(C, given) == [
            ("content-type", "application/json"),
            ("accept-encoding", "identity"),
        ]

    def test_h11_headers_of_tomorrow_pass(self) -> None:
        given = [
            ("anthropic-new-thing", "1"),
            ("X-Claude-Code-New", "2"),
            ("session-id", "s"),
            ("x-codex-turn-metadata", "{}"),
            ("originator", "codex_cli"),
            ("Idempotency-Key", "i"),
            ("User-Agent", "claude-cli/2"),
            ("accept", "application/json"),
            ("content-type", "application/json; charset=utf-8"),
            ("x-stainless-retry-count", "0"),
        ]
        expected = [(name.lower(), value) for name, value in given] + [("accept-encoding", "identity")]
        assert to_upstream(R, given) == expected

    def test_h10_lines_of_betas_are_joined_in_order(self) -> None:
        given = [("anthropic-beta", "a-1,b-2"), ("x-app", "cli"), ("Anthropic-Beta", "unknown-9")]
        passed = to_upstream(A, given)
        assert [value for name, value in passed if name == "anthropic-beta"] == ["a-1,b-2,unknown-9"]

    def test_anthropic_needs_a_version(self) -> None:
        assert ("anthropic-version", "2023-06-01") in to_upstream(A, [])
        assert ("anthropic-version", "2026-10-21") in to_upstream(A, [("Anthropic-Version", "2026-10-21")])
        assert "anthropic-version" not in names(to_upstream(C, []))

    def test_a_value_with_a_line_end_is_dropped(self) -> None:
        assert "x-a" not in names(to_upstream(C, [("x-a", "1\r\nx-api-key: k"), ("x-a", "\0")]))


class TestToClient:
    def test_b4(self) -> None:
        relayed = [
            ("content-type", "text/event-stream"),
            ("retry-after", "7"),
            ("retry-after-ms", "7000"),
            ("x-should-retry", "true"),
            ("x-codex-turn-state", "s"),
            ("openai-model", "m"),
            ("x-reasoning-included", "true"),
            ("x-models-etag", "e"),
            ("openai-processing-ms", "3"),
        ]
        dropped = [
            ("Set-Cookie", "x"),
            ("Server", "x"),
            ("Via", "x"),
            ("CF-Ray", "x"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Encoding", "gzip"),
            ("Content-Length", "1"),
            ("anthropic-organization-id", "x"),
            ("anthropic-ratelimit-tokens-remaining", "x"),
            ("x-ratelimit-remaining-requests", "x"),
            ("openai-organization", "x"),
        ]
        assert to_client([*dropped, *[(name.title(), value) for name, value in relayed]]) == relayed

    def test_the_providers_request_id_is_kept_under_another_name(self) -> None:
        assert to_client([("x-request-id", "up_1")]) == [("x-lurus-upstream-request-id", "up_1")]
        assert upstream_request_id([("request-id", "a\x1b[0m"), ("x-request-id", "b" * 999)]) == "b" * 256
