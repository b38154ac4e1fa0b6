"""The sandbox provider, as the official SDKs see it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from lurus_dialects.body import body_usage
from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import estimated_tokens
from lurus_dialects.watch import StreamWatcher
from lurus_switch.sandbox import running
from lurus_switch.sandbox_script import HARMLESS_COMMAND, example

pytestmark = pytest.mark.anyio

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES

PATHS = {A: "/v1/messages", C: "/v1/chat/completions", R: "/v1/responses"}
HELLO: Any = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"command": {"type": "string"}, "timeout": {"type": "integer"}},
    "required": ["command"],
}


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    """Base URL of a sandbox that does not dawdle."""
    async with running("127.0.0.1", 0, word_delay_seconds=0) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def claude(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def gpt(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers={"x-api-key": "k"}) as session:
        yield session


def request(dialect: Dialect, model: str, is_streaming: bool = True, **more: Any) -> dict[str, Any]:
    turns = {"input": HELLO} if dialect is R else {"messages": HELLO}
    limit = {"max_tokens": 1000} if dialect is A else {}
    return {"model": model, "stream": is_streaming, **turns, **limit, **more}


def prompt_tokens(*units: object) -> int:
    """The rule of the sandbox's docstring."""
    return sum(estimated_tokens(len(json.dumps(unit, separators=(",", ":")).encode())) for unit in units)


class TestText:
    async def test_anthropic(self, claude: anthropic.AsyncAnthropic) -> None:
        plain = await claude.messages.create(model="sandbox-text", max_tokens=1000, messages=HELLO)
        async with claude.messages.stream(model="sandbox-text", max_tokens=1000, messages=HELLO) as stream:
            pieces = [piece async for piece in stream.text_stream]
            message = await stream.get_final_message()
        text = "".join(pieces)
        assert len(pieces) > 20 and "not a model" in text and "You said: hello there" in text
        assert isinstance(plain.content[0], anthropic.types.TextBlock) and plain.content[0].text == text
        assert message.stop_reason == plain.stop_reason == "end_turn"
        for usage in (message.usage, plain.usage):
            assert usage.input_tokens == prompt_tokens(HELLO[0])
            assert usage.output_tokens == estimated_tokens(len(text))

    async def test_chat(self, gpt: openai.AsyncOpenAI) -> None:
        plain = await gpt.chat.completions.create(model="gpt-x", messages=HELLO)
        async with gpt.chat.completions.stream(
            model="gpt-x", messages=HELLO, stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
        text = final.choices[0].message.content
        assert text is not None and text == plain.choices[0].message.content and "hello there" in text
        assert final.choices[0].finish_reason == "stop"
        for usage in (final.usage, plain.usage):
            assert usage is not None
            assert usage.prompt_tokens == prompt_tokens(HELLO[0])
            assert usage.completion_tokens == estimated_tokens(len(text))

    async def test_chat_states_usage_in_a_stream_only_if_asked(self, gpt: openai.AsyncOpenAI) -> None:
        stream = await gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)

    async def test_responses(self, gpt: openai.AsyncOpenAI) -> None:
        plain = await gpt.responses.create(model="sandbox-echo", input="hello there")
        async with gpt.responses.stream(model="sandbox-echo", input="hello there") as stream:
            numbers = [event.sequence_number async for event in stream]
            final = await stream.get_final_response()
        assert numbers == list(range(len(numbers)))
        assert "hello there" in final.output_text and final.output_text == plain.output_text
        for usage in (final.usage, plain.usage):
            assert usage is not None
            assert usage.input_tokens == prompt_tokens(HELLO[0])
            assert usage.output_tokens == estimated_tokens(len(final.output_text))

    async def test_max_tokens_cut_the_answer_short(
        self, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
    ) -> None:
        message = await claude.messages.create(model="claude-x", max_tokens=5, messages=HELLO)
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)
        chat = await gpt.chat.completions.create(model="gpt-x", max_completion_tokens=5, messages=HELLO)
        assert chat.choices[0].finish_reason == "length"
        response = await gpt.responses.create(model="gpt-x", max_output_tokens=5, input="x")
        assert response.status == "incomplete"


