"""What a command tells when it cannot do what it was asked, and with which exit code it ends."""

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3

EXIT_CODES = """Exit codes: 0 done · 1 failed · 2 wrong usage or settings · 3 nobody answered."""


class CommandFailed(Exception):
    """A command cannot go on.

    Attributes:
        message: one sentence.
        reason: value of `lurus.errors.v1.ErrorReason` without its prefix; empty if there is none.
        remedy: what to do about it; empty if that is obvious.
        exit_code: of the process.
    """

    def __init__(self, message: str, *, reason: str = "", remedy: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.reason, self.remedy, self.exit_code = message, reason, remedy, exit_code

    def lines(self) -> list[str]:
        """What to print on standard error."""
        reason = f" ({self.reason})" if self.reason else ""
        remedy = [f"  {line}" for line in self.remedy.splitlines()]
        return [f"error: {self.message.rstrip('.')}{reason}", *remedy]
