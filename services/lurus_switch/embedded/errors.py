"""What may go wrong with processes of ours; each message says what to do about it."""


class EmbeddedError(Exception):
    """A failure that an operator is told about as it is, without a traceback."""


class AlreadyRunning(EmbeddedError):
    """Another process uses this data directory."""


class DataDirUnusable(EmbeddedError):
    """The data directory cannot be created, written or read."""


class BinaryNotFound(EmbeddedError):
    """A server's program is neither installed by pip nor by the system."""


class PortTaken(EmbeddedError):
    """A configured port is in use, or no free one was found."""


class StartFailed(EmbeddedError):
    """A process ended, or was not ready in time; the message ends with the tail of its log."""