class TestTools:
    """Each goes the whole round: call, result, text."""

    async def test_anthropic(self, claude: anthropic.AsyncAnthropic) -> None:
        tools: Any = [
            {"name": "Read", "input_schema": {"type": "object", "properties": {}}},
            {"name": "Bash", "description": "runs", "input_schema": SCHEMA},
        ]
        async with claude.messages.stream(
            model="sandbox-tools", max_tokens=1000, messages=HELLO, tools=tools
        ) as stream:
            first = await stream.get_final_message()
        call = first.content[-1]
        assert isinstance(call, anthropic.types.ToolUseBlock) and first.stop_reason == "tool_use"
        assert (call.name, call.input) == ("Bash", {"command": HARMLESS_COMMAND})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "the sandbox says hi"}
        second = await claude.messages.create(
            model="sandbox-tools",
            max_tokens=1000,
            tools=tools,
            messages=[
                *HELLO,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ],
        )
        assert isinstance(second.content[0], anthropic.types.TextBlock) and second.stop_reason == "end_turn"
        assert "the sandbox says hi" in second.content[0].text

    async def test_chat(self, gpt: openai.AsyncOpenAI) -> None:
        tools: Any = [{"type": "function", "function": {"name": "run_it", "parameters": SCHEMA}}]
        turns: Any = [{"role": "user", "content": "please use the tool"}]
        async with gpt.chat.completions.stream(model="gpt-x", messages=turns, tools=tools) as stream:
            message = (await stream.get_final_completion()).choices[0].message
        assert message.tool_calls is not None
        call = message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"command": HARMLESS_COMMAND}
        result = {"role": "tool", "tool_call_id": call.id, "content": "42 files"}
        second = await gpt.chat.completions.create(
            model="gpt-x", messages=[*turns, message.model_dump(), result], tools=tools
        )
        assert "42 files" in (second.choices[0].message.content or "")

    async def test_responses_as_codex_asks(self, gpt: openai.AsyncOpenAI) -> None:
        command = {"cmd": {"type": "string"}, "max_output_tokens": {"type": "number"}}
        exec_schema = {"type": "object", "properties": command, "required": ["cmd"]}
        tools: Any = [
            {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
            {"type": "web_search"},
            {"type": "namespace", "name": "mcp", "description": "d", "tools": []},
            {"type": "function", "name": "exec_command", "strict": False, "parameters": exec_schema},
        ]
        turns: Any = [
            {"role": "developer", "content": "You are Codex."},
            *HELLO,
            {"role": "developer", "content": "Be quick."},
        ]
        async with gpt.responses.stream(model="sandbox-tools", input=turns, tools=tools) as stream:
            first = await stream.get_final_response()
        call = first.output[-1]
        assert call.type == "function_call" and call.name == "exec_command"
        assert json.loads(call.arguments) == {"cmd": HARMLESS_COMMAND}
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "exit code 0"}
        second = await gpt.responses.create(
            model="sandbox-tools", input=[*turns, call.model_dump(), output], tools=tools
        )
        assert "exit code 0" in second.output_text

    async def test_a_free_text_tool_is_called_with_text(self, gpt: openai.AsyncOpenAI) -> None:
        tools: Any = [{"type": "custom", "name": "note"}]
        async with gpt.responses.stream(model="sandbox-tools", input="x", tools=tools) as stream:
            call = (await stream.get_final_response()).output[-1]
        assert call.type == "custom_tool_call" and call.input == "hello from the sandbox"

    async def test_no_tool_is_called_if_none_is_wanted(self, claude: anthropic.AsyncAnthropic) -> None:
        tool: Any = {"name": "Bash", "input_schema": SCHEMA}
        for model, choice in (("sandbox-tools", {"type": "none"}), ("claude-x", {"type": "auto"})):
            message = await claude.messages.create(
                model=model, max_tokens=1000, messages=HELLO, tools=[tool], tool_choice=choice
            )
            assert message.stop_reason == "end_turn"

    def test_arguments_fit_their_schema(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "command": {"type": "array", "items": {"type": "string"}},
                "kind": {"enum": ["a", "b"]},
                "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
                "count": {"type": ["integer", "null"], "minimum": 3},
                "either": {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
                "optional": {"type": "string"},
            },
            "required": ["kind", "items", "count", "either"],
            "$defs": {"item": {"properties": {"name": {"type": "string"}}, "required": ["name"]}},
        }
        assert example(schema) == {
            "command": ["echo", "hello from the sandbox"],
            "kind": "a",
            "items": [{"name": "sandbox"}],
            "count": 3,
            "either": False,
        }
        recursive = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}
        assert isinstance(example(recursive), dict)
        assert example({}) == {}


