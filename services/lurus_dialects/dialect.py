"""The three HTTP shapes of a chat API that clients and providers speak."""

from enum import StrEnum


class Dialect(StrEnum):
    """One HTTP shape of a chat API."""

    ANTHROPIC = "anthropic"
    OPENAI_CHAT = "openai_chat"
    OPENAI_RESPONSES = "openai_responses"
