"""Reads answers of OpenAI Responses as its clients do (wire-contract A.3.5)."""

from typing import Any

from tests.support.told import Told, event_json

_R_ENDS = {"response.completed", "response.incomplete", "response.failed"}


def read_stream(events: list[tuple[str, bytes]]) -> Told:
    """Returns what a client makes of the events of a stream."""
    reader = _ResponsesClient()
    for name, data in events:
        reader.read(event_json(name, data))
    return reader.told


class _ResponsesClient:
    """Follows the ladder of every item."""

    def __init__(self) -> None:
        self.told = Told()
        self.count = 0
        self.response_id = ""
        self.open: dict[int, dict[str, Any]] = {}
        self.streamed: dict[tuple[Any, ...], str] = {}
        self.finished: dict[tuple[Any, ...], str] = {}
        self.done: list[dict[str, Any]] = []

    def read(self, event: dict[str, Any]) -> None:
        self.told.events.append(event)
        kind = event["type"]
        assert not self.told.is_complete and self.told.error is None, f"{kind} after the end"
        assert event["sequence_number"] == self.count, "a gap between events"
        self.count += 1
        if kind == "keepalive":
            return
        assert (self.count == 1) == (kind == "response.created"), f"{kind} out of place"
        if "response" in event:
            self._lifecycle(kind, event["response"])
        else:
            self._item(kind, event)

    def _lifecycle(self, kind: str, response: dict[str, Any]) -> None:
        self.response_id = self.response_id or response["id"]
        assert response["id"] == self.response_id and response["object"] == "response"
        assert response["store"] is False
        self.told.model = response["model"]
        if kind not in _R_ENDS:
            return
        self.told.whole = response
        self.told.finish = response["status"]
        assert response["status"] == kind.removeprefix("response.")
        if kind == "response.failed":
            self.told.error = response["error"]
            assert {"code", "message"} <= response["error"].keys()
            return
        assert not self.open, "an item is open at the end"
        assert response["output"] == self.done, "the output is not what was streamed"
        self.told.is_complete = True
        self.told.usage = response["usage"]
        if kind == "response.incomplete":
            self.told.finish = response["incomplete_details"]["reason"]

    def _item(self, kind: str, event: dict[str, Any]) -> None:
        at = event["output_index"]
        if kind == "response.output_item.added":
            assert at == len(self.done) + len(self.open), "a gap between items"
            self.open[at] = event["item"]
            return
        item = self.open[at]
        if kind == "response.output_item.done":
            assert (event["item"]["id"], event["item"]["type"]) == (item["id"], item["type"])
            self._take(at, event["item"])
            del self.open[at]
            return
        assert event["item_id"] == item["id"], "another item's id"
        self._part(kind, event, (at, event.get("content_index"), event.get("summary_index")))

    def _part(self, kind: str, event: dict[str, Any], place: tuple[Any, ...]) -> None:
        if kind.endswith("_part.added"):
            self.streamed[place] = ""
        elif kind.endswith(".delta"):
            is_call = event.get("content_index") is None and event.get("summary_index") is None
            assert place in self.streamed or is_call, "a delta of no part"
            assert event["delta"], "an empty delta"
            self.streamed[place] = self.streamed.get(place, "") + event["delta"]
        elif kind.endswith("_part.done"):
            part = event["part"]
            assert (part.get("text") or part.get("refusal") or "") == self.finished.pop(place)
        elif kind.endswith(".done"):
            whole = next(event[key] for key in ("text", "arguments", "input", "refusal") if key in event)
            assert whole == self.streamed.pop(place, ""), "done says another text than the deltas"
            self.finished[place] = whole

    def _take(self, at: int, item: dict[str, Any]) -> None:
        self.done.append(item)
        self.told.blocks += _blocks_of_item(item)
        mine = [place for place in [*self.streamed, *self.finished] if place[0] == at]
        if item["type"] in ("function_call", "custom_tool_call"):
            text = item["arguments" if item["type"] == "function_call" else "input"]
            assert self.finished.pop((at, None, None)) == text
        else:
            assert not mine, f"a part of {item} has no end"


def _blocks_of_item(item: dict[str, Any]) -> list[tuple[str, ...]]:
    if item["type"] == "function_call":
        return [("tool", item["call_id"], item["name"], item["arguments"], item.get("namespace") or "")]
    if item["type"] == "custom_tool_call":
        return [("custom", item["call_id"], item["name"], item["input"], item.get("namespace") or "")]
    if item["type"] == "reasoning":
        text = "\n\n".join(part["text"] for part in item["summary"])
        return [("thinking", text, item.get("encrypted_content") or "")]
    assert item["type"] == "message" and item["role"] == "assistant", item
    return [
        ("refusal", part["refusal"]) if part["type"] == "refusal" else ("text", part["text"])
        for part in item["content"]
    ]


def read_body(body: dict[str, Any]) -> Told:
    """Returns what a client makes of a plain answer."""
    assert body["object"] == "response" and body["store"] is False
    details = body.get("incomplete_details")
    finish = details["reason"] if details else body["status"]
    result = Told(finish=finish, usage=body["usage"], model=body["model"], is_complete=True, whole=body)
    for item in body["output"]:
        result.blocks += _blocks_of_item(item)
    return result
