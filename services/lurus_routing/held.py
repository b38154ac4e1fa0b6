"""What is remembered of something that a provider holds."""

import msgspec


class Debt(msgspec.Struct, array_like=True, frozen=True):
    """What is needed to charge an answer later."""

    account_id: str
    key_id: str
    # The request that began it, and when.
    request_id: str
    start_ns: int
    # Charged if the provider will never state more.
    estimated_input_tokens: int
    # Of the provider and of the account, at the time.
    multipliers_ppm: tuple[int, int]


class Held(msgspec.Struct, array_like=True, frozen=True):
    """Where something is held."""

    provider_id: str
    credential_id: str
    # As the client asked for it, and as the provider was.
    model: str
    upstream_model: str
    # What its making has not been charged for yet.
    debt: Debt | None = None

    @property
    def credential(self) -> tuple[str, str]:
        """Whose it is."""
        return self.provider_id, self.credential_id
