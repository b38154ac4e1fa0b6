"""What Responses clients may send, one thing a request (wire-contract C.1)."""

from typing import Any

from tests.conformance.probes import GRAMMAR, OURS_OF_A, OURS_OF_C, Probe, Probes
from tests.conformance.requests import (
    PNG,
    R_IMAGE,
    SCHEMA,
    R,
    assistant,
    r_request,
    r_result,
    r_tool,
    r_use,
    request_of,
    user,
)


def responses_probes() -> list[Probe]:
    """Returns them."""
    probes = Probes(R)
    hi, rules = user("hi"), {"role": "developer", "content": "rules"}
    probes.fields("T1", instructions="rules")
    probes.add("T1", "a developer message", r_request(rules, hi))
    talk = [hi, assistant("yes"), user("go")]
    probes.add(
        "T1", "a developer message amid the others", r_request(*talk[:2], rules, talk[2]), r_request(*talk)
    )
    probes.turn("T2", "text", {"type": "input_text", "text": "more"})
    phased = r_request(hi, assistant("yes", phase="commentary"), talk[2])
    probes.add("T2", "`phase`", phased, r_request(*talk))
    refused = assistant([{"type": "refusal", "refusal": "no"}])
    probes.add("T2", "a refusal", r_request(hi, refused, talk[2]))
    probes.turn("T3", "base64", R_IMAGE)
    probes.turn("T3", "a URL", {"type": "input_image", "image_url": "https://x.example/a.png"})
    probes.turn("T3", "a file id", {"type": "input_image", "file_id": "file_1"})
    probes.turn("T3", "`detail`", {**R_IMAGE, "detail": "high"})
    data = {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "T"}
    probes.turn("T4", "a PDF in base64, with `filename`", {"type": "input_file", **data})
    probes.turn("T4", "a URL", {"type": "input_file", "file_url": "https://x.example/a.pdf"})
    probes.turn("T4", "a file id", {"type": "input_file", "file_id": "file_1"})
    probes.turn("T5", "input", {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}})
    _responses_history(probes)
    _responses_tools(probes)
    for effort in ("max", "minimal", "none"):
        probes.fields("T14", reasoning={"effort": effort})
    probes.fields("T14", reasoning={"summary": "auto"})
    probes.fields("T14", reasoning={"mode": "x"})
    probes.fields("T15", max_output_tokens=50)
    probes.fields("T16", temperature=0.5, top_p=0.9, text={"verbosity": "low"})
    probes.fields("T16", temperature=1.7)
    wanted = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    probes.add("T18", "`text.format` with a schema", request_of(R, text={"format": wanted}))
    probes.fields("T18", text={"format": {"type": "json_object"}})
    probes.add(
        "T19", "`top_logprobs`", request_of(R, top_logprobs=2, include=["message.output_text.logprobs"])
    )
    probes.fields("T20", user="u", safety_identifier="u", metadata={"k": "v"}, prompt_cache_key="k")
    probes.fields("T20", client_metadata={"k": "v"})
    probes.fields("T21", service_tier="auto")
    probes.fields("T21", service_tier="priority")
    probes.fields("T22", prompt_cache_options={"mode": "explicit"})
    probes.fields("T23", store=True, previous_response_id="resp_1", conversation="conv_1", background=True)
    probes.fields("T23", prompt={"id": "p_1"}, truncation="auto", context_management=[{"type": "compaction"}])
    probes.of_answer("T23", include=["reasoning.encrypted_content"])
    probes.fields("T23", max_tool_calls=3)
    probes.fields("T23", include=["file_search_call.results"])
    probes.add("T23", "`item_reference`", r_request({"type": "item_reference", "id": "msg_1"}, hi))
    probes.add("T24", "a compaction trigger", r_request(hi, {"type": "compaction_trigger"}))
    probes.add("T24", "a compaction", r_request({"type": "compaction", "encrypted_content": "x"}, hi))
    probes.fields("T25", moderation={"model": "m"}, access_programs=["p"])
    probes.add("T26", "an assistant message as the last", r_request(hi, assistant("{")))
    probes.fields("other", unheard_of=1)
    probes.turn("other", "an unknown part", {"type": "hologram"})
    probes.add("other", "an unknown item", r_request(hi, {"type": "hologram"}))
    return probes.found


