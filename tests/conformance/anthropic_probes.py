"""What Anthropic clients may send, one thing a request (wire-contract C.1)."""

from typing import Any

from tests.conformance.probes import OURS_OF_C, OURS_OF_R, Probe, Probes
from tests.conformance.requests import (
    A_IMAGE,
    PNG,
    SCHEMA,
    A,
    a_request,
    a_result,
    a_tool,
    a_use,
    assistant,
    request_of,
    text,
    user,
)

_CACHE = {"cache_control": {"type": "ephemeral"}}


def anthropic_probes() -> list[Probe]:
    """Returns them."""
    probes = Probes(A)
    source = {"type": "base64", "media_type": "application/pdf", "data": PNG}
    document = {"type": "document", "source": source}
    probes.fields("T1", system="rules")
    probes.fields("T1", system=[text("one"), text("two")])
    mid = {"role": "system", "content": "mid"}
    talk = [user("hi"), assistant("yes")]
    probes.add(
        "T1",
        "a system message amid the others",
        a_request(*talk, mid, user("go")),
        a_request(*talk, user("go")),
    )
    configured = {**user("hi"), "output_config": {"effort": "low"}}
    probes.add("T1", "`output_config` of a message", a_request(configured))
    probes.turn("T2", "text", text("more"))
    probes.turn("T2", "an empty text", text(""), idle="left out: it says nothing")
    probes.turn(
        "T2",
        "citations of a text",
        {**text("hi"), "citations": [{"type": "char_location", "cited_text": "x"}]},
    )
    probes.turn("T3", "base64", A_IMAGE)
    probes.turn("T3", "a URL", {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}})
    probes.turn("T3", "a file id", {"type": "image", "source": {"type": "file", "file_id": "file_1"}})
    probes.turn("T3", "`transformations`", {**A_IMAGE, "transformations": [{"type": "crop"}]})
    probes.turn("T4", "a PDF in base64, with `title`", {**document, "title": "T"})
    probes.turn("T4", "`context`", {**document, "context": "c"})
    probes.turn("T4", "`citations`", {**document, "citations": {"enabled": True}})
    plain = {"type": "text", "media_type": "text/plain", "data": "words"}
    probes.turn("T4", "plain text, with `title`", {**document, "source": plain, "title": "T"})
    inner = {"type": "content", "content": [text("words")]}
    probes.turn("T4", "content blocks", {**document, "source": inner})
    probes.turn("T4", "a URL", {**document, "source": {"type": "url", "url": "https://x.example/a.pdf"}})
    probes.turn("T4", "a file id", {**document, "source": {"type": "file", "file_id": "file_1"}})
    _anthropic_history(probes)
    _anthropic_tools(probes)
    probes.fields("T14", output_config={"effort": "max"})
    probes.fields("T14", thinking={"type": "disabled"})
    adaptive = request_of(A, thinking={"type": "adaptive"})
    probes.add("T14", "`thinking.type: adaptive`", adaptive, idle="left out: it is the usual")
    probes.fields("T14", thinking={"type": "adaptive", "display": "summarized"})
    budget = {"type": "enabled", "budget_tokens": 10_000}
    probes.add(
        "T14", "`thinking.budget_tokens: 10000`", {**request_of(A, thinking=budget), "max_tokens": 20_000}
    )
    probes.add("T15", "`max_tokens: 0`", {**request_of(A), "max_tokens": 0})
    probes.add("T15", "`max_tokens: 50`", {**request_of(A), "max_tokens": 50})
    probes.fields("T16", temperature=0.5, top_p=0.9, top_k=5)
    probes.fields("T17", stop_sequences=["X"])
    probes.fields("T17", stop_sequences=list("ABCDE"))
    probes.add(
        "T18",
        "`output_config.format`",
        request_of(A, output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
    )
    probes.fields("T20", metadata={"user_id": "u"})
    probes.fields("T21", service_tier="auto", speed="fast", inference_geo="us")
    probes.fields("T21", service_tier="standard_only")
    probes.turn("T22", "`cache_control` of a block", {**text("more"), **_CACHE})
    probes.fields("T22", **_CACHE)
    probes.fields("T23", thread={"type": "create"}, container="c_1")
    probes.fields("T23", thread={"type": "continue", "previous_message_id": "msg_1"})
    probes.fields("T23", context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})
    probes.fields("T24", compaction={"type": "auto"})
    probes.turn("T24", "a compaction block", {"type": "compaction", "content": "x"})
    probes.fields(
        "T25", safeguards={}, fallbacks=[{"model": "m"}], billing_policy={}, diagnostics={}, tags=["t"]
    )
    probes.add("T26", "an assistant message as the last", a_request(user("hi"), assistant("{")))
    probes.fields("other", unheard_of=1)
    probes.turn("other", "an unknown block", {"type": "hologram"})
    return probes.found


