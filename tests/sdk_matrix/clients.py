"""Which clients the matrix has."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """An SDK and the API that it is told to speak."""

    name: str
    dialect: str
    # Whether it gives a model's thinking back in the next turn.
    returns_thinking: bool = True


_ALL = (
    Client("py-anthropic", "A"),
    Client("py-chat", "C", returns_thinking=False),
    Client("py-responses", "R"),
)
CLIENTS = {client.name: client for client in _ALL}