def _responses_history(probes: Probes) -> None:
    hi, go = user("hi"), user("go")

    def said(*items: dict[str, Any]) -> dict[str, Any]:
        return r_request(hi, *items, assistant("yes"), go)

    thought = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAAA"}
    probes.add("T6", "reasoning that the vendor encrypted", said(thought), said())
    for name, seal in (("Anthropic", OURS_OF_A), ("Chat", OURS_OF_C)):
        what = f"reasoning of this very provider, by {name}, in our envelope"
        probes.add("T6", what, said({**thought, "encrypted_content": seal}), said())
    probes.add("T7", "a call and its result", r_request(hi, r_use("a", '{"x":1}'), r_result("a", "out")))
    custom = {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "x"}
    answer = {"type": "custom_tool_call_output", "call_id": "a", "output": "out"}
    probes.add("T7", "a call of a custom tool", r_request(hi, custom, answer))
    hosted = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    probes.add("T12", "a hosted call in the history", said(hosted), said())
    spaced = r_use("a", "{}", "search", namespace="mcp__gh")
    probes.add("T8", "a call in a namespace", r_request(hi, spaced, r_result("a", "out")))
    output = [{"type": "input_text", "text": "out"}, R_IMAGE]
    probes.add("T9", "a result of text and image", r_request(hi, r_use("a"), r_result("a", output)))
    probes.add("T9", "a result without a call", r_request(hi, r_result("a", "out")))
    probes.add("T9", "a call without a result", r_request(hi, r_use("a"), go))


def _responses_tools(probes: Probes) -> None:
    plain = r_tool(strict=False)
    spaced = {"type": "namespace", "name": "ns", "description": "d", "tools": [r_tool()]}
    probes.add("T8", "a namespace of tools", request_of(R, tools=[spaced]))
    probes.add("T10", "name, description, schema", request_of(R, tools=[r_tool()]))
    probes.add("T10", "`strict`", request_of(R, tools=[r_tool(strict=True)]), request_of(R, tools=[plain]))
    custom = {"type": "custom", "name": "patch", "description": "d"}
    probes.add("T11", "a custom tool", request_of(R, tools=[custom]))
    limited = {**custom, "format": GRAMMAR}
    probes.add("T11", "a grammar", request_of(R, tools=[limited]), request_of(R, tools=[custom]))
    for kind in ("web_search", "tool_search", "file_search", "mcp"):
        probes.tool("T12", f"`{kind}` beside a function", {"type": kind}, plain)
    probes.add("T12", "`web_search` alone", request_of(R, tools=[{"type": "web_search"}]))
    given = request_of(R, tools=[plain, {"type": "web_search"}])
    probes.add(
        "T12", "`tool_choice` forces `web_search`", {**given, "tool_choice": {"type": "web_search"}}, given
    )
    for choice in ("auto", "required", "none"):
        probes.choice(plain, choice)
    probes.choice(plain, {"type": "function", "name": "f"})
    thinking = request_of(R, tools=[plain], reasoning={"effort": "high"})
    forced = {**thinking, "tool_choice": "required"}
    probes.add("T13", "`tool_choice` forces a call, with `reasoning.effort`", forced, thinking)
    given = request_of(R, tools=[plain, r_tool("g")])
    chosen = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    probes.add("T13", "`allowed_tools`", {**given, "tool_choice": chosen}, given)
    given = request_of(R, tools=[plain])
    probes.add("T13", "`parallel_tool_calls: false`", {**given, "parallel_tool_calls": False}, given)