def _anthropic_history(probes: Probes) -> None:
    def said(*blocks: dict[str, Any]) -> dict[str, Any]:
        return a_request(user("hi"), assistant([*blocks, text("yes")]), user("go"))

    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    probes.add("T6", "thinking with the vendor's signature", said(thought), said())
    probes.add("T6", "redacted thinking", said({"type": "redacted_thinking", "data": "x"}), said())
    for name, seal in (("Chat", OURS_OF_C), ("Responses", OURS_OF_R)):
        what = f"thinking of this very provider, by {name}, in our envelope"
        probes.add("T6", what, said({**thought, "signature": seal}), said())
    result = user([a_result("a", "out")])
    called = [user("hi"), assistant([a_use("a", x=1)]), result]
    probes.add("T7", "a call and its result", a_request(*called))
    probes.add("T7", "text behind a call", a_request(user("hi"), assistant([a_use("a"), text("t")]), result))
    odd = [user("hi"), assistant([a_use("a|b")]), user([a_result("a|b", "out")])]
    probes.add("T8", "an id with other letters", a_request(*odd))
    probes.add("T8", "a name of 90 letters", request_of(A, tools=[a_tool("n" * 90)]))
    for what, content in (("text and image", [text("out"), A_IMAGE]), ("nothing", [])):
        probes.add("T9", f"a result of {what}", a_request(*called[:2], user([a_result("a", content)])))
    failed = user([a_result("a", "out", is_error=True)])
    probes.add("T9", "`is_error`", a_request(*called[:2], failed), a_request(*called))
    probes.add("T9", "a result without a call", a_request(user("hi"), assistant("yes"), result))
    probes.add("T9", "a call without a result", a_request(*called[:2], user("go")))


def _anthropic_tools(probes: Probes) -> None:
    plain = a_tool()
    probes.add("T10", "name, description, schema", request_of(A, tools=[plain]))
    probes.tool("T10", "`strict`", {**plain, "strict": True}, plain)
    hints = {"defer_loading": True, "eager_input_streaming": True, "input_examples": [{"a": 1}]}
    for name, value in {**hints, "allowed_callers": ["direct"], **_CACHE}.items():
        probes.tool("T10", f"`{name}`", {**plain, name: value}, plain)
    search = {"type": "web_search_20260209", "name": "web_search"}
    probes.tool("T12", "`web_search` beside a function", search, plain)
    probes.add("T12", "`web_search` alone", request_of(A, tools=[search]))
    probes.fields("T12", mcp_servers=[{"type": "url", "url": "https://x.example", "name": "x"}])
    used = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}}
    probes.add("T12", "a hosted call in the history", a_request(user("hi"), assistant([used]), user("go")))
    for choice in ("auto", "any", "none"):
        probes.choice(plain, {"type": choice})
    probes.choice(plain, {"type": "tool", "name": "f"})
    probes.choice(plain, {"type": "auto", "disable_parallel_tool_use": True})