class TestThinking:
    async def test_anthropic(self, claude: anthropic.AsyncAnthropic) -> None:
        async with claude.messages.stream(
            model="sandbox-thinking", max_tokens=1000, messages=HELLO
        ) as stream:
            streamed = await stream.get_final_message()
        plain = await claude.messages.create(model="sandbox-thinking", max_tokens=1000, messages=HELLO)
        assert [block.type for block in streamed.content] == ["thinking", "text"]
        assert [block.model_dump() for block in streamed.content] == [b.model_dump() for b in plain.content]
        assert isinstance(plain.content[0], anthropic.types.ThinkingBlock)
        assert plain.content[0].signature.startswith("sandbox")

    async def test_chat(self, http: aiohttp.ClientSession) -> None:
        async with http.post(PATHS[C], json=request(C, "sandbox-thinking")) as response:
            assert b'"reasoning_content":' in await response.read()

    async def test_responses(self, gpt: openai.AsyncOpenAI) -> None:
        async with gpt.responses.stream(
            model="sandbox-thinking", input="x", include=["reasoning.encrypted_content"]
        ) as stream:
            final = await stream.get_final_response()
        reasoning = final.output[0]
        assert reasoning.type == "reasoning" and reasoning.encrypted_content and reasoning.summary[0].text
        assert final.usage is not None and final.usage.output_tokens_details.reasoning_tokens > 0


