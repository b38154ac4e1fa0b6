"""The scripted provider of the fault kit, under the name that this repository's own tests use."""

from tests.faults.scripted import (
    Exchange,
    ReceivedRequest,
    Script,
    ScriptedUpstream,
    hang_up,
    plain,
    raw,
    reset,
    silent,
    stream,
)

__all__ = [
    "Exchange",
    "ReceivedRequest",
    "Script",
    "ScriptedUpstream",
    "hang_up",
    "plain",
    "raw",
    "reset",
    "silent",
    "stream",
]
