"""The scenarios of the matrix, and what must come of each at both ends."""

import json
from typing import Any

from tests.sdk_matrix import answers, facts
from tests.sdk_matrix.provider import Record, answer_of
from tests.sdk_matrix.view import View

TALKS = (
    "text",
    "streamed",
    "history",
    "tools",
    "tools_streamed",
    "parallel",
    "parallel_streamed",
    "thinking",
    "thinking_streamed",
    "schema",
    "length",
)
FAILURES = ("error400", "error401", "error429", "broken", "cut")
SCENARIOS = (*TALKS, *FAILURES)
# The scenarios whose provider is one of its own: its credential is benched afterwards.
BENCHING = ("error401", "error429")
STATUSES = {"error400": 400, "error401": 502, "error429": 429}

Result = dict[str, Any]


def turn_count(scenario: str) -> int:
    """How often the provider is asked."""
    return 2 if scenario.startswith(("tools", "parallel", "thinking")) else 1


def check(scenario: str, result: Result, records: list[Record], dialect: str, is_same_dialect: bool) -> None:
    """Fails unless client and provider have seen what they must.

    Args:
        scenario: one of `SCENARIOS`.
        result: what the client's driver says.
        records: what the provider got, in order.
        dialect: the provider's, A, C or R.
        is_same_dialect: whether the client speaks it too.
    """
    problems = [problem for record in records for problem in record.view.problems]
    assert not problems, f"the provider refuses the request: {problems}\n{_sent(records)}"
    if scenario in FAILURES:
        _check_failure(scenario, result, records)
        return
    assert "error" not in result, f"the client fails: {result}\n{_sent(records)}"
    assert len(records) == turn_count(scenario), f"{len(records)} requests\n{_sent(records)}"
    views = [record.view for record in records]
    _check_client(scenario, result, views)
    try:
        _check_provider(scenario, views, dialect, is_same_dialect)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_sent(records)}") from None


def _sent(records: list[Record]) -> str:
    return "\n".join(f"sent: {json.dumps(record.body, ensure_ascii=False)}" for record in records)


def _check_failure(scenario: str, result: Result, records: list[Record]) -> None:
    assert "error" in result, f"no exception, but {result}"
    failure = result["error"]
    assert len(records) == 1, f"{len(records)} requests"
    if status := STATUSES.get(scenario):
        assert failure["status"] == status, failure
    if scenario == "error400":
        assert facts.BAD_REQUEST in failure["message"], failure
    if scenario == "error401":
        assert facts.BAD_REQUEST not in failure["message"], failure
    if scenario == "error429" and "retry_after" in failure:
        assert failure["retry_after"] == str(facts.THROTTLE_SECONDS), failure


def _check_client(scenario: str, result: Result, views: list[View]) -> None:
    if scenario == "schema":
        assert result["parsed"] == facts.STRUCTURED, result
        return
    said = [answer_of(scenario, view) for view in views]
    texts = ["".join(answer.text) for answer in said]
    assert [text for text in result["text"] if text] == [text for text in texts if text], result
    if result["deltas"]:
        assert "".join(result["deltas"]) == "".join(texts), result
    calls = [call for answer in said for call in answer.calls]
    assert result["calls"] == [
        {"name": call.name, "arguments": facts.ARGUMENTS[call.name]} for call in calls
    ], result
    usage = {
        "input": facts.INPUT_TOKENS + facts.CACHED_TOKENS,
        "cached": facts.CACHED_TOKENS,
        "output": facts.OUTPUT_TOKENS,
    }
    assert result["usage"] == usage, result
    assert (result["finish"] == "length") == (scenario == "length"), result
    if result["thinking"] is not None:
        thoughts = ["".join(answer.thinking) for answer in said if answer.thinking]
        assert [thought for thought in result["thinking"] if thought] == thoughts, result


def _check_provider(scenario: str, views: list[View], dialect: str, is_same_dialect: bool) -> None:
    for view in views:
        assert view.system == facts.SYSTEM, f"system is {view.system!r}"
        assert view.max_tokens == facts.MAX_TOKENS, f"max_tokens is {view.max_tokens}"
        assert view.has_usage or is_same_dialect, "no usage asked for"
    turns = [("user", facts.QUESTION)]
    if scenario == "history":
        turns = [("user", facts.EARLIER_QUESTION), ("assistant", facts.EARLIER_ANSWER), *turns]
        assert views[0].images == [f"image/png;{facts.IMAGE}"], views[0].images
    assert views[0].turns == turns, views[0].turns
    if scenario == "schema":
        assert views[0].schema is not None, "no schema"
        assert views[0].schema["properties"].keys() == facts.STRUCTURED.keys(), views[0].schema
    if turn_count(scenario) == 2:
        _check_loop(scenario, views, dialect)


def _check_loop(scenario: str, views: list[View], dialect: str) -> None:
    first, second = views
    for view in views:
        assert [tool["name"] for tool in view.tools] == [tool["name"] for tool in facts.TOOLS], view.tools
        assert [tool["description"] for tool in view.tools] == [tool["description"] for tool in facts.TOOLS]
        for tool, wanted in zip(view.tools, facts.TOOLS, strict=True):
            assert tool["schema"]["properties"].keys() == wanted["schema"]["properties"].keys(), tool
            assert tool["schema"]["required"] == wanted["schema"]["required"], tool
    answer = answer_of(scenario, first)
    ids = [answers.call_id(dialect, call.number) for call in answer.calls]
    assert [call[0] for call in second.calls] == ids, f"calls {second.calls}"
    assert [call[1] for call in second.calls] == [call.name for call in answer.calls]
    assert [json.loads(call[2]) for call in second.calls] == [
        facts.ARGUMENTS[call.name] for call in answer.calls
    ], f"calls {second.calls}"
    results = [facts.RESULTS[call.name] for call in answer.calls]
    assert second.results == list(zip(ids, results, strict=True)), f"results {second.results}"
    spoken = "".join(answer.text)
    said = [text for role, text in second.turns if role == "assistant"]
    assert said == ([spoken] if spoken else []), second.turns


def check_thinking(records: list[Record], dialect: str) -> None:
    """Fails unless the thinking of the first turn came back to its provider as it was."""
    first, second = (record.view for record in records)
    assert first.wants_thinking, f"no thinking asked for\n{_sent(records)}"
    original = answers.original_thinking(dialect, answer_of("thinking", first))
    found = [{name: block.get(name) for name in original} for block in second.thinking]
    assert found == [original], f"thinking {second.thinking}\n{_sent(records)}"
