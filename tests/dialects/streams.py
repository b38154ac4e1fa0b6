"""Recorded streams and what each of them says."""

from pathlib import Path
from typing import NamedTuple

from lurus_common.money import Tokens
from lurus_dialects.dialect import Dialect

FOLDER = Path(__file__).parent.parent / "streams"


class Golden(NamedTuple):
    """What must be known at the end of a stream."""

    tokens: Tokens
    stop_reason: str
    response_id: str
    output_bytes: int
    sequence_number: int = -1
    is_ok: bool = True


CHAT_ID = "chatcmpl-CeX1AbCdEfGhIjKlMnOpQrStUvWxY"

GOLDENS = {
    "anthropic-tools": Golden(
        Tokens(input=10, cache_read=1000, cache_write_5m=100, output=50),
        "tool_use",
        "msg_01XFDUDYJgAACzvnptvVoYEL",
        len("I'll look at both files. 世界😀 Then\u2028we see.".encode())
        + len('Read{"file_path":"/tmp/a.py"}Bash{"command":"ls -la","timeout":120000}'),
    ),
    "anthropic-thinking": Golden(
        Tokens(input=12, cache_write_5m=10, cache_write_1h=20, output=50, reasoning=31),
        "end_turn",
        "msg_01Thinking00000000000001",
        len("The user wants 27 * 453.27 * 453 = 12,231"),
    ),
    "anthropic-refusal": Golden(
        Tokens(input=25, output=4), "refusal", "msg_01Refusal000000000000001", len("I can")
    ),
    "anthropic-compaction": Golden(
        Tokens(input=5040, cache_read=6, output=309),
        "end_turn",
        "msg_01Compaction0000000000001",
        len("Summary of what was said.Going on."),
    ),
    "anthropic-error": Golden(
        Tokens(input=11, output=1), "", "msg_01Error00000000000000001", len("Half of a sent"), is_ok=False
    ),
    "openai_chat-text": Golden(
        Tokens(input=10, cache_read=1000, cache_write_30m=100, output=50, reasoning=20),
        "stop",
        CHAT_ID,
        len("Hello 世界😀, how\u2028can I help?".encode()),
    ),
    "openai_chat-tools": Golden(
        Tokens(input=82, output=34), "tool_calls", CHAT_ID, len('get_weather{"city":"Paris"}get_time{}')
    ),
    "openai_chat-reasoning": Golden(
        Tokens(input=7, cache_read=8, output=9, reasoning=6), "stop", CHAT_ID, len("Let me think.42")
    ),
    "openai_chat-cumulative": Golden(
        Tokens(input=4, cache_read=16, output=3), "stop", CHAT_ID, len("one two")
    ),
    "openai_chat-refusal": Golden(
        Tokens(input=18, output=11), "content_filter", CHAT_ID, len("I'm sorry, I can't help with that.")
    ),
    "openai_chat-error": Golden(Tokens(), "", CHAT_ID, len("Half of"), is_ok=False),
    "openai_responses-text": Golden(
        Tokens(input=10, cache_read=1000, cache_write_30m=60, cache_write_12h=40, output=50, reasoning=20),
        "completed",
        "resp_68c2f1e0a1b4",
        len("Hello 世界😀, friend.".encode()),
        10,
    ),
    "openai_responses-tools": Golden(
        Tokens(input=388, cache_read=512, output=77, reasoning=40),
        "completed",
        "resp_68c2f1e0t00l",
        len('**Planning**\n\nRead both files.exec_command{"cmd":"ls"}apply_patch')
        + len('*** Begin Patch\n+"q"\n*** End Patch'),
        19,
    ),
    "openai_responses-incomplete": Golden(
        Tokens(input=33, output=16), "max_output_tokens", "resp_68c2f1e0inc0", len("This is the beginn"), 8
    ),
    "openai_responses-failed": Golden(
        Tokens(input=33, output=5), "failed", "resp_68c2f1e0fa11", len("Half"), 10, is_ok=False
    ),
    "openai_responses-refusal": Golden(
        Tokens(input=21, output=8), "completed", "resp_68c2f1e0refu", len("I can't help with that."), 7
    ),
    "openai_responses-error": Golden(Tokens(), "", "resp_68c2f1e0err0", 0, 2, is_ok=False),
}


def recorded(name: str) -> bytes:
    """Returns the bytes of a recorded stream; its lines end with LF unless its name says otherwise."""
    return (FOLDER / f"{name}.sse").read_bytes()


def dialect_of(name: str) -> Dialect:
    """Returns the dialect that the name of a recorded stream begins with."""
    return Dialect(name.partition("-")[0])
