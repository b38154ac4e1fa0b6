"""Makes requests of this dialect at random: everything that it knows, and things that nobody knows."""

import random
from typing import Any

_LETTERS = 'ab é世😀\u2028"\\\n'
_CACHES: list[Any] = [
    {"type": "ephemeral"},
    {"type": "ephemeral", "ttl": "1h"},
    {"type": "ephemeral", "x": 1},
    {"type": "new"},
]
_CITATIONS = [{"type": "char_location", "start": 1, "cited_text": "a"}]


class RequestMaker:
    """Makes the same request for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def request(self) -> dict[str, Any]:
        """Returns a request that the vendor would take, as far as it is known what it takes."""
        tools = [self._tool(number) for number in range(self._count(3))]
        body = self._members(
            {"model": "m", "max_tokens": self._random.randint(70_000, 10**6), "messages": self._turns()},
            system=self._content() if self._is() else self._words(),
            stop_sequences=[self._words()],
            temperature=self._one([0, 0.1, 0.7, 1]),
            top_p=self._one([0.5, 1]),
            top_k=self._count(500),
            thinking=self._thinking(),
            output_config=self._output_config(),
            metadata=self._members({"user_id": self._words()}),
            service_tier=self._one(["auto", "standard_only", "new"]),
            cache_control=self._one(_CACHES),
            inference_geo="us",
            mcp_servers=[self._json()],
        )
        if tools:
            body["tools"] = tools
            if self._is():
                body["tool_choice"] = self._choice(tools)
        if body.get("tool_choice", {}).get("type") in ("any", "tool"):
            # The dialect forbids the pair, and our writer heeds that.
            body.pop("thinking", None)
        return body

    def _is(self) -> bool:
        return self._random.random() < 0.5

    def _one(self, values: list[Any]) -> Any:
        return self._random.choice(values)

    def _count(self, most: int) -> int:
        return self._random.randint(0, most)

    def _words(self) -> str:
        return "w" + "".join(self._random.choices(_LETTERS, k=self._count(8)))

    def _json(self, depth: int = 3) -> Any:
        kind = self._count(5 if depth else 3)
        if kind == 4:
            return [self._json(depth - 1) for _ in range(self._count(3))]
        if kind == 5:
            return {self._words(): self._json(depth - 1) for _ in range(self._count(3))}
        return self._one([None, True, False, self._random.randint(-(10**25), 10**25), self._words()])

    def _members(self, required: dict[str, Any], **optional: Any) -> dict[str, Any]:
        known = {name: value for name, value in optional.items() if self._is()}
        unknown = {f"x_{self._count(9)}": [self._json()] for _ in range(self._count(1))}
        return {**required, **known, **unknown}

    def _text(self) -> dict[str, Any]:
        required = {"type": "text", "text": self._words()}
        return self._members(required, cache_control=self._one(_CACHES), citations=_CITATIONS)

    def _source(self, media_type: str) -> dict[str, Any]:
        return self._one(
            [
                {"type": "base64", "media_type": media_type, "data": "aGk="},
                {"type": "url", "url": "https://e.org/a"},
                {"type": "file", "file_id": "file_1"},
                {"type": "url", "url": "https://e.org/a", "x": 1},
                {"type": "new", "x": 1},
            ]
        )

    def _image(self) -> dict[str, Any]:
        required = {"type": "image", "source": self._source("image/png")}
        return self._members(required, cache_control=self._one(_CACHES), transformations=[])

    def _document(self) -> dict[str, Any]:
        source = self._one(
            [
                self._source("application/pdf"),
                {"type": "text", "media_type": "text/plain", "data": self._words()},
                {"type": "content", "content": self._words()},
                {"type": "content", "content": [self._text(), self._text()]},
                {"type": "content", "content": [self._text(), self._image()]},
            ]
        )
        return self._members(
            {"type": "document", "source": source},
            title=self._words(),
            context=self._words(),
            citations={"enabled": True},
            cache_control=self._one(_CACHES),
        )

    def _vendor(self) -> dict[str, Any]:
        kinds = ["search_result", "server_tool_use", "container_upload", "new"]
        return self._members({"type": self._one(kinds)}, cache_control={"type": "ephemeral"})

    def _content(self) -> list[Any]:
        return [self._text() for _ in range(1 + self._count(2))]

    def _of_user(self) -> dict[str, Any]:
        make = self._one([self._text, self._image, self._document, self._vendor])
        block: dict[str, Any] = make()
        return block

    def _of_model(self) -> dict[str, Any]:
        thinking = {"type": "thinking", "thinking": self._one(["", "hm"]), "signature": self._one(["", "s"])}
        redacted = {"type": "redacted_thinking", "data": "d"}
        return self._one([self._text(), self._members(thinking), self._members(redacted), self._vendor()])

    def _call(self, call_id: str) -> dict[str, Any]:
        arguments = {self._words(): self._json() for _ in range(self._count(3))}
        required = {
            "type": "tool_use",
            "id": call_id,
            "name": "a" * (1 + self._count(120)),
            "input": arguments,
        }
        return self._members(required, cache_control=self._one(_CACHES), caller={"type": "direct"})

    def _result(self, call_id: str) -> dict[str, Any]:
        parts = [self._of_user() for _ in range(1 + self._count(2))]
        return self._members(
            {"type": "tool_result", "tool_use_id": call_id},
            content=parts if self._is() else self._words(),
            is_error=True,
            cache_control=self._one(_CACHES),
        )

    def _turns(self) -> list[Any]:
        turns: list[Any] = []
        calls: list[str] = []
        for number in range(1 + self._count(3)):
            turns.append(self._user_turn(calls))
            if self._is():
                rules = {"role": "system", "content": self._content()}
                turns.append(self._members(rules, output_config={"effort": "low"}))
            calls = [f"toolu_{number}_{i}" for i in range(self._count(2))]
            blocks = [self._of_model() for _ in range(1 + self._count(2))]
            blocks += [self._call(call) for call in calls]
            turns.append(self._members({"role": "assistant", "content": blocks}))
        return [*turns, self._user_turn(calls)]

    def _user_turn(self, calls: list[str]) -> dict[str, Any]:
        blocks = [self._result(call) for call in calls]
        blocks += [self._of_user() for _ in range(1 + self._count(2))]
        return self._members({"role": "user", "content": blocks})

    def _tool(self, number: int) -> dict[str, Any]:
        name = f"tool{number}"
        if self._count(3) == 0:
            return self._members({"type": "web_search_20250305", "name": name}, max_uses=3)
        schema = {"type": "object", "properties": {"a": self._json()}}
        return self._members(
            {"name": name, "input_schema": schema},
            description=self._words(),
            strict=self._is(),
            cache_control=self._one(_CACHES),
            defer_loading=self._is(),
        )

    def _choice(self, tools: list[dict[str, Any]]) -> dict[str, Any]:
        kind = self._one(["auto", "any", "tool", "none"])
        if kind == "none":
            return {"type": kind}
        named = {"name": self._one(tools)["name"]} if kind == "tool" else {}
        return self._members({"type": kind, **named}, disable_parallel_tool_use=self._is())

    def _thinking(self) -> dict[str, Any]:
        if self._is():
            return self._members({"type": self._one(["disabled", "new"])})
        display = self._one(["omitted", "summarized", "new"])
        return self._members({"type": "adaptive"}, display=display)

    def _output_config(self) -> dict[str, Any]:
        shape = self._members({"type": self._one(["json_schema", "new"])}, schema={"type": "object"})
        effort = self._one(["low", "max", "new"])
        return self._members({"x": 1}, effort=effort, format=shape, task_budget=[self._json()])
