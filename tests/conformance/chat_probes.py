"""What Chat clients may send, one thing a request (wire-contract C.1)."""

from typing import Any

from tests.conformance.probes import GRAMMAR, Probe, Probes
from tests.conformance.requests import (
    C_IMAGE,
    SCHEMA,
    C,
    assistant,
    c_request,
    c_result,
    c_tool,
    c_use,
    request_of,
    text,
    user,
)


def chat_probes() -> list[Probe]:
    """Returns them."""
    probes = Probes(C)
    hi, rules = user("hi"), {"role": "system", "content": "rules"}
    probes.add("T1", "a system message", c_request(rules, hi))
    probes.add("T1", "a developer message", c_request({**rules, "role": "developer"}, hi))
    talk = [hi, assistant("yes"), user("go")]
    probes.add(
        "T1", "a system message amid the others", c_request(*talk[:2], rules, talk[2]), c_request(*talk)
    )
    probes.turn("T2", "text", text("more"))
    probes.turn("T2", "an empty text", text(""), idle="left out: it says nothing")
    probes.add("T2", "`name`", c_request({**hi, "name": "bob"}))
    refused = {"role": "assistant", "content": None, "refusal": "no"}
    probes.add("T2", "a refusal", c_request(hi, refused, user("go")))
    pictures = {
        "PNG in base64": C_IMAGE["image_url"]["url"],
        "TIFF in base64": "data:image/tiff;base64,SUkq",
        "a URL": "https://x.example/a.png",
    }
    for what, url in pictures.items():
        probes.turn("T3", what, {"type": "image_url", "image_url": {"url": url}})
    detailed = {"type": "image_url", "image_url": {**C_IMAGE["image_url"], "detail": "high"}}
    probes.turn("T3", "`detail`", detailed)
    for kind in ("application/pdf", "text/plain", "application/zip"):
        data = {"file_data": f"data:{kind};base64,aGk=", "filename": "T"}
        probes.turn("T4", f"{kind} in base64, with `filename`", {"type": "file", "file": data})
    probes.turn("T4", "a file id", {"type": "file", "file": {"file_id": "file_1"}})
    sound = {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}
    probes.turn("T5", "input", sound)
    probes.fields("T5", modalities=["text", "audio"])
    _chat_history(probes)
    _chat_tools(probes)
    probes.fields("T14", reasoning_effort="max")
    probes.fields("T14", reasoning_effort="minimal")
    probes.fields("T14", reasoning_effort="none")
    probes.fields("T15", max_completion_tokens=50, max_tokens=50)
    probes.fields("T16", temperature=0.5, top_p=0.9, seed=7, frequency_penalty=0.1, presence_penalty=0.1)
    probes.fields("T16", temperature=1.7, logit_bias={"1": 2}, verbosity="low")
    probes.fields("T16", prediction={"type": "content", "content": "x"})
    probes.fields("T17", stop="X")
    schema = {"name": "n", "schema": SCHEMA, "strict": True}
    probes.add(
        "T18",
        "`response_format` with a schema",
        request_of(C, response_format={"type": "json_schema", "json_schema": schema}),
    )
    probes.fields("T18", response_format={"type": "json_object"})
    probes.fields("T19", n=2, logprobs=True, functions=[{"name": "f", "parameters": SCHEMA}])
    probes.add("T19", "`top_logprobs`", request_of(C, logprobs=True, top_logprobs=2))
    probes.fields("T20", user="u", safety_identifier="u", metadata={"k": "v"}, prompt_cache_key="k")
    probes.fields("T21", service_tier="auto")
    probes.fields("T21", service_tier="priority")
    probes.turn(
        "T22", "`prompt_cache_breakpoint`", {**text("more"), "prompt_cache_breakpoint": {"mode": "explicit"}}
    )
    probes.fields("T22", prompt_cache_options={"mode": "explicit"})
    probes.fields("T23", store=True)
    probes.of_answer("other", stream_options={"include_usage": True})
    probes.fields("T25", moderation={"model": "m"})
    probes.add("T26", "an assistant message as the last", c_request(hi, assistant("{")))
    probes.fields("other", unheard_of=1)
    probes.turn("other", "an unknown part", {"type": "hologram"})
    return probes.found


def _chat_history(probes: Probes) -> None:
    hi, go = user("hi"), user("go")
    thought = assistant("yes", reasoning_content="hm")
    probes.add("T6", "`reasoning_content`", c_request(hi, thought, go), c_request(hi, assistant("yes"), go))

    def called(arguments: str, call_id: str = "a") -> dict[str, Any]:
        calls = [c_use(call_id, arguments)]
        return c_request(hi, assistant(None, tool_calls=calls), c_result(call_id, "out"))

    for what, arguments in (("an object", '{"x":1}'), ("nothing", ""), ("broken JSON", '{"x":')):
        probes.add("T7", f"a call with {what} for arguments", called(arguments))
    custom = {"id": "a", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    probes.add(
        "T7",
        "a call of a custom tool",
        c_request(hi, assistant(None, tool_calls=[custom]), c_result("a", "out")),
    )
    probes.add("T8", "an id with other letters", called("{}", "a|b"))
    calls = assistant(None, tool_calls=[c_use("a")])
    probes.add("T9", "a result in two parts", c_request(hi, calls, c_result("a", [text("one"), text("two")])))
    probes.add("T9", "a result without a call", c_request(hi, assistant("yes"), c_result("a", "out")))
    probes.add("T9", "a call without a result", c_request(hi, calls, go))


def _chat_tools(probes: Probes) -> None:
    plain = c_tool()
    probes.add("T10", "name, description, schema", request_of(C, tools=[plain]))
    probes.add("T10", "no schema", request_of(C, tools=[{"type": "function", "function": {"name": "f"}}]))
    strict = request_of(C, tools=[c_tool(strict=True)])
    probes.add("T10", "`strict`", strict, request_of(C, tools=[plain]))
    custom = {"type": "custom", "custom": {"name": "patch", "description": "d"}}
    probes.add("T11", "a custom tool", request_of(C, tools=[custom]))
    limited = {"type": "custom", "custom": {**custom["custom"], "format": GRAMMAR}}  # type: ignore[dict-item]
    probes.add("T11", "a grammar", request_of(C, tools=[limited]), request_of(C, tools=[custom]))
    probes.fields("T12", web_search_options={})
    for choice in ("auto", "required", "none"):
        probes.choice(plain, choice)
    probes.choice(plain, {"type": "function", "function": {"name": "f"}})
    thinking = request_of(C, tools=[plain], reasoning_effort="high")
    forced = {**thinking, "tool_choice": "required"}
    probes.add("T13", "`tool_choice` forces a call, with `reasoning_effort`", forced, thinking)
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    given = request_of(C, tools=[plain, c_tool("g")])
    chosen = {"type": "allowed_tools", "allowed_tools": allowed}
    probes.add("T13", "`allowed_tools`", {**given, "tool_choice": chosen}, given)
    given = request_of(C, tools=[plain])
    probes.add("T13", "`parallel_tool_calls: false`", {**given, "parallel_tool_calls": False}, given)