async def test_a_conversation_is_read_from_the_cache_as_it_grows(claude: anthropic.AsyncAnthropic) -> None:
    system = "You are a test. " * 20
    turns: list[Any] = [{"role": "user", "content": "one"}]

    async def usage() -> tuple[int, int | None, int | None]:
        message = await claude.messages.create(model="cache", max_tokens=999, system=system, messages=turns)
        counts = message.usage
        return counts.input_tokens, counts.cache_read_input_tokens, counts.cache_creation_input_tokens

    assert await usage() == (prompt_tokens(turns[0]), 0, prompt_tokens(system))
    turns += [{"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}]
    read, written = prompt_tokens(system, turns[0]), prompt_tokens(turns[1])
    assert await usage() == (prompt_tokens(turns[2]), read, written)


async def test_the_gateways_reader_finds_the_same_tokens(http: aiohttp.ClientSession) -> None:
    for dialect in Dialect:
        for model in ("sandbox-thinking", "sandbox-tools"):
            more: dict[str, Any] = {"stream_options": {"include_usage": True}} if dialect is C else {}
            function = {"name": "Bash", "parameters": SCHEMA}
            forms: dict[Dialect, dict[str, Any]] = {
                A: {"name": "Bash", "input_schema": SCHEMA},
                C: {"type": "function", "function": function},
                R: {"type": "function", **function},
            }
            watcher = StreamWatcher(dialect)
            body = request(dialect, model, tools=[forms[dialect]], **more)
            async with http.post(PATHS[dialect], json=body) as response:
                stream = await response.read()
                assert watcher.feed(stream) == stream
            async with http.post(PATHS[dialect], json={**body, "stream": False}) as response:
                plain = body_usage(dialect, await response.read())
            assert watcher.terminal_ok and plain.terminal_ok
            assert watcher.tokens.output == plain.tokens.output == watcher.estimated_output_tokens()
            assert watcher.tokens.reasoning == plain.tokens.reasoning
            assert watcher.broken_event_count == watcher.anomaly_count == 0


class TestFaults:
    async def test_statuses(self, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI) -> None:
        for model, status in (
            ("sandbox-error-529", 529),
            ("sandbox-bad-credential", 401),
            ("sandbox-throttle", 429),
        ):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await claude.messages.create(model=model, max_tokens=9, messages=HELLO)
            assert caught.value.status_code == status
            with pytest.raises(openai.APIStatusError) as openai_caught:
                await gpt.responses.create(model=model, input="x")
            assert openai_caught.value.status_code == status
        assert caught.value.response.headers["retry-after"] == "2"

    @pytest.mark.parametrize("dialect", list(Dialect))
    async def test_a_cut_comes_after_that_many_content_events(
        self, dialect: Dialect, http: aiohttp.ClientSession
    ) -> None:
        watcher = StreamWatcher(dialect)
        with pytest.raises(aiohttp.ClientPayloadError):
            async with http.post(PATHS[dialect], json=request(dialect, "sandbox-cut-2")) as response:
                async for chunk in response.content.iter_any():
                    watcher.feed(chunk)
        assert watcher.output_bytes == len("This is ") and not watcher.is_over

    async def test_a_plain_answer_is_cut_too(self, http: aiohttp.ClientSession) -> None:
        async with http.post(PATHS[C], json=request(C, "sandbox-cut-2", False)) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    async def test_a_client_that_leaves_a_stalled_stream_ends_it_at_once(
        self, http: aiohttp.ClientSession
    ) -> None:
        async with http.post(PATHS[A], json=request(A, "sandbox-stall-1")) as response:
            while b"This" not in await response.content.readany():
                pass
            assert (await (await http.get("/health")).json())["live_answer_count"] == 1
            response.close()
        async with asyncio.timeout(15):
            while (await (await http.get("/health")).json())["live_answer_count"]:
                await asyncio.sleep(0.01)

    async def test_slow_garbage_and_no_usage(self, http: aiohttp.ClientSession) -> None:
        started = asyncio.get_running_loop().time()
        async with http.post(PATHS[C], json=request(C, "sandbox-slow-120", False)) as response:
            assert response.status == 200
        assert asyncio.get_running_loop().time() - started >= 0.12
        for dialect in Dialect:
            async with http.post(PATHS[dialect], json=request(dialect, "sandbox-garbage", False)) as response:
                assert response.status == 200
                assert not body_usage(dialect, await response.read()).is_answer
            async with http.post(PATHS[dialect], json=request(dialect, "sandbox-garbage")) as response:
                watcher = StreamWatcher(dialect)
                watcher.feed(await response.read())
                assert watcher.broken_event_count == 2
            async with http.post(
                PATHS[dialect], json=request(dialect, "sandbox-no-usage", False)
            ) as response:
                found = body_usage(dialect, await response.read())
                assert found.is_answer and not found.usage_seen

    async def test_long(self, http: aiohttp.ClientSession) -> None:
        async with http.post(PATHS[C], json=request(C, "sandbox-long-500")) as response:
            assert (await response.read()).count(b'"content":"chunk ') == 500


class TestSurface:
    async def test_models_in_both_shapes(
        self, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
    ) -> None:
        ids = [model.id async for model in claude.models.list()]
        assert "sandbox-tools" in ids
        assert ids == [model.id async for model in gpt.models.list()]

    async def test_count_tokens(self, claude: anthropic.AsyncAnthropic) -> None:
        counted = await claude.messages.count_tokens(model="x", system="s", messages=HELLO)
        assert counted.input_tokens == prompt_tokens("s", HELLO[0])

    async def test_refusals_have_the_shape_of_their_path(self, url: str) -> None:
        async with aiohttp.ClientSession(url) as session:
            for path, body, status in (
                (PATHS[A], b"{}", 401),
                ("/v1/nothing", b"{}", 404),
                ("/v1/models", b"{}", 405),
            ):
                async with session.post(path, data=body) as response:
                    assert response.status == status
                    assert body_usage(A if path == PATHS[A] else C, await response.read()).is_error
            key = {"authorization": "Bearer k"}
            for broken in (
                b"",
                b"[]",
                b"{",
                b'{"model":"x"}',
                b'{"model":"x","messages":[1],"max_tokens":1}',
            ):
                async with session.post(PATHS[A], data=broken, headers=key) as response:
                    assert response.status == 400

    async def test_it_tells_what_it_is(self, http: aiohttp.ClientSession) -> None:
        async with http.get("/") as response:
            described = await response.json()
        assert "sandbox-cut-3" in described["models"] and "no model" in described["about"]
