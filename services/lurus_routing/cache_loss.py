"""What a session has in the prompt cache of which credential, as far as this worker has seen it."""

from collections import OrderedDict

MAX_SESSIONS = 10_000

Credential = tuple[str, str]


class SessionCaches:
    """The last answer of each session: who gave it, and how much of its input that one's cache holds."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[Credential, int]] = OrderedDict()

    def learn(self, session: str, credential: Credential, cached_tokens: int) -> None:
        """Notes an answer: what it read from the cache or wrote to it is there now."""
        self._last[session] = (credential, cached_tokens)
        self._last.move_to_end(session)
        if len(self._last) > MAX_SESSIONS:
            self._last.popitem(last=False)

    def elsewhere(self, session: str, credential: Credential) -> int | None:
        """Returns how many tokens another credential has cached; None if the last one is this, or unknown."""
        last = self._last.get(session)
        return None if last is None or last[0] == credential else last[1]
