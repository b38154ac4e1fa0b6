"""The one door to translation: a reader and a writer for each dialect."""

from collections.abc import Mapping, Sequence

from lurus.routing.v1.chat_pb2 import StreamChatRequest, StreamChatResponse
from lurus_common.errors import InvalidRequest
from lurus_dialects.anthropic import answer_reader as anthropic_answer_reader
from lurus_dialects.anthropic import answer_writer as anthropic_answer_writer
from lurus_dialects.anthropic import request_reader as anthropic_request_reader
from lurus_dialects.anthropic import request_writer as anthropic_request_writer
from lurus_dialects.dialect import Dialect
from lurus_dialects.openai_chat import answer_reader as chat_answer_reader
from lurus_dialects.openai_chat import answer_writer as chat_answer_writer
from lurus_dialects.openai_chat import request_reader as chat_request_reader
from lurus_dialects.openai_chat import request_writer as chat_request_writer
from lurus_dialects.openai_responses import answer_reader as responses_answer_reader
from lurus_dialects.openai_responses import answer_writer as responses_answer_writer
from lurus_dialects.openai_responses import request_reader as responses_request_reader
from lurus_dialects.openai_responses import request_writer as responses_request_writer
from lurus_dialects.request import check_utf8
from lurus_dialects.translation import AnswerReader, AnswerWriter, Asked, Losses, Target, ToolName, Written

_REQUEST_READERS = {
    Dialect.ANTHROPIC: anthropic_request_reader.read_request,
    Dialect.OPENAI_CHAT: chat_request_reader.read_request,
    Dialect.OPENAI_RESPONSES: responses_request_reader.read_request,
}
_REQUEST_WRITERS = {
    Dialect.ANTHROPIC: anthropic_request_writer.write_request,
    Dialect.OPENAI_CHAT: chat_request_writer.write_request,
    Dialect.OPENAI_RESPONSES: responses_request_writer.write_request,
}
_STREAM_READERS: dict[Dialect, type[AnswerReader]] = {
    Dialect.ANTHROPIC: anthropic_answer_reader.StreamReader,
    Dialect.OPENAI_CHAT: chat_answer_reader.StreamReader,
    Dialect.OPENAI_RESPONSES: responses_answer_reader.StreamReader,
}
_STREAM_WRITERS: dict[Dialect, type[AnswerWriter]] = {
    Dialect.ANTHROPIC: anthropic_answer_writer.StreamWriter,
    Dialect.OPENAI_CHAT: chat_answer_writer.StreamWriter,
    Dialect.OPENAI_RESPONSES: responses_answer_writer.StreamWriter,
}
_BODY_READERS = {
    Dialect.ANTHROPIC: anthropic_answer_reader.read_body,
    Dialect.OPENAI_CHAT: chat_answer_reader.read_body,
    Dialect.OPENAI_RESPONSES: responses_answer_reader.read_body,
}
_BODY_WRITERS = {
    Dialect.ANTHROPIC: anthropic_answer_writer.write_body,
    Dialect.OPENAI_CHAT: chat_answer_writer.write_body,
    Dialect.OPENAI_RESPONSES: responses_answer_writer.write_body,
}


def read_request(dialect: Dialect, body: bytes, losses: Losses) -> StreamChatRequest:
    """Returns a client's request in the hub's form.

    Raises:
        InvalidRequest: it is not a request of the dialect; `param` names the place.
        Untranslatable: it holds what no other dialect may get (RJ), whoever the target.
    """
    try:
        # Parts of it are passed on as they came, unread.
        check_utf8(body)
    except UnicodeDecodeError:
        raise InvalidRequest("body: must be UTF-8", param="body") from None
    return _REQUEST_READERS[dialect](body, losses)


def write_request(
    request: StreamChatRequest, target: Target, losses: Losses, *, is_streaming: bool
) -> Written:
    """Returns the request in the words of `target`.

    Raises:
        Untranslatable: the target's dialect cannot express it (RJ), or a strict client would lose by it (L1).
    """
    return _REQUEST_WRITERS[target.dialect](request, target, losses, is_streaming=is_streaming)


def stream_reader(dialect: Dialect, tool_names: Mapping[str, ToolName]) -> AnswerReader:
    """Returns a reader for a provider's stream; it gives tools the names back that the client gave them."""
    return _STREAM_READERS[dialect](tool_names)  # type: ignore[call-arg]  # a protocol has none


def stream_writer(dialect: Dialect, asked: Asked) -> AnswerWriter:
    """Returns a writer for a client's stream."""
    return _STREAM_WRITERS[dialect](asked)  # type: ignore[call-arg]  # a protocol has none


def read_body(dialect: Dialect, body: bytes, tool_names: Mapping[str, ToolName]) -> list[StreamChatResponse]:
    """Returns what a plain answer says as the events of a stream; the last is `finish` or `error`."""
    return _BODY_READERS[dialect](body, tool_names)


def write_body(dialect: Dialect, events: Sequence[StreamChatResponse], asked: Asked) -> bytes:
    """Returns a plain answer; `events` end with `finish`."""
    return _BODY_WRITERS[dialect](events, asked)
